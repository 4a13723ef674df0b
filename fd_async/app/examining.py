"""Every statement of a source through the configured verifier, with `sorry` for its proof."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
from msgspec import Struct

from fd_async.config.schema import RunConfig
from fd_async.types import Statement, Verdict
from fd_async.verifier.verifier import Verifier, open_verifier


class Fault(Struct, frozen=True, kw_only=True):
    """A statement that no proof can solve, or of which that is not known; a row of the report."""

    name: str
    kind: str
    """`bad_statement`; `timeout`, `out_of_memory` or `crash` where Lean did not get through it; or `infrastructure`
    where the verifier did not answer."""
    reason: str
    """One line."""
    output: str
    """All that Lean said."""
    formal_statement: str
    header: str
    toolchain: str


def examine_statements(
    config: RunConfig, statements: Sequence[Statement], on_done: Callable[[int, int], None] = lambda done, faults: None
) -> list[Fault]:
    """Ask the verifier about every statement; returns the faults in the order of the statements.

    Args:
        config: `verifier` and `rollout.tool_output_chars` are used.
        statements: any number.
        on_done: hears how many are done, and how many of them have a fault.

    Raises:
        PreflightError: the verifier does not start.
    """
    return anyio.run(_examine, config, statements, on_done)


async def _examine(
    config: RunConfig, statements: Sequence[Statement], on_done: Callable[[int, int], None]
) -> list[Fault]:
    async with open_verifier(config.verifier, output_chars=config.rollout.tool_output_chars) as verifier:
        return await examine_with(verifier, statements, 2 * config.verifier.workers, on_done)


async def examine_with(
    verifier: Verifier,
    statements: Sequence[Statement],
    at_once: int,
    on_done: Callable[[int, int], None] = lambda done, faults: None,
) -> list[Fault]:
    """Do the same with an open verifier, `at_once` statements at a time."""
    faults: dict[int, Fault] = {}
    waiting = iter(enumerate(statements))
    done = 0

    async def work() -> None:
        nonlocal done
        for index, statement in waiting:
            verdict = await verifier.examine(statement, caller=f"data-{index}")
            if verdict.kind not in ("sorry", "proved"):
                faults[index] = _fault(statement, verdict)
            done += 1
            on_done(done, len(faults))

    async with anyio.create_task_group() as tasks:
        for _ in range(at_once):
            tasks.start_soon(work)
    return [faults[index] for index in sorted(faults)]


def _fault(statement: Statement, verdict: Verdict) -> Fault:
    return Fault(
        name=statement.name,
        kind=verdict.kind,
        reason=verdict.reason,
        output=verdict.output,
        formal_statement=statement.formal_statement,
        header=statement.header,
        toolchain=verdict.toolchain,
    )
