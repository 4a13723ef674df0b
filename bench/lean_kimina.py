"""Runs a Kimina Lean Server, unmodified, on the trace-driven stand-in, and gives it the same checks.

Only environment variables are set: REPLs, all of them started beforehand (`INIT_REPLS`), the longest wait for a REPL
raised so that no backlog is refused, and logging turned down (`prod`, `ERROR`), because the default logs every check
in colour. `lake` and the REPL are two small scripts in a folder in front of PATH.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp
import anyio
import anyio.abc
from anyio import fail_after
from msgspec import Struct

from bench.lean_arrivals import Arrival, Outcome, drive
from bench.lean_trace import LIMIT_S, Check
from fd_async.verifier.repl.tree import cpu_seconds

WAYS = ("inside", "verify", "check", "client")
"""Its pool from inside; one snippet per request to `/verify` or `/api/check`; batches as its own client makes them."""
_CLIENT_BATCH, _CLIENT_BATCHES_AT_ONCE = 8, 5
_IN_FLIGHT_PER_REPL = 2
"""Enough that a REPL never waits for the next request; more would only make the server poll more."""
_START_S, _STOP_S = 300.0, 20.0
_STUB = "class Prisma:\n    pass\n"


class Kimina(Struct, frozen=True):
    """Where the server's checkout and an interpreter with its requirements are, and what stands in for Lean."""

    checkout: Path
    python: str
    repl_argv: tuple[str, ...]
    scratch: Path
    scale: float

    def environment(self, checks: Sequence[Check], repls: int, port: int) -> dict[str, str]:
        """Return the server's settings; REPLs are started for each header in proportion to its checks."""
        tools = self.scratch / "tools"
        _script(tools / "lake", 'shift\nexec "$@"')
        _script(tools / "repl", f"exec {' '.join(self.repl_argv)}")
        paths = [str(self.checkout), str(self.checkout / "client"), str(Path(__file__).resolve().parents[1])]
        if not self.has_database_client():
            (self.scratch / "stub" / "prisma").mkdir(parents=True, exist_ok=True)
            (self.scratch / "stub" / "prisma" / "__init__.py").write_text(_STUB)
            paths.insert(0, str(self.scratch / "stub"))
        counts: dict[str, int] = {}
        for check in checks:
            imports = "\n".join(line for line in check.header.split("\n") if line.startswith("import "))
            counts[imports] = counts.get(imports, 0) + 1
        shares = {header: max(1, repls * count // len(checks)) for header, count in counts.items()}
        return {
            **{name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ},
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": ":".join(paths),
            "NO_GCE_CHECK": "true",
            "LEAN_SERVER_HOST": "127.0.0.1",
            "LEAN_SERVER_PORT": str(port),
            "LEAN_SERVER_ENVIRONMENT": "prod",
            "LEAN_SERVER_LOG_LEVEL": "ERROR",
            "LEAN_SERVER_REPL_PATH": str(tools / "repl"),
            "LEAN_SERVER_PROJECT_DIR": str(self.scratch),
            "LEAN_SERVER_MAX_REPLS": str(repls),
            "LEAN_SERVER_MAX_WAIT": "36000",
            "LEAN_SERVER_INIT_REPLS": json.dumps(shares),
        }

    def _open_log(self) -> BinaryIO:
        return open(self.scratch / "kimina.log", "ab")

    def has_database_client(self) -> bool:
        """Tell whether `prisma generate` was run; the server imports its product even where it uses no database."""
        command = [self.python, "-c", "from prisma import Prisma"]
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0

    async def run_inside(
        self, checks: Sequence[Check], repls: int, arrival: Arrival, think_s: float
    ) -> tuple[list[Outcome], dict[str, Any]]:
        """Give every check to the server's pool within its own process."""
        job = self.scratch / "job.json"
        names, codes = [check.name for check in checks], [check.code for check in checks]
        timeout = LIMIT_S * self.scale
        job.write_text(
            json.dumps({"names": names, "codes": codes, "arrival": arrival, "think_s": think_s, "timeout_s": timeout})
        )
        with self._open_log() as log:
            done = await anyio.run_process(
                [self.python, "-m", "bench.lean_kimina_inside", str(job)],
                cwd=self.checkout,
                env=self.environment(checks, repls, 0),
                stderr=log,
                start_new_session=True,
            )
        outcomes = json.loads(done.stdout.splitlines()[-1])["outcomes"]
        return [Outcome(*outcome) for outcome in outcomes], {}

    @asynccontextmanager
    async def server(self, checks: Sequence[Check], repls: int) -> AsyncIterator[tuple[str, int]]:
        """Run the server until the end of the block; yields its address and process id."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with self._open_log() as log:
            process = await anyio.open_process(
                [self.python, "-m", "server"],
                cwd=self.checkout,
                env=self.environment(checks, repls, port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            await _until_up(process, f"http://127.0.0.1:{port}", self.scratch / "kimina.log")
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            with anyio.CancelScope(shield=True):
                process.terminate()
                with anyio.move_on_after(_STOP_S):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                await process.aclose()

    async def run_http(
        self, checks: Sequence[Check], repls: int, arrival: Arrival, think_s: float, way: str
    ) -> tuple[list[Outcome], dict[str, Any]]:
        """Give every check to the server over kept connections."""
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)  # the server answers every request within its own deadlines
        async with self.server(checks, repls) as (url, pid):
            before = cpu_seconds(pid) or 0.0
            async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
                client = _Client(session, checks, round(LIMIT_S * self.scale), way, _IN_FLIGHT_PER_REPL * repls)
                if way == "client":
                    outcomes = await client.run_batches()
                else:
                    outcomes = await drive([check.name for check in checks], client.check_one, arrival, think_s)
            used = (cpu_seconds(pid) or 0.0) - before
        return outcomes, {"cpu_ms_per_check": 1000 * used / len(checks)}


class _Client:
    """Posts snippets and reads verdicts as the server's own client does: no error and no sorry is valid."""

    def __init__(
        self, session: aiohttp.ClientSession, checks: Sequence[Check], timeout_s: int, way: str, in_flight: int
    ) -> None:
        self._session, self._checks, self._timeout_s = session, checks, timeout_s
        self._is_old = way == "verify"
        self._in_flight = anyio.Semaphore(in_flight)

    async def check_one(self, number: int) -> str:
        async with self._in_flight:
            return (await self._post([number]))[0]

    async def run_batches(self) -> list[Outcome]:
        """Send batches as the server's own client does by default; everything counts as submitted at once."""
        outcomes: list[Outcome] = []
        slots, began = anyio.Semaphore(_CLIENT_BATCHES_AT_ONCE), anyio.current_time()

        async def send(numbers: list[int]) -> None:
            async with slots:
                verdicts = await self._post(numbers)
            now = anyio.current_time() - began
            outcomes.extend(
                Outcome(number, verdict, 0.0, now) for number, verdict in zip(numbers, verdicts, strict=True)
            )

        async with anyio.create_task_group() as tasks:
            for start in range(0, len(self._checks), _CLIENT_BATCH):
                tasks.start_soon(send, list(range(start, min(start + _CLIENT_BATCH, len(self._checks)))))
        return outcomes

    async def _post(self, numbers: list[int]) -> list[str]:
        codes = [(str(number), self._checks[number].code) for number in numbers]
        if self._is_old:
            route = "/verify"
            payload: dict[str, Any] = {"codes": [{"custom_id": name, "code": code} for name, code in codes]}
        else:
            route, payload = "/api/check", {"snippets": [{"id": name, "code": code} for name, code in codes]}
        async with self._session.post(route, json={**payload, "timeout": self._timeout_s}) as response:
            if response.status == 200:
                return [_verdict(result) for result in (await response.json())["results"]]
            return [f"HTTP {response.status}"] * len(numbers)


def _verdict(result: dict[str, Any]) -> str:
    if result.get("error"):
        return "timeout" if "timed out" in result["error"] else str(result["error"])
    answer = result["response"]
    errors = any(message["severity"] == "error" for message in answer.get("messages") or [])
    return "rejected" if errors or answer.get("sorries") or "message" in answer else "accepted"


async def _until_up(process: anyio.abc.Process, url: str, log: Path) -> None:
    with fail_after(_START_S):
        async with aiohttp.ClientSession(url) as session:
            while True:
                if process.returncode is not None:
                    words = await anyio.Path(log).read_text()
                    sys.exit(f"the Kimina Lean Server did not start:\n{words[-2000:]}")
                try:
                    async with session.get("/health") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientError:
                    pass  # not listening yet
                await anyio.sleep(0.1)


def _script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
