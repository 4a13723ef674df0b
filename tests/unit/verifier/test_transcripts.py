"""The REPL's own recorded transcripts, replayed through the client."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fd_async.verifier.messages import decode_answer
from fd_async.verifier.repl.process import ReplExited, ReplSpec, clean_environment, open_repl
from tests.fakes.repl_faulty import program
from tests.fakes.repl_replay import RENUMBER, after_header, recorded

CASES = Path(__file__).parents[4] / "shared" / "data" / "repl_cases"

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not CASES.is_dir(), reason="the recorded transcripts (../shared/data/repl_cases) are not here"),
]


def cases() -> list[str]:
    """Return those whose answers were recorded."""
    return sorted(str(path) for path in CASES.glob("*/*.in") if path.with_suffix(".expected.out").exists())


def replaying(*paths: str) -> ReplSpec:
    return ReplSpec(argv=tuple(program(*paths, module="repl_replay")), env=clean_environment())


async def test_every_recorded_request_goes_out_and_every_recorded_answer_comes_back() -> None:
    """71 of 71 transcripts: the replay compares each request with the recording, the test compares each answer."""
    requests = answers = 0
    paths = cases()
    async with open_repl(replaying(*paths), "") as repl:
        for path in paths:
            for request, expected in recorded(path):
                answer = await repl.exchange(request, timeout_s=10)
                assert json.loads(answer) == json.loads(expected), path
                answers += 1
            requests += len(recorded(path))
    print(f"{len(paths)} of {len(paths)} transcripts, {answers} of {requests} answers")
    assert (len(paths), answers) == (71, requests)


async def test_a_request_that_differs_from_the_recording_is_noticed() -> None:
    """The comparison above can fail, on the way out."""
    path = cases()[0]
    async with open_repl(replaying(path), "") as repl:
        request = {**recorded(path)[0][0], "env": 12345}
        with pytest.raises(ReplExited, match=r"exit code 1.*expected .* got .*12345"):
            await repl.exchange(request, timeout_s=10)


async def test_recorded_commands_run_through_the_typed_call() -> None:
    """`command` sends what was recorded, and demands the environments that the REPL really gave."""
    paths = [path for path in cases() if all(set(request) <= {"cmd", "env"} for request, _ in recorded(path))]
    for path in paths:
        async with open_repl(replaying(RENUMBER, path), "") as repl:
            for request, expected in recorded(path):
                wanted = after_header(json.loads(expected))
                sent = after_header(request)
                answer = await repl.command(sent["cmd"], env=sent.get("env"), timeout_s=10)
                assert (answer.env, answer.message) == (wanted.get("env"), wanted.get("message")), path
                assert [message.data for message in answer.messages] == [m["data"] for m in wanted.get("messages", [])]
    assert len(paths) > 20


def test_recorded_command_answers_decode_with_their_messages() -> None:
    """The typed view keeps the environment, and every message with its severity."""
    decoded = 0
    for path in cases():
        for _, block in recorded(path):
            raw = json.loads(block)
            if "env" in raw:
                answer = decode_answer(block.encode())
                assert answer.env == raw["env"]
                assert [m.severity for m in answer.messages] == [m["severity"] for m in raw.get("messages", [])]
                assert [m.data for m in answer.messages] == [m["data"] for m in raw.get("messages", [])]
                assert len(answer.sorries) == len(raw.get("sorries", []))
                decoded += 1
    assert decoded > 71
