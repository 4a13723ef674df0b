"""The REPL's own recorded transcripts, replayed through the client."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fd_async.verifier.messages import decode_answer
from fd_async.verifier.repl import ReplSpec, clean_environment, open_repl
from tests.fakes import repl_replay

CASES = Path(__file__).parents[4] / "shared" / "data" / "repl_cases"

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not CASES.is_dir(), reason="the recorded transcripts (../shared/data/repl_cases) are not here"),
]


def cases() -> list[Path]:
    return sorted(path for path in CASES.glob("*/*.in") if path.with_suffix(".expected.out").exists())


def requests_of(path: Path) -> list[dict[str, object]]:
    """The requests as the REPL reads them: lines joined without a line break."""
    blocks = repl_replay.blocks_of(path.read_text(encoding="utf-8"))
    return [json.loads("".join(line.rstrip() for line in block.splitlines())) for block in blocks]


async def test_every_recorded_answer_comes_back_whole_and_in_order() -> None:
    """71 of 71 transcripts: as many answers as requests, each equal to the recording."""
    outputs = [path.with_suffix(".expected.out") for path in cases()]
    argv = (sys.executable, "-S", "-E", str(Path(repl_replay.__file__)), *map(str, outputs))
    matched = 0
    async with open_repl(ReplSpec(argv=argv, env=clean_environment()), "") as repl:
        for path, output in zip(cases(), outputs, strict=True):
            expected = repl_replay.blocks_of(output.read_text(encoding="utf-8"))
            answers = [await repl.exchange(request, timeout_s=10) for request in requests_of(path)]
            assert [json.loads(a) for a in answers] == [json.loads(e) for e in expected], path.name
            matched += 1
    assert matched == 71


def test_recorded_command_answers_decode_with_their_messages() -> None:
    """The typed view keeps the environment, and every message with its severity."""
    decoded = 0
    for path in cases():
        blocks = repl_replay.blocks_of(path.with_suffix(".expected.out").read_text(encoding="utf-8"))
        for block in blocks:
            raw = json.loads(block)
            if "env" in raw:
                answer = decode_answer(block.encode())
                assert answer.env == raw["env"]
                assert [m.severity for m in answer.messages] == [m["severity"] for m in raw.get("messages", [])]
                assert len(answer.sorries) == len(raw.get("sorries", []))
                decoded += 1
    assert decoded > 71
