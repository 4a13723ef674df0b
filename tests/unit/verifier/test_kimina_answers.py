"""What a Kimina server answers comes back as it was: trees, recorded answers, line numbers of both versions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fd_async.verifier.backend import CheckTimeout, LeanRequest
from tests.fakes.repl_kimina import Plan
from tests.unit.verifier.test_kimina import IMPORTS, backend_at

pytestmark = pytest.mark.anyio

RECORDED = Path(__file__).parents[4] / "shared" / "data" / "kimina_match"


@pytest.mark.parametrize("old", [False, True])
async def test_the_infotree_is_handed_on_with_lines_of_the_body(old: bool) -> None:
    """The server takes two imports off the file and moves nothing inside the tree; strings stay as they are."""

    def tree(answer: dict[str, Any]) -> None:
        answer["results"][0]["response"]["infotree"] = [{"line": 4, "text": '"line": 4'}]

    async with backend_at(old) as (backend, server):
        server.plans = [Plan(edit=tree)]
        answer = await backend.run(LeanRequest(IMPORTS, "theorem foo : True := trivial", infotree=True))
        assert server.requests[-1][1]["infotree_type" if old else "infotree"] == "full"
        assert answer.infotree is not None
        assert msgspec.json.decode(answer.infotree) == [{"line": 1, "text": '"line": 4'}]


def _record(position: int) -> Callable[[str], dict[str, Any] | None]:
    """An answer as version 1 recorded them: lines from after the imports, `time` inside."""
    message = {"severity": "error", "pos": {"line": position, "column": 2}, "endPos": None, "data": "linarith failed"}
    recorded = {"error": None, "response": {"messages": [message], "time": 1.5}}
    return lambda code: None if "fd_version" in code else recorded


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded answers are not in this checkout")
async def test_every_recorded_answer_goes_through_the_client() -> None:
    """Sixty answers of a version 1 server: what Lean said, or a timeout, with lines of the file that was sent."""
    files = sorted((RECORDED / "output").glob("*.json"))
    assert len(files) == 60
    sources = {file.stem: (RECORDED / "input" / f"{file.stem}.lean").read_text() for file in files}
    records = {sources[file.stem].strip(): json.loads(file.read_text())["results"][0] for file in files}
    header = "import Mathlib\nimport Aesop"
    async with backend_at(True, header=header, answer=lambda code: records.get(code.strip())) as (backend, _):
        timeouts = 0
        for code, record in records.items():
            assert code.startswith(f"{header}\n\n")
            body = code.removeprefix(f"{header}\n\n")
            if record["error"]:
                with pytest.raises(CheckTimeout):
                    await backend.run(LeanRequest(header, body))
                timeouts += 1
                continue
            answer = await backend.run(LeanRequest(header, body))
            said = record["response"].get("messages", [])
            assert [m.data for m in answer.messages] == [m["data"] for m in said]
            assert [m.pos.line for m in answer.messages] == [m["pos"]["line"] for m in said]
            assert answer.seconds == record["response"]["time"]
            for message in answer.messages:
                named = re.match(r"`(\w+)` has been deprecated", message.data)
                line = body.split("\n")[message.pos.line - 1]
                assert named is None or named[1] in line[message.pos.column :]
        assert timeouts == 4


async def test_lines_of_version_1_are_moved_to_the_file() -> None:
    """Two imports and an empty line were taken off."""
    async with backend_at(True, answer=_record(3), header="import Mathlib\nimport Aesop") as (backend, _):
        answer = await backend.run(LeanRequest("import Mathlib\nimport Aesop", "theorem foo : 1 = 2 := by\n  linarith"))
        assert [(m.pos.line, m.data) for m in answer.messages] == [(3, "linarith failed")]
        assert answer.seconds == 1.5
