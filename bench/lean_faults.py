"""Many checks by many callers on workers that misbehave: is a verdict lost, swapped or wrong, is anything left?

Everything but the workers is real: gate, judge, accounting, backend and pool. Each check knows from its number alone
which verdict it must get, and its file names the number, which the verdict must repeat. A few per cent break their
worker, in all ways of `tests/fakes/repl_faulty.py`: half of them once, so that they must be judged again, half of
them every time, so that the input is to blame. Some callers are cancelled at random moments, some ask the same at the
same time.

Keys: `lost`, checks without a verdict; `swapped`, verdicts that name another check; `wrong`, verdicts of another kind
than they must have, infrastructure verdicts where nothing but the input was at fault included; `leaked`, processes,
zombies, descriptors and places in the queue that are left at the end. The exit code is 1 unless all of them are 0.
"""

from __future__ import annotations

import logging
import random
import re
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import structlog
from msgspec import Struct

from bench.common import emit, parser
from fd_async.config.schema import Verifier as VerifierTable
from fd_async.types import Statement, Verdict, VerdictKind
from fd_async.verifier.verifier import Verifier, open_verifier
from tests.fakes.repl_faults import AFTERWARDS, ESCAPES, FAULTS, Fault, end, left_behind, open_descriptors, zombies
from tests.fakes.repl_faulty import program

GOAL = "(p q : Prop) (hp : p) : p ∨ q"
SHARES = {"fault": 0.05, "cancelled": 0.02, "twin": 0.01, "other_header": 0.02, "bad_header": 0.0005}
HONEST: dict[str, tuple[VerdictKind, float]] = {
    "": ("proved", 0.3),
    "fake_error_{n}": ("failed", 0.5),
    "fake_axiom_{n}": ("axiom", 0.06),
    "fake_changed_{n}": ("statement_changed", 0.05),
    "fake_hidden_sorry": ("sorry", 0.03),
    "sorry": ("sorry", 0.03),
    "native_decide": ("forbidden", 0.03),
}
"""What a file does, the verdict it must get, its share."""
IN_CLEAR = ("sorry", "native_decide")
"""These stand in the proof itself, the others in a comment."""
FORGED = ("forged_early", "forged_both")
HEAVY = {"huge": 0.1, "many": 0.1, "endless": 0.03, "swell": 0.1, "grow": 0.2, "close": 0.2}
"""Less often than the others: they move megabytes, or wait a second for an end that does not come."""
WAITS = {"hang": 0.15, "spin": 0.1, "half": 0.1, "unended": 0.1, "stubborn": 0.1}
"""Less often than the others: each costs whole deadlines of a worker."""
_USED: list[Fault] = [fault for fault in FAULTS if fault.mode not in ESCAPES]
_WEIGHTS = [{**HEAVY, **WAITS}.get(fault.mode, 1.0) for fault in _USED]
BAD_HEADER = "import Nowhere"
OTHER_HEADER = "open Nat"


class Plan(Struct, frozen=True):
    """One check, and what must come of it."""

    number: int
    code: str
    statement: Statement
    expected: VerdictKind
    names_itself: bool
    mode: str = ""
    cancel_after_s: float = 0.0
    twins: int = 1
    """Callers that ask it at the same time."""


class Tally:
    """What came of the checks so far."""

    def __init__(self) -> None:
        self.done = self.lost = self.swapped = self.wrong = self.cancelled = 0
        self.verdicts: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.examples: list[str] = []

    def record(self, plan: Plan, verdict: Verdict) -> None:
        """Compare one verdict with its plan."""
        self.done += 1
        self.verdicts[verdict.kind] += 1
        if plan.mode:
            self.modes[plan.mode] += 1
        if verdict.is_infrastructure:
            self.reasons[re.sub(r"\d+(\.\d+)?", "#", verdict.reason)[:120]] += 1
        named = set(re.findall(r"n(\d+)e", verdict.reason + verdict.output))
        if named - {str(plan.number)}:
            self.swapped += 1
            self._note("swapped", plan, verdict)
        elif verdict.kind != plan.expected or (plan.names_itself and not named):
            self.wrong += 1
            self._note("wrong", plan, verdict)

    def lose(self, plan: Plan, cause: str) -> None:
        """Count a check that ended without a verdict though nobody cancelled it."""
        self.lost += 1
        self._note(f"lost ({cause})", plan, None)

    def _note(self, what: str, plan: Plan, verdict: Verdict | None) -> None:
        got = f", got {verdict.kind}: {verdict.reason}" if verdict else ""
        line = f"{what}: check {plan.number} ({plan.mode or 'no fault'}), expected {plan.expected}{got}"
        if len(self.examples) < 20:
            self.examples.append(line)
            print(line, file=sys.stderr, flush=True)


def plan_of(number: int, seed: int, scratch: str) -> Plan:
    """Make check NUMBER; the same for the same number, seed and folder."""
    draw = random.Random(f"{seed}-{number}")
    word = f"n{number}e"
    proof, (expected, _) = draw.choices(list(HONEST.items()), [share for _, share in HONEST.values()])[0]
    comment, header, mode = f"fake_echo_{word}", "", ""
    if draw.random() < SHARES["bad_header"]:
        header, mode = BAD_HEADER, "header always"
        expected = "forbidden" if expected == "forbidden" else "infrastructure"
    elif draw.random() < SHARES["other_header"]:
        header = OTHER_HEADER
    elif draw.random() < SHARES["fault"]:
        directive, mode, expected = _fault(draw, proof, expected, f"{scratch}/{number}")
        comment += directive
    tactic = proof if proof in IN_CLEAR else "exact Or.inl hp"
    suffix = "" if proof in IN_CLEAR else proof.format(n=word)
    return Plan(
        number=number,
        code=f"theorem foo {GOAL} := by\n  {tactic} -- {comment} {suffix}\n",
        statement=Statement(name="foo", formal_statement=f"theorem foo {GOAL} := by sorry", header=header),
        expected=expected,
        names_itself=expected in ("proved", "failed", "axiom", "statement_changed"),
        mode=mode,
        cancel_after_s=draw.uniform(1e-4, 0.1) if draw.random() < SHARES["cancelled"] else 0.0,
        twins=2 if draw.random() < SHARES["twin"] else 1,
    )


def _fault(draw: random.Random, proof: str, honest: VerdictKind, path: str) -> tuple[str, str, VerdictKind]:
    """Draw a fault for a check; return the words that cause it, its name, and the verdict that it must lead to."""
    fault = draw.choices(_USED, _WEIGHTS)[0]
    # What computes until its deadline is not tried again, and a forger is never a broken worker.
    once = fault.mode not in ("spin", *FORGED) and draw.random() < 0.5
    in_probe = fault.mode in AFTERWARDS or (fault.mode not in FORGED and draw.random() < 0.2)
    words = (" fake_in_probe" if in_probe else "") + (f" fake_once_{path}_" if once else "") + f" fake_{fault.mode}"
    name = f"{fault.mode}{' in probe' if in_probe else ''} {'once' if once else 'always'}"
    is_reached = honest != "forbidden" and not (in_probe and (honest == "failed" or proof == "sorry"))
    is_harmless = once or fault.verdict == "proved" or fault.mode in AFTERWARDS
    if proof == "sorry" and fault.mode in FORGED:
        is_harmless = True  # the gate saw the `sorry`, so nothing is probed
    return words, name, fault.verdict if is_reached and not is_harmless else honest


async def ask(verifier: Verifier, plan: Plan, tally: Tally, *, cancel_after_s: float) -> None:
    """Be one caller of one check."""
    with anyio.CancelScope() as scope:
        if cancel_after_s:
            scope.deadline = anyio.current_time() + cancel_after_s
        try:
            verdict = await verifier.check(plan.code, plan.statement, caller=f"rollout-{plan.number % 97}")
        except Exception as error:  # whatever it is: a check must never raise
            tally.lose(plan, f"{type(error).__name__}: {error}")
            return
        tally.record(plan, verdict)
        return
    tally.cancelled += 1


async def serve(verifier: Verifier, plans: Iterator[Plan], tally: Tally) -> None:
    """Be a rollout: ask one check after another."""
    for plan in plans:
        if plan.twins == 1:
            await ask(verifier, plan, tally, cancel_after_s=plan.cancel_after_s)
            continue
        async with anyio.create_task_group() as tasks:
            for twin in range(plan.twins):
                cancel_after_s = plan.cancel_after_s if twin == 0 else 0.0
                tasks.start_soon(lambda s=cancel_after_s, p=plan: ask(verifier, p, tally, cancel_after_s=s))


async def report(tally: Tally, verifier: Verifier, began: float) -> None:
    """Print a line every ten seconds."""
    while True:
        await anyio.sleep(10)
        figures = verifier.statistics()
        bad = f"{tally.lost} lost, {tally.swapped} swapped, {tally.wrong} wrong"
        print(
            f"{time.perf_counter() - began:.0f} s: {tally.done} verdicts, {bad}, {tally.cancelled} cancelled, "
            f"{figures['waiting']:.0f} waiting, {figures['restarts']:.0f} restarts",
            file=sys.stderr,
            flush=True,
        )


async def run(*, checks: int, workers: int, callers: int, seed: int) -> dict[str, Any]:
    """Run all checks; return the figures."""
    token = f"token-{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory() as scratch:
        before = await _warm_up(token)
        tally, began = Tally(), time.perf_counter()
        starts = Path(scratch) / "starts"
        config = _config(program(token, f"starts={starts}", "every=40"), workers)
        asked = 0

        def plans() -> Iterator[Plan]:
            nonlocal asked
            for number in range(checks):
                plan = plan_of(number, seed, scratch)
                asked += plan.twins
                yield plan

        async with open_verifier(config, output_chars=400) as verifier:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(report, tally, verifier, began)
                source = plans()
                async with anyio.create_task_group() as rollouts:
                    for _ in range(callers):
                        rollouts.start_soon(serve, verifier, source, tally)
                tasks.cancel_scope.cancel()
            figures = verifier.statistics()
        wall_s = time.perf_counter() - began
        num_starts = starts.stat().st_size
        left = left_behind(token)
        leaks = {
            "processes": len(left),
            "zombies": len(zombies()),
            "descriptors": open_descriptors() - before,
            "places": int(figures["waiting"] + figures["busy"]),
        }
        end(left)
    lost = asked - tally.done - tally.cancelled
    return {
        "checks": asked,
        "lost": lost,
        "swapped": tally.swapped,
        "wrong": tally.wrong,
        "leaked": sum(max(0, count) for count in leaks.values()),
        "cancelled": tally.cancelled,
        "leaks": leaks,
        "examples": tally.examples,
        "verdicts": dict(tally.verdicts.most_common()),
        "faults": sum(tally.modes.values()),
        "modes": dict(sorted(tally.modes.items())),
        "infrastructure": dict(tally.reasons.most_common()),
        "starts": num_starts,
        "wall_s": round(wall_s, 1),
        "checks_per_s": round(asked / wall_s, 1),
        "statistics": dict(figures),
        "sizes": {"checks": checks, "workers": workers, "callers": callers, "seed": seed, **SHARES},
    }


async def _warm_up(token: str) -> int:
    """Open a verifier once, so that what Python and the loop keep is open; return the number of descriptors."""
    async with open_verifier(_config(program(token), 1), output_chars=400) as verifier:
        plan = plan_of(0, 0, "")
        await verifier.check(plan.code, plan.statement)
    return open_descriptors()


def _config(command: list[str], workers: int) -> VerifierTable:
    return VerifierTable(
        backend="repl",
        command=command,
        workers=workers,
        spares=2,
        check_timeout_s=3.0,
        first_budget_s=0.5,
        queue_timeout_s=120.0,
        import_timeout_s=30.0,
        memory_limit_gib=1.0,
        max_uses=300,
        starts_at_once=2,
        sandbox="unsandboxed",
        audit="off",
    )


def main() -> None:
    """Run the benchmark."""
    options_of = parser(__doc__)
    options_of.add_argument("--checks", type=int, default=0, help="default 100000, with --quick 8000")
    options_of.add_argument("--workers", type=int, default=8)
    options_of.add_argument("--callers", type=int, default=64)
    options_of.add_argument("--seed", type=int, default=0)
    options = options_of.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    checks = options.checks or (8000 if options.quick else 100_000)
    result = anyio.run(lambda: run(checks=checks, workers=options.workers, callers=options.callers, seed=options.seed))
    emit(result)
    sys.exit(1 if any(result[key] for key in ("lost", "swapped", "wrong", "leaked")) else 0)


if __name__ == "__main__":
    main()
