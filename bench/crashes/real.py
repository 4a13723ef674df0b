"""The same with everything real: `python -m fd_async.cli run` on configs/tiny_fd.toml, killed and resumed.

vLLM samples, the small checker judges, DeepSpeed learns; feedback is bought over HTTP from a server that outlives the
runs. What is sampled differs from run to run, so a run is compared with what must hold of any: every ordinal once, no
answer bought that the ledger had, closed accounts, nothing of a dead process left, and attempts that end with every
token that was on record of them when a process died.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil

from bench.crashes.calls import Calls, Purchases, call_figures, count_calls
from bench.crashes.history import Continued, begun_attempts, check_continued, closes, continued_figures
from fd_async.cli.shared import STARTED
from fd_async.data.ledger import AttemptRecord, read_attempts
from fd_async.data.ledger.files import reading
from fd_async.telemetry.sinks import read_rows
from fd_async.types import PartialRollout

_ROOT = Path(__file__).parents[2]
_STEPS, _BATCH = 6, 8
_LIMIT_S = 900.0
_GONE_S = 30.0
_ADVICE = "Read the goal once more, and then try the tactic that its shape asks for."
Instant = Literal["attempts", "start", "loop"]
"""Drawn from the whole life, most of which is the start of vLLM; from its loop; or, after a drawn number of steps, the
first at which the ledger has tokens of attempts under way."""
_INSTANTS: tuple[Instant, ...] = ("attempts", "start", "loop")
_SETS = {
    "run.max_steps": _STEPS,
    "learner.prompts_per_step": _BATCH,
    "admission.max_staleness": 1,
    "checkpoint.every_steps": 2,
    "eval.every_steps": 0,
    "eval.at_start": "false",
    "eval.at_end": "false",
    "rollout.record_every_s": 0.2,
    "telemetry.console": '"lines"',
    "feedback.type": '"openai"',
    "feedback.model": '"stand-in"',
    "feedback.api_key_env": '""',
}


class _End(msgspec.Struct, frozen=True):
    """How a life ended."""

    code: int
    seconds: float
    loop_s: float
    """Part of it after everything had started."""
    killed_at: float | None
    """`time.monotonic()` right before it was killed."""


class _Kill(msgspec.Struct, frozen=True):
    """The instant of a kill."""

    origin: Instant
    after: float
    """Seconds since the start of the process, or since its loop began; steps of the run for `attempts`."""

    def __str__(self) -> str:
        if self.origin == "attempts":
            return f"with attempts on record after {self.after:.0f} steps"
        return f"{self.after:.1f} s after the {self.origin}"


class _Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run that was killed and resumed until it was done."""

    skipped: int
    repeated: int
    calls: Calls
    continued: Continued
    broken: list[str]
    killed: list[_Kill]


def kill_real_runs(runs: int, seed: int) -> dict[str, Any]:
    """Run once undisturbed for the length, then kill and resume `runs` times; return the figures."""
    results = list[_Result]()
    with tempfile.TemporaryDirectory(prefix="fd-crashes-") as name, _Seller() as seller:
        folder = Path(name)
        whole = _live(folder, "undisturbed", seller, resume=False, kill=None)
        if whole.code:
            raise RuntimeError(f"an undisturbed run ended with {whole.code}: {_console(folder, 'undisturbed')}")
        for number in range(runs):
            rng = random.Random(f"{seed} {number}")
            results.append(_kill_run(folder, number, seller, rng, whole))
    return {
        "runs": runs,
        "skipped": sum(result.skipped for result in results),
        "repeated": sum(result.repeated for result in results),
        "broken": [problem for result in results for problem in result.broken],
        "kills": sum(len(result.killed) for result in results),
        "unkilled": sum(not result.killed for result in results),
        **call_figures(result.calls for result in results),
        **continued_figures(result.continued for result in results),
        "killed": [str(kill) for result in results for kill in result.killed],
        "length_s": round(whole.seconds, 1),
    }


def _kill_run(folder: Path, number: int, seller: _Seller, rng: random.Random, whole: _End) -> _Result:
    """Kill one run once or twice, let it end, and look at what is left."""
    name = f"run-{number}"
    run_dir = folder / name
    deaths, kills = rng.choice((1, 1, 2)), list[_Kill]()
    recorded, killed_at, begun = list[frozenset[str]](), list[float | None](), list[list[PartialRollout]]()
    while True:
        kill = _draw_kill(_INSTANTS[(number + len(kills)) % 3], rng, whole) if len(kills) < deaths else None
        seller.life = len(recorded)
        resume = any((run_dir / file).exists() for file in STARTED)
        end = _live(folder, name, seller, resume=resume, kill=kill)
        recorded.append(_answers(run_dir))
        killed_at.append(end.killed_at)
        if end.killed_at is None or kill is None:
            break
        kills.append(kill)
        begun.append(begun_attempts(run_dir))
    problems = [f"left behind: {left}" for left in _leftovers(run_dir, seller.buyers)]
    if end.code:
        problems.append(f"it ended with {end.code}: {_console(folder, name)}")
    records = [r for r in read_attempts(run_dir / "ledger.db", 10**6) if r.rollout.purpose == "train"]
    trained = Counter(record.rollout.ordinal for record in records if record.outcome == "trained")
    ended = {record.rollout.ordinal for record in records if record.outcome != "queued"}
    continued = check_continued(run_dir, begun)
    problems += _problems(records, read_rows(run_dir / "metrics.jsonl"), trained) + continued.other
    return _Result(
        skipped=len(set(range(max(ended, default=-1) + 1)) - ended),
        repeated=sum(count > 1 for count in trained.values()),
        calls=count_calls(seller.purchases(name), recorded, killed_at),
        continued=continued,
        broken=[f"{name}: {problem}" for problem in problems],
        killed=kills,
    )


def _draw_kill(origin: Instant, rng: random.Random, whole: _End) -> _Kill:
    if origin == "attempts":  # in the second half of a run this short, the last attempts may be done
        return _Kill(origin, rng.randrange(_STEPS // 2))
    return _Kill(origin, rng.uniform(0, whole.seconds if origin == "start" else whole.loop_s))


def _problems(records: list[AttemptRecord], rows: list[dict[str, Any]], trained: Counter[int]) -> list[str]:
    problems = []
    if [row["step"] for row in rows] != list(range(1, _STEPS + 1)):
        problems.append(f"metrics.jsonl has the steps {[row['step'] for row in rows]}")
    if len(trained) != _STEPS * _BATCH:
        problems.append(f"{len(trained)} prompts were trained, not {_STEPS * _BATCH}")
    problems += [f"the accounts of step {row['step']} do not close" for row in rows if not closes(row)]
    # Weights that moved on between sampling and training make hundredths; an attempt that went on from the wrong tokens
    # was sampled with other probabilities altogether.
    worst = max((abs(row["policy/mismatch_kl"]) for row in rows), default=0.0)
    if not worst < 0.1:
        problems.append(f"engine and learner differ by {worst:.2g} nats per token")
    for record in records:
        covered = sum(span.end - span.start for span in record.rollout.spans)
        if covered != record.rollout.num_sampled_tokens:
            problems.append(f"{record.rollout.id}: its spans are not what it sampled")
    return problems


def _live(folder: Path, name: str, seller: _Seller, *, resume: bool, kill: _Kill | None) -> _End:
    """Start or resume a run with the command of users, and wait for its end or bring it about.

    Args:
        folder: of all runs.
        name: of the run.
        seller: of its feedback.
        resume: whether there is something to resume.
        kill: its instant; None lets it end.
    """
    out = folder / f"{name}.out"
    with out.open("a") as log:
        offset = log.tell()
        process = subprocess.Popen(
            _command(folder, name, seller, resume=resume),
            cwd=_ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"OPENAI_API_KEY": "none", "PYTHONPATH": str(_ROOT)},
        )
    seller.buyers.append(process.pid)
    started = time.monotonic()
    loop_began = killed_at = None
    while process.poll() is None:
        now = time.monotonic()
        if loop_began is None and f"running {name}: step" in out.read_text()[offset:]:
            loop_began = now
        if now - started > _LIMIT_S or (kill and _is_due(kill, folder / name, now, started, loop_began)):
            killed_at = time.monotonic()
            _kill_controller(process, name)
        time.sleep(0.02)
    ended = time.monotonic()
    return _End(
        code=process.returncode,
        seconds=ended - started,
        loop_s=ended - loop_began if loop_began else 0.0,
        killed_at=killed_at if process.returncode == -signal.SIGKILL else None,
    )


def _is_due(kill: _Kill, run_dir: Path, now: float, started: float, loop_began: float | None) -> bool:
    if kill.origin == "attempts":
        num_steps = len(read_rows(run_dir / "metrics.jsonl")) if loop_began is not None else -1
        return num_steps >= kill.after and _has_begun_attempts(run_dir)
    since = started if kill.origin == "start" else loop_began
    return since is not None and now - since >= kill.after


def _has_begun_attempts(run_dir: Path) -> bool:
    """Say whether a process that runs has tokens of attempts under way on record; takes no lock that it waits for."""
    with reading(run_dir / "ledger.db") as ledger:
        return bool(ledger.execute("SELECT EXISTS(SELECT 1 FROM partials WHERE sampled_tokens > 0)").fetchone()[0])


def _kill_controller(process: subprocess.Popen[bytes], name: str) -> None:
    """Kill the controller alone: whatever it started must notice by itself."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=_GONE_S)
    if alive:
        raise RuntimeError(f"{name}: processes outlive the run that was killed: {alive}")


def _command(folder: Path, name: str, seller: _Seller, *, resume: bool) -> list[str]:
    sets = _SETS | {"run.dir": f'"{folder}"', "feedback.base_url": f'"{seller.address}/{name}/v1"'}
    command = [sys.executable, "-m", "fd_async.cli", "run", "--config", "configs/tiny_fd.toml", "--run", name]
    command += ["--resume"] if resume else []
    for key, value in sets.items():
        command += ["--set", f"{key}={value}"]
    return command


def _leftovers(run_dir: Path, pids: Sequence[int]) -> list[str]:
    """Return what the processes of a run left in memory and among temporary files, and what is half written."""
    places = (Path("/dev/shm"), Path(tempfile.gettempdir()))
    left = [path for pid in pids for place in places for path in place.glob(f"fd_async-*-{pid}-*")]
    return [str(path) for path in (*left, *run_dir.rglob("*.tmp"))]


def _console(folder: Path, name: str) -> str:
    return (folder / f"{name}.out").read_text()[-400:]


def _answers(run_dir: Path) -> frozenset[str]:
    """Return the names of the answers that the ledger has; the seller puts one into each."""
    if not (run_dir / "ledger.db").exists():
        return frozenset()
    records = read_attempts(run_dir / "ledger.db", 10**6)
    texts = [record.feedback.text for record in records if record.feedback]
    return frozenset(match[1] for text in texts if (match := re.search(r"\(answer (\w+)\)", text)))


class _Seller:
    """Speaks OpenAI's chat completions; the path names the run, and every sale is kept."""

    def __init__(self) -> None:
        self.life = 0
        self.buyers: list[int] = []
        """Processes that were started to run; dead ones among them."""
        self._lives: dict[str, list[Purchases]] = {}
        self._lock = threading.Lock()

    def purchases(self, run: str) -> list[Purchases]:
        """Return what each life of a run bought, up to the last that bought anything."""
        return self._lives.get(run, [])

    def sell(self, run: str, question: bytes) -> tuple[str, Purchases]:
        """Return the name of an answer, some time later, and where it is booked."""
        messages = json.loads(question)["messages"]
        key = f"{hash(json.dumps(messages)) & (2**64 - 1):016x}"
        with self._lock:
            lives = self._lives.setdefault(run, [])
            while len(lives) <= self.life:
                lives.append(Purchases())
            booked = lives[self.life]
            booked.sold[key] += 1
        time.sleep(random.uniform(0.05, 0.5))
        return key, booked

    def deliver(self, key: str, booked: Purchases) -> None:
        """Book that an answer was sent."""
        with self._lock:
            booked.deliver(key, time.monotonic())

    def __enter__(self) -> _Seller:
        seller = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                question = self.rfile.read(int(self.headers["content-length"]))
                key, booked = seller.sell(self.path.split("/")[1], question)
                text = f"1. {_ADVICE}\n2. {_ADVICE} (answer {key})"
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
                body = {"id": key, "object": "chat.completion", "created": 0, "model": "stand-in", "choices": [choice]}
                answer = msgspec.json.encode(body | {"usage": usage})
                try:
                    self.send_response(200)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                    seller.deliver(key, booked)
                except OSError:
                    self.close_connection = True  # the buyer was killed

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
