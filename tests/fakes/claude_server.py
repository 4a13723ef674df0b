"""A fake of Claude's Messages API: the shapes of its answers and of its refusals."""

from __future__ import annotations

from typing import Any

from tests.fakes.scripted_http import FEEDBACK_TEXT, Reply, ScriptedServer


def message(
    text: str = FEEDBACK_TEXT,
    *,
    stop_reason: str = "end_turn",
    thinking: str = "",
    input_tokens: int = 1000,
    output_tokens: int = 100,
    **reply: Any,
) -> Reply:
    """Answer with a message; `thinking` puts a thinking block before the text, empty text sends no text block."""
    content: list[dict[str, Any]] = []
    if thinking:
        content.append({"type": "thinking", "thinking": thinking, "signature": "c2lnbmVk"})
    if text:
        content.append({"type": "text", "text": text})
    body = {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-test",
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": input_tokens, "output_tokens": output_tokens},
    }
    return Reply(body=body, headers={"request-id": "req_01", **reply.pop("headers", {})}, **reply)


def error(status: int, kind: str, text: str = "no", *, code: str = "", headers: dict[str, str] | None = None) -> Reply:
    """Refuse as the API does; `code` goes to `error.details.error_code`."""
    detail: dict[str, Any] = {"type": kind, "message": text}
    if code:
        detail["details"] = {"error_code": code}
    return Reply(body={"type": "error", "error": detail, "request_id": "req_02"}, status=status, headers=headers or {})


class ClaudeServer(ScriptedServer):
    """Answers every request with good feedback unless scripted otherwise."""

    def __init__(self) -> None:
        super().__init__("/v1/messages", lambda _: message())

    @property
    def base_url(self) -> str:
        return self.address
