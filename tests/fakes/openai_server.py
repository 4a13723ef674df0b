"""A fake OpenAI-compatible chat completion server, for tests and, as a process of its own, for benchmarks.

    python -m tests.fakes.openai_server --port 0 --delay 5

prints `listening on http://127.0.0.1:PORT/v1` and answers every request with good feedback after the delay.
"""

from __future__ import annotations

import argparse
import signal
from typing import Any

import anyio

from tests.fakes.scripted_http import FEEDBACK_TEXT, Reply, ScriptedServer

_CHARS_PER_TOKEN = 4


def completion(
    text: str | None = FEEDBACK_TEXT,
    *,
    finish_reason: str = "stop",
    refusal: str | None = None,
    usage: tuple[int, int] | None = (1000, 100),
    **reply: Any,
) -> Reply:
    """Answer with one choice; `usage` is (prompt tokens, completion tokens), None leaves it out."""
    body: dict[str, Any] = {
        "id": "chatcmpl-01",
        "object": "chat.completion",
        "created": 0,
        "model": "tutor-test",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish_reason,
                "message": {"role": "assistant", "content": text, "refusal": refusal},
            }
        ],
    }
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return Reply(body=body, **reply)


def error(status: int, code: str, text: str = "no", *, param: str | None = None, **reply: Any) -> Reply:
    """Refuse as the API does."""
    detail = {"message": text, "type": "error", "param": param, "code": code}
    return Reply(body={"error": detail}, status=status, **reply)


def counted(request: dict[str, Any], text: str, delay_s: float) -> Reply:
    """Answer with usage computed from the lengths of question and answer."""
    asked = sum(len(part["content"]) for part in request["messages"]) // _CHARS_PER_TOKEN
    return completion(text, usage=(asked, len(text) // _CHARS_PER_TOKEN), delay_s=delay_s)


class OpenAIServer(ScriptedServer):
    """Answers every request with `text` after `delay_s` unless scripted otherwise."""

    def __init__(self, *, text: str = FEEDBACK_TEXT, delay_s: float = 0.0, port: int = 0) -> None:
        super().__init__("/v1/chat/completions", lambda request: counted(request, text, delay_s), port=port)

    @property
    def base_url(self) -> str:
        return f"{self.address}/v1"


async def serve(port: int, delay_s: float, text: str) -> None:
    """Serve until SIGINT or SIGTERM."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with OpenAIServer(text=text, delay_s=delay_s, port=port) as server:
            print(f"listening on {server.base_url}", flush=True)
            async for _ in signals:
                break


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="A fake OpenAI-compatible server that gives feedback.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--text", default=FEEDBACK_TEXT, help="the feedback")
    arguments = parser.parse_args()
    anyio.run(serve, arguments.port, arguments.delay, arguments.text)


if __name__ == "__main__":
    main()
