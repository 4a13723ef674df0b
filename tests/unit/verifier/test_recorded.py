"""Answers of real Lean servers, recorded by others, through our own judging code: every verdict, one by one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from fd_async.types import Statement
from fd_async.verifier.backend import CheckTimeout, LeanAnswer, LeanRequest
from fd_async.verifier.judge import Judge
from fd_async.verifier.messages import Message, Position
from tests.unit.verifier.conftest import AXIOMS

DATA = Path(__file__).parents[4] / "shared" / "data"
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not DATA.is_dir(), reason="the recorded answers (../shared/data) are not here"),
]


class Record(NamedTuple):
    """One recorded check. `messages` is None where Lean did not finish."""

    name: str
    code: str
    statement: Statement
    messages: list[Message] | None
    num_sorries: int

    @property
    def recorded(self) -> str:
        """The verdict by the rule of the recording servers: no error and no `sorry`."""
        if self.messages is None:
            return "timeout"
        if any(message.is_error for message in self.messages):
            return "failed"
        return "sorry" if self.num_sorries else "proved"


class ReplayLean:
    """A LeanBackend that answers the model's file as recorded, and the judge's own commands as Lean would.

    The probe was never recorded: its answer is that the statement, which is ours, was proved from standard axioms.
    """

    name, toolchain, root = "replay", "recorded", "_root_."

    def __init__(self, record: Record) -> None:
        self._record = record
        self.statement_checks = 0

    async def run(self, request: LeanRequest) -> LeanAnswer:
        name = request.probe.rpartition(" ")[2]
        listed = Message(f"'{name}' depends on axioms: [propext, Classical.choice, Quot.sound]", "info")
        if request.probe_always:
            self.statement_checks += 1
            return LeanAnswer([], 1, 0.0, probe=[listed])
        record = self._record
        if record.messages is None:
            raise CheckTimeout("the recorded check did not finish")
        failed = any(message.is_error for message in record.messages)
        probe = None if failed or record.num_sorries or not request.probe else [listed]
        return LeanAnswer(record.messages, record.num_sorries, 0.0, probe=probe)

    def statistics(self) -> Mapping[str, float]:
        return {}


def messages_of(rows: list[dict[str, Any]], lines_cut: int) -> list[Message]:
    """Read recorded messages; the servers had cut the imports off, so their lines are moved back."""
    found = msgspec.convert(rows, list[Message])
    return [
        Message(message.data, message.severity, Position(message.pos.line + lines_cut, message.pos.column))
        for message in found
    ]


def minif2f() -> Iterator[Record]:
    """1464 attempts at MiniF2F, judged for the statements as published, not as the attempts repeat them."""
    published = {}
    for row in lines("minif2f/deepseek_v1.5_minif2f_valid_test.jsonl"):
        published[row["name"]] = _statement(row["name"], row["formal_statement"], row["header"])
    for row in lines("lean_traces/minif2f_rounds_0_5.jsonl"):
        finished = row["verify_time"] is not None
        rows = [*row["errors"], *row["warnings"], *row["infos"]] if finished else []
        messages = messages_of(rows, 2) if finished else None
        yield Record(row["name"], row["code"], published[row["name"]], messages, len(row["sorries"] or []))


def kimina() -> Iterator[Record]:
    """60 full proofs with the answers of a Kimina Lean Server; the statements stand in the proofs alone."""
    for path in sorted((DATA / "kimina_match" / "output").iterdir()):
        (result,) = json.loads(path.read_text(encoding="utf-8"))["results"]
        source = DATA / "kimina_match" / "input" / f"goedel-{result['custom_id']}.lean"
        code = source.read_text(encoding="utf-8")
        head, _, rest = code.partition(f"theorem {result['custom_id']}")
        text = f"theorem {result['custom_id']}{rest[: rest.index(':= by')]}:= by"
        statement = _statement(result["custom_id"], text, head.partition("/-")[0])
        response = result["response"] or {}
        messages = None if result["error"] else messages_of(response.get("messages", []), 3)
        yield Record(result["custom_id"], code, statement, messages, len(response.get("sorries", [])))


def leanworkbook() -> Iterator[Record]:
    """434 formalisations that end in `sorry`, judged for the statements that they were meant to restate."""
    text = (DATA / "lean_traces" / "leanworkbook_statement_typecheck_434.json").read_text(encoding="utf-8")
    for row in json.loads(text):
        result = row["compilation_result"]
        messages = messages_of([*result["errors"], *result["warnings"], *result["infos"]], 2)
        statement = _statement(row["name"], row["theorem"], row["code"].partition("theorem ")[0])
        yield Record(row["name"], row["code"], statement, messages, len(result.get("sorries", [])))


def _statement(name: str, text: str, header: str) -> Statement:
    return Statement(name=name, formal_statement=text, header=header)


def lines(path: str) -> Iterator[dict[str, Any]]:
    for line in (DATA / path).read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


async def judged(records: Iterator[Record]) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Count (recorded verdict, our verdict); describe each difference."""
    table: Counter[tuple[str, str]] = Counter()
    different: list[str] = []
    for record in records:
        backend = ReplayLean(record)
        verdict = await Judge(backend, "", frozenset(AXIOMS), 2400).judge(record.code, record.statement)
        table[record.recorded, verdict.kind] += 1
        if record.recorded != verdict.kind:
            different.append(f"{record.name}: recorded {record.recorded}, ours {verdict.kind}: {verdict.reason}")
    return table, different


async def test_recorded_attempts_at_minif2f_get_their_recorded_verdicts() -> None:
    """All 1464: no proof that Lean accepted is refused, none that it refused is accepted."""
    table, different = await judged(minif2f())
    print(*different, sep="\n")
    assert table == {("proved", "proved"): 593, ("failed", "failed"): 832, ("timeout", "timeout"): 39}


async def test_recorded_answers_of_a_kimina_server_give_the_recorded_verdicts() -> None:
    """All 60, the four that it gave up on included."""
    table, different = await judged(kimina())
    print(*different, sep="\n")
    assert table == {("proved", "proved"): 56, ("timeout", "timeout"): 4}


async def test_recorded_formalisations_get_their_recorded_verdicts() -> None:
    """434 statements ending in `sorry`: none is proved. Nine differ from the statement whose name they carry."""
    table, different = await judged(leanworkbook())
    print(*different, sep="\n")
    assert table == {("failed", "failed"): 90, ("sorry", "sorry"): 335, ("sorry", "statement_changed"): 9}
    assert all("the statement was changed: expected" in line for line in different)
