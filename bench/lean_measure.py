"""Measurements of the Lean pool on stand-ins: what it costs, how late the loop is, and how long a whole trace takes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio import current_time, fail_after
from msgspec import Struct
from msgspec.structs import replace

from bench.lean_arrivals import BURST, Arrival, CheckOne, Outcome, drive, summary
from bench.lean_kimina import Kimina
from bench.lean_trace import INSTANT, LIMIT_S, SHORT, Check
from fd_async.config.schema import Verifier as VerifierTable
from fd_async.errors import VerifierError
from fd_async.telemetry.lag import LoopLag
from fd_async.types import Verdict
from fd_async.verifier.accounting import Accountant
from fd_async.verifier.backend import CheckTimeout, LeanBackend, LeanRequest
from fd_async.verifier.judge import Judge
from fd_async.verifier.repl.backend import ReplBackend, open_repl_backend
from fd_async.verifier.repl.process import ReplSpec, clean_environment
from fd_async.verifier.sandbox.room import Limits
from fd_async.verifier.source.reconstruct import Rebuilt
from fd_async.verifier.verifier import Verifier
from tests.fakes import repl_trace

AXIOMS = frozenset({"propext", "Classical.choice", "Quot.sound"})
VERDICTS = {"proved": "accepted", "failed": "rejected", "sorry": "rejected", "timeout": "timeout"}
WAITERS = 1000
Driver = Callable[[ReplBackend], CheckOne]


class Setup(Struct, frozen=True):
    """What every measurement shares."""

    scratch: Path
    scale: float
    import_s: float
    workers: int
    spares: int
    first_budget_s: float
    think_s: float

    @property
    def repl_argv(self) -> tuple[str, ...]:
        scale, import_s = str(self.scale), str(self.import_s)
        program = (sys.executable, "-S", "-E", "-I", repl_trace.__file__, str(self.scratch / "index"))
        return (*program, "--scale", scale, "--import-s", import_s, "--clock", str(self.clocks))

    @property
    def clocks(self) -> Path:
        return self.scratch / "clocks"


class Watch:
    """Counts the stand-ins that compute and that import at the same time, while it runs."""

    def __init__(self, clocks: Path) -> None:
        self._clocks = clocks
        self.peaks = {"peak_computing": 0, "peak_importing": 0, "peak_processes": 0}

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            now = await anyio.to_thread.run_sync(self._look)
            self.peaks = {name: max(self.peaks[name], count) for name, count in now.items()}
            await anyio.sleep(0.5)

    def _look(self) -> dict[str, int]:
        states: list[float] = []
        for file in list(self._clocks.iterdir()):
            try:
                process = Path(f"/proc/{file.name}/stat").read_text().rpartition(")")[2].split()[0]
                state = repl_trace.CLOCK.unpack(file.read_bytes())[1]
            except (OSError, repl_trace.struct.error):
                file.unlink(missing_ok=True)
                continue
            states.append(repl_trace.IDLE if process in "TZ" else state)
        return {
            "peak_computing": states.count(repl_trace.COMPUTING),
            "peak_importing": states.count(repl_trace.IMPORTING),
            "peak_processes": len(states),
        }


def simulated_cpu_seconds(clocks: Path) -> Callable[..., float | None]:
    """Return what a stand-in would have computed, for the backend, which asks whether a silent worker computes."""

    def read(pid: int, tree: object = None) -> float | None:
        try:
            return repl_trace.CLOCK.unpack((clocks / str(pid)).read_bytes())[0]
        except (OSError, repl_trace.struct.error):
            return None

    return read


@asynccontextmanager
async def open_ours(setup: Setup, header: str, workers: int) -> AsyncIterator[ReplBackend]:
    """Start the real backend on stand-ins and wait until all workers are up, as a run is after its first seconds."""
    spec = ReplSpec(argv=setup.repl_argv, env=clean_environment(), limits=Limits(nice=VerifierTable().nice))
    async with open_repl_backend(
        spec,
        name="repl",
        toolchain="stand-in",
        header=header,
        workers=workers,
        max_uses=500,
        queue_timeout_s=36000.0,
        check_timeout_s=LIMIT_S * setup.scale,
        spares=setup.spares,
        first_budget_s=setup.first_budget_s * setup.scale,
    ) as backend:
        with fail_after(600):
            while backend.statistics()["idle"] < workers + setup.spares:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        yield backend


def plain(checks: Sequence[Check]) -> Driver:
    """Accept where Lean reports neither error nor sorry: the rule of Kimina's client."""

    def driver(backend: ReplBackend) -> CheckOne:
        async def check_one(number: int) -> str:
            check = checks[number]
            try:
                request = LeanRequest(check.header, check.body, caller=check.name, cost_key=check.name)
                answer = await backend.run(request)
            except CheckTimeout:
                return "timeout"
            except VerifierError as error:
                return str(error)
            return "rejected" if answer.errors or answer.num_sorries else "accepted"

        return check_one

    return driver


class NoAccounting(Accountant):
    """Leaves the verdict as it is."""

    async def account(self, verdict: Verdict, backend: LeanBackend, template: LeanRequest, rebuilt: Rebuilt) -> Verdict:
        """Return the verdict."""
        return verdict


def judged(checks: Sequence[Check], *, cache: bool, accounting: bool = False) -> Driver:
    """Climb our ladder: gate, reconstruction, probe; with the cache of verdicts and the accounting where asked."""

    def driver(backend: ReplBackend) -> CheckOne:
        accountant = Accountant() if accounting else NoAccounting()
        judge = Judge(backend, checks[0].header, AXIOMS, 2400, accountant=accountant)
        ask = Verifier(judge).check if cache else judge.judge

        async def check_one(number: int) -> str:
            check = checks[number]
            verdict = await ask(check.code, check.statement, caller=check.name)
            return VERDICTS.get(verdict.kind, f"{verdict.kind}: {verdict.reason}")

        return check_one

    return driver


async def measure_ours(
    setup: Setup, checks: Sequence[Check], driver: Driver, arrival: Arrival
) -> tuple[list[Outcome], dict[str, Any]]:
    """Give every check to our pool; returns the outcomes and what it cost."""
    lag, watch, outcomes, used = LoopLag(0.01), Watch(setup.clocks), list[Outcome](), 0.0
    async with open_ours(setup, checks[0].header, setup.workers) as backend, anyio.create_task_group() as tasks:
        tasks.start_soon(lag.run)
        tasks.start_soon(watch.run)
        cpu = time.process_time()
        outcomes = await drive([check.name for check in checks], driver(backend), arrival, setup.think_s)
        used = time.process_time() - cpu
        tasks.cancel_scope.cancel()
    costs = {"cpu_ms_per_check": 1000 * used / len(checks), "lag_p99_ms": lag.p99_ms(), "lag_max_ms": lag.max_ms()}
    return outcomes, {**costs, **watch.peaks}


async def measure_kimina(
    setup: Setup, kimina: Kimina, checks: Sequence[Check], arrival: Arrival, way: str, repls: int
) -> tuple[list[Outcome], dict[str, Any]]:
    """Give every check to a Kimina Lean Server."""
    watch, outcomes, costs = Watch(setup.clocks), list[Outcome](), dict[str, Any]()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        if way == "inside":
            outcomes, costs = await kimina.run_inside(checks, repls, arrival, setup.think_s)
        else:
            outcomes, costs = await kimina.run_http(checks, repls, arrival, setup.think_s, way)
        tasks.cancel_scope.cancel()
    return outcomes, {**costs, **watch.peaks}


def row(
    system: str, load: str, setup: Setup, checks: Sequence[Check], measured: tuple[list[Outcome], dict[str, Any]]
) -> dict[str, Any]:
    """Describe one measurement; `wrong` verdicts differ from the recorded ones, `failed` checks have none."""
    outcomes, costs = measured
    failed = [o for o in outcomes if o.verdict not in VERDICTS.values()]
    wrong = [o for o in outcomes if o not in failed and o.verdict != checks[o.number].verdict]
    numbers = {o.number for o in outcomes}
    result = {
        "system": system,
        "load": load,
        **summary(outcomes, [check.work_s * setup.scale for check in checks]),
        **costs,
        "lost": len(checks) - len(numbers),
        "num_wrong": len(wrong),
        "num_failed": len(failed),
        "not_as_recorded": [
            f"{checks[o.number].name}: {o.verdict}, recorded {checks[o.number].verdict}" for o in [*failed, *wrong][:10]
        ],
    }
    shown = {key: round(v, 3) if isinstance(v, float) else v for key, v in result.items()}
    print(shown, file=sys.stderr, flush=True)
    return result


async def measure_overhead(setup: Setup, header: str, count: int) -> dict[str, Any]:
    """Time requests that a worker answers at once: alone, and the same bytes through a bare pipe."""
    request = LeanRequest(header, INSTANT)
    bare_s = await anyio.to_thread.run_sync(_bare_pipe_s, setup, count)
    async with open_ours(setup, header, 1) as backend:
        seconds: list[float] = []
        cpu = time.process_time()
        for _ in range(count):
            began = current_time()
            await backend.run(request)
            seconds.append(current_time() - began)
        used = time.process_time() - cpu
    return {
        "overhead_ms_p50": 1000 * (statistics.median(seconds) - bare_s),
        "instant_ms_p50": 1000 * statistics.median(seconds),
        "bare_pipe_ms_p50": 1000 * bare_s,
        "overhead_cpu_ms": 1000 * used / count,
    }


def _bare_pipe_s(setup: Setup, count: int) -> float:
    """Return the median time that a worker needs for the same request with nothing between, seconds."""
    seconds: list[float] = []
    with subprocess.Popen(setup.repl_argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for text in [b'{"cmd":"import Mathlib"}\n\n'] + [b'{"cmd":"%s","env":0}\n\n' % INSTANT.encode()] * count:
            began = time.perf_counter()
            process.stdin.write(text)
            process.stdin.flush()
            while process.stdout.readline().strip():
                pass
            seconds.append(time.perf_counter() - began)
        process.stdin.close()
    return statistics.median(seconds[1:])


async def measure_lag(setup: Setup, header: str, count: int) -> dict[str, Any]:
    """Measure the event loop's lag while more than a thousand callers wait for checks of 50 ms."""
    fast = replace(setup, scale=1.0, import_s=0.0)
    lag, crowded = LoopLag(0.005), anyio.CancelScope()
    left = WAITERS + setup.workers + count

    async def watch() -> None:
        with crowded:
            await lag.run()

    async with open_ours(fast, header, setup.workers) as backend:

        async def one(number: int) -> None:
            nonlocal left
            await backend.run(LeanRequest(header, SHORT, caller=str(number % 250)))
            left -= 1
            if left < WAITERS + setup.workers:
                crowded.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            for number in range(left):
                tasks.start_soon(one, number)
                if number % BURST == BURST - 1:
                    await anyio.lowlevel.checkpoint()
    return {"lag_p50_ms": lag.p50_ms(), "lag_p99_ms": lag.p99_ms(), "lag_max_ms": lag.max_ms()}
