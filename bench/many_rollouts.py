"""10,000 rollouts in flight in one process: how late the event loop is, what one costs in memory and in CPU.

Stand-ins for engine, verifier, search, provider and learner, which only take time; everything else is the project's:
attempt loops, admission, rollout runner, toolbox, renderer of the tiny model, buffer, ledger (SQLite on disk, synced),
board, controller, status file, trace. An attempt has three turns: it writes a file, has it checked and gives up.
Attempts come and go at the same rate whether 100 or 10,000 are in flight (they last in proportion), so that what a run
costs per second, whatever is in flight, weighs the same on both sides of `cost_ratio`.

Each size runs in a process of its own: it fills until attempts have come and gone about once, then it is measured.

    lag_p99_ms      how late a sleeper of 20 ms wakes, over the whole time, filling included
    kb_per_rollout  growth of resident memory from before the first attempt until all are in flight, less the tokens
                    themselves (8 bytes for an id in a list, 32 for a log-prob, 8 for a flag of the mask); what a run
                    of 100 takes (code, threads, caches) is taken off, and the rest shared among the attempts that are
                    more: those in flight and those that wait, finished, for their batch. `kb_traced`: likewise, what
                    tracemalloc sees of Python's objects, shared among all; in a process of its own since it is slow
    cpu_ms_per_turn CPU time of the process, all threads, over the turns that ended while measured

On a machine that others use too the lag is theirs: `--realtime` asks the system to schedule this process first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import psutil

from bench.common import emit, parser
from bench.many_standins import TURNS, Engine, Judge, Learner, Pace, Search, Tutor
from fd_async.config.schema import RunConfig
from fd_async.data.ledger import open_ledger
from fd_async.data.statements import StatementOrder, read_statements
from fd_async.pipeline.controller import Controller
from fd_async.pipeline.observing import open_observers
from fd_async.pipeline.state import Parts, RunState
from fd_async.rendering import Renderer
from fd_async.rollouts import RolloutRunner
from fd_async.telemetry.garbage import calm_collector
from fd_async.telemetry.lag import LoopLag
from fd_async.telemetry.progress import QuietProgress
from fd_async.telemetry.sinks import MetricsFile
from fd_async.verifier.tools.schemas import TOOL_SCHEMAS

ID_BYTES, LOGPROB_BYTES, MASK_BYTES = 8, 32, 8
"""In a Python list, with the floats; the tiny model's ids are small numbers, which Python has once for all lists."""
STALENESS = 19


def configuration(in_flight: int) -> RunConfig:
    """Return a run whose slots hold a little more than what is in flight: some wait for feedback or the learner."""
    batch = max(1, round(1.25 * in_flight / (STALENESS + 1)))
    tables = {
        "run": {"max_steps": 1_000_000, "stall_warn_s": 600.0, "stall_abort_s": 1200.0},
        "model": {"path": "examples/tiny/model", "tool_format": "qwen3", "thinking": False},
        "data": {"train": "examples/tiny/data/train.jsonl"},
        "rollout": {"concurrency": in_flight, "timeout_s": 3600.0},
        "verifier": {"backend": "minilean"},
        "feedback": {"type": "openai", "model": "none"},
        "learner": {"prompts_per_step": batch},
        "admission": {"max_staleness": STALENESS},
        "checkpoint": {"every_steps": 0, "min_free_gib": 0.0},
        "eval": {"every_steps": 0, "at_start": False, "at_end": False},
    }
    return msgspec.convert(tables, RunConfig)


class Meter:
    """What one process measured."""

    def __init__(self, engine: Engine, tutor: Tutor, state: RunState) -> None:
        self._engine, self._tutor, self._state = engine, tutor, state
        self._lag = LoopLag(interval_s=0.02)

    async def run(self, in_flight: int, fill_s: float, measure_s: float, memory: Callable[[], float]) -> dict[str, Any]:
        """Measure while the controller runs beside."""
        empty = memory()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._lag.run)
            await anyio.sleep(fill_s)
            cpu, turns, started = time.process_time(), self._engine.turns, time.monotonic()
            filling = {"filling_lag_p99_ms": self._lag.p99_ms(), "filling_lag_max_ms": self._lag.max_ms()}
            counts, held = list[int](), list[int]()
            full = 0.0
            while time.monotonic() - started < measure_s:
                await anyio.sleep(measure_s / 8)
                counts.append(self._in_flight())
                held.append(self._state.buffer.num_outstanding)
                full = max(full, memory() - self._token_bytes())
            tasks.cancel_scope.cancel()
        turns = self._engine.turns - turns
        cpu_s = time.process_time() - cpu
        return {
            "in_flight": sum(counts) / len(counts),
            "held": sum(held) / len(held),
            "lag_p99_ms": self._lag.p99_ms(),
            "lag_max_ms": self._lag.max_ms(),
            **filling,
            "kb": (full - empty) / 1000,
            "cpu_ms_per_turn": 1000 * cpu_s / turns,
            "cpu_ms_per_rollout": 1000 * cpu_s / turns * TURNS,
            "turns_per_s": turns / (time.monotonic() - started),
            "busy": cpu_s / (time.monotonic() - started),
        }

    def _token_bytes(self) -> int:
        """Return what the tokens themselves take: in the request of who samples, in the record of who has ended."""
        ended = self._state.board.counts()["feedback"] + self._state.buffer.num_finished
        tutor = self._tutor
        record = tutor.prompt * ID_BYTES + tutor.completion * (ID_BYTES + LOGPROB_BYTES + MASK_BYTES)
        return self._engine.tokens_held * ID_BYTES + ended * record

    def _in_flight(self) -> int:
        counts = self._state.board.counts()
        return sum(counts[stage] for stage in ("generating", "tools", "audit", "feedback"))


async def measure(in_flight: int, rate: float, fill: float, measure_s: float, traced: bool) -> dict[str, Any]:
    """Run one size.

    Args:
        in_flight: attempts.
        rate: attempts that come and go each second.
        fill: how many times attempts come and go before anything is measured.
        measure_s: seconds.
        traced: count Python's memory.
    """
    config, pace = configuration(in_flight), Pace(in_flight, rate)
    renderer = Renderer.load(config.model.path, tools=TOOL_SCHEMAS, tool_format="qwen3", thinking=False)
    train = read_statements(Path(config.data.train))
    with tempfile.TemporaryDirectory(prefix="fd-bench-") as folder:
        run_dir = Path(folder)
        for name in ("logs", "checkpoints"):
            (run_dir / name).mkdir()
        engine = Engine(renderer, pace)
        metrics = MetricsFile(run_dir / "metrics.jsonl")
        await metrics.open()
        judge, tutor = Judge(pace), Tutor(pace)
        async with open_ledger(run_dir / "ledger.db") as ledger, open_observers(config, run_dir) as observers:
            runner = RolloutRunner(
                engine=engine,  # type: ignore[arg-type]
                renderer=renderer,
                verifier=judge,  # type: ignore[arg-type]
                search=Search(),  # type: ignore[arg-type]
                config=config.rollout,
            )
            parts = Parts(
                config=config,
                run_dir=run_dir,
                engine=engine,  # type: ignore[arg-type]
                learner=Learner(0.5 * config.learner.prompts_per_step / rate),  # type: ignore[arg-type]
                renderer=renderer,
                verifier=judge,  # type: ignore[arg-type]
                provider=tutor,  # type: ignore[arg-type]
                ledger=ledger,
                runner=runner,
                order=StatementOrder(train, 0),
                suites={},
                progress=QuietProgress(),
                observers=observers,
            )
            state = RunState(config, 0, observers)
            controller = Controller(parts, state, metrics=metrics, config_hash="x", probe_ids=[1, 2])
            if traced:
                tracemalloc.start()
            memory = (lambda: float(tracemalloc.get_traced_memory()[0])) if traced else _resident
            with calm_collector():
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(controller.run)
                    result = await Meter(engine, tutor, state).run(in_flight, fill * pace.attempt_s, measure_s, memory)
                    stopping = time.monotonic()
                    tasks.cancel_scope.cancel()
            result["stop_s"] = time.monotonic() - stopping
        await metrics.aclose()
    return result


def _resident() -> float:
    return float(psutil.Process().memory_info().rss)


def child(in_flight: int, rate: float, fill: float, measure_s: float, traced: bool) -> dict[str, Any]:
    """Measure one size in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "bench.many_rollouts",
        "--one",
        json.dumps([in_flight, rate, fill, measure_s, traced]),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure a few and many, side by side, and print the figures."""
    options = parser(__doc__)
    options.add_argument("--realtime", action="store_true", help="schedule the processes before all others (root)")
    options.add_argument("--one", help="internal: JSON list of the arguments of `measure`")
    chosen = options.parse_args()
    if chosen.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    if chosen.one:
        sys.setswitchinterval(0.0005)  # as in a run
        print(json.dumps(anyio.run(measure, *json.loads(chosen.one), backend_options={"use_uvloop": True})))
        return
    many, rate = (1_500, 100.0) if chosen.quick else (10_000, 100.0)
    few = child(100, rate, 2.0, 5.0 if chosen.quick else 20.0, False)
    result = child(many, rate, 0.7 if chosen.quick else 1.2, 5.0 if chosen.quick else 60.0, False)
    traced = child(many, rate, 0.4, 1.0, True)
    emit(
        {
            "rollouts": many,
            "in_flight": result["in_flight"],
            "lag_p99_ms": result["lag_p99_ms"],
            "lag_max_ms": result["lag_max_ms"],
            "kb_per_rollout": marginal(few, result),
            "kb_traced": traced["kb"] / traced["held"],
            "cost_ratio": result["cpu_ms_per_rollout"] / few["cpu_ms_per_rollout"],
            "cpu_ms_per_turn": result["cpu_ms_per_turn"],
            "cpu_ms_per_rollout": result["cpu_ms_per_rollout"],
            "stop_s": result["stop_s"],
            "realtime": chosen.realtime,
            "at_100": few,
            "at_many": result,
        }
    )


def marginal(few: dict[str, Any], many: dict[str, Any]) -> float:
    """Return the memory of one more attempt, kB."""
    return (many["kb"] - few["kb"]) / (many["held"] - few["held"])


if __name__ == "__main__":
    main()
