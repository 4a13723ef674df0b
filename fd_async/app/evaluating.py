"""One evaluation in a folder of its own; the same call again continues it.

    FOLDER/config.toml       resolved, with the model that is evaluated
    FOLDER/evaluation.json   what the attempts depend on; a call that differs in it is refused
    FOLDER/ledger.db         every attempt, on the disk before it counts
    FOLDER/logs/
    FOLDER/result.json       written when all attempts are there

An attempt that was under way when the process ended is begun again from its seed, not continued in the middle: what
follows a cut would be drawn from another place of the random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct

from fd_async.app.opening import load_renderer, make_runner, serve
from fd_async.app.pace import Pace
from fd_async.app.subject import OWN_FILE, Subject, has_tools
from fd_async.config.load import dump_toml, load_config
from fd_async.config.schema import RunConfig
from fd_async.data.ledger import Ledger, open_ledger
from fd_async.data.ledger.evaluated import read_evaluated
from fd_async.data.sources import overlaps, read_suites, read_train
from fd_async.errors import ConfigError, FdError, PreflightError
from fd_async.evaluation import (
    TOOLCHAIN,
    Identity,
    Known,
    Outcome,
    SuiteResult,
    differences,
    document,
    evaluate_suite,
    identity,
    tally_of,
)
from fd_async.pipeline.signals import Stop
from fd_async.policy.contract import digest
from fd_async.rendering import Renderer
from fd_async.rollouts import RolloutRunner
from fd_async.telemetry.logs import setup_logging
from fd_async.telemetry.redact import redact
from fd_async.telemetry.sinks import replace_file
from fd_async.types import Rollout, Statement
from fd_async.verifier.verifier import open_verifier

Say = Callable[[str], None]


class Evaluated(Struct, frozen=True):
    """A finished evaluation."""

    folder: Path
    results: list[SuiteResult]
    document: dict[str, Any]
    """What result.json says."""


def evaluate(
    config: RunConfig,
    subject: Subject,
    folder: Path,
    *,
    retry_failed: bool = False,
    say: Say = lambda text: None,
) -> Evaluated:
    """Evaluate a model on every suite of the configuration, without a learner; take over what the folder has.

    Args:
        config: `data.eval`, `eval`, `policy`, `rollout` and `verifier` are used.
        subject: the model.
        folder: of the evaluation.
        retry_failed: attempts that failed by infrastructure in an earlier call are made again.
        say: hears in one line each how far it is.

    Raises:
        ConfigError: the folder holds an evaluation of something else.
        KeyboardInterrupt: a signal ended it; what was recorded stays.
    """
    model = msgspec.structs.replace(config.model, path=subject.model, init_from="")
    work = _Work(msgspec.structs.replace(config, model=model), subject, folder, retry_failed, say)
    done = anyio.run(work.run_until_signal, backend_options={"use_uvloop": True})
    if done is None:
        raise KeyboardInterrupt
    return done


class _Work:
    """One call."""

    def __init__(self, config: RunConfig, subject: Subject, folder: Path, retry_failed: bool, say: Say) -> None:
        self._config, self._subject, self._folder = config, subject, folder
        self._retry_failed, self._say = retry_failed, say

    async def run_until_signal(self) -> Evaluated | None:
        done: list[Evaluated] = []

        async def work() -> int:
            done.append(await self._run())
            return 0

        if await Stop().run(work):
            self._say(f"stopped; the attempts in {self._folder} are kept, the same command continues")
            return None
        return done[0]

    async def _run(self) -> Evaluated:
        config, folder = self._config, self._folder
        renderer = await anyio.to_thread.run_sync(load_renderer, config)
        suites = await anyio.to_thread.run_sync(read_suites, config, abandon_on_cancel=True)
        if not suites:
            raise PreflightError("data.eval is empty: name statements with --suite, e.g. --suite minif2f")
        await anyio.to_thread.run_sync(self._say_overlaps, suites, abandon_on_cancel=True)
        model_hash = await anyio.to_thread.run_sync(digest, config.model.path, abandon_on_cancel=True)
        own = await anyio.to_thread.run_sync(
            lambda: identity(config, model_hash=model_hash, renderer=renderer, suites=suites)
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            setup_logging(folder, config.telemetry.log_level)
        except OSError as error:
            raise PreflightError(f"{folder}: cannot be written: {error.strerror}; name another with --out") from error
        step = self._subject.step or 0
        gib = config.telemetry.ledger_max_gib
        async with open_ledger(folder / "ledger.db", max_gib=gib, oldest_checkpoint=lambda: step) as ledger:
            await anyio.to_thread.run_sync(self._claim, own)
            known = await anyio.to_thread.run_sync(self._known, suites)
            results = await self._attempt(suites, known, renderer, ledger, own)
        hashes = {suite: str(own[f"statements of {suite}"]).removeprefix("sha256 ") for suite in suites}
        written = document(
            results, model=config.model.path, step=self._subject.step, hashes=hashes, tools=has_tools(config)
        )
        text = msgspec.json.format(msgspec.json.encode(written)) + b"\n"
        await anyio.to_thread.run_sync(replace_file, folder / "result.json", text)
        return Evaluated(folder, results, written)

    def _say_overlaps(self, suites: Mapping[str, Sequence[Statement]]) -> None:
        """Say which statements the run has trained on, as its own configuration tells; asks no hub for that."""
        run_dir = self._subject.run_dir
        if not run_dir or not self._subject.step:
            return
        try:
            config = load_config(run_dir / "config.toml", sets=["data.offline=true"], check_files=False)
            lines = overlaps(read_train(config), suites)
        except FdError as error:
            lines = [f"not known whether the suites hold training statements: {str(error).splitlines()[0]}"]
        for line in lines:
            self._say(line)

    def _claim(self, own: Identity) -> None:
        """Refuse what an earlier call began otherwise; else note what this one depends on. Holds the ledger's lock."""
        path, config = self._folder / OWN_FILE, self._config
        before: Identity = {}
        if path.exists():
            try:
                before = msgspec.json.decode(path.read_bytes(), type=Identity)
            except (OSError, msgspec.DecodeError) as error:
                raise ConfigError(f"{path}: cannot be read ({error}); name another folder with --out") from error
            changed = differences(before, msgspec.to_builtins(own))
            if changed:
                raise ConfigError(
                    f"{self._folder} holds another evaluation: {'; '.join(changed)}: name another folder with --out, "
                    "or delete this one"
                )
        if not own.keys() <= before.keys():
            replace_file(path, msgspec.json.format(msgspec.json.encode(before | own)) + b"\n")
        replace_file(self._folder / "config.toml", dump_toml(config).encode())

    def _known(self, suites: Mapping[str, Sequence[Statement]]) -> dict[str, Known]:
        """Return suite -> what its attempts said, and say how many there are."""
        known: dict[str, dict[tuple[int, int], Outcome]] = {suite: {} for suite in suites}
        for attempt in read_evaluated(self._folder / "ledger.db"):
            outcome = Outcome.recorded(attempt)
            if not (self._retry_failed and outcome.is_worth_another_try):
                known[attempt.suite][attempt.ordinal, attempt.sample] = outcome
        samples = self._config.eval.samples
        for suite, statements in suites.items():
            taken = [outcome for (_, sample), outcome in known[suite].items() if sample < samples]
            failed = sum(bool(outcome.failure) for outcome in taken)
            over = f", {len(taken):,} of them taken over ({failed:,} failed)" if taken else ""
            total = len(statements) * samples
            self._say(f"{suite}: {len(statements):,} statements x {samples} samples = {total:,} attempts{over}")
        return dict(known)

    async def _attempt(
        self,
        suites: Mapping[str, Sequence[Statement]],
        known: Mapping[str, Known],
        renderer: Renderer,
        ledger: Ledger,
        own: Identity,
    ) -> list[SuiteResult]:
        """Make the attempts that are missing, if any, and return what all of them say."""
        config, samples = self._config, self._config.eval.samples
        missing = {
            suite: len(statements) * samples - sum(sample < samples for _, sample in known[suite])
            for suite, statements in suites.items()
        }
        if not any(missing.values()):
            return [
                tally_of(suite, statements, known[suite], samples=samples, temperature=config.eval.temperature).result(
                    config.eval.k
                )
                for suite, statements in suites.items()
            ]
        async with AsyncExitStack() as stack:
            verifier = await stack.enter_async_context(
                open_verifier(config.verifier, output_chars=config.rollout.tool_output_chars)
            )
            await anyio.to_thread.run_sync(self._claim, own | {TOOLCHAIN: verifier.toolchain})
            self._say(f"starting vLLM with {config.model.path} (minutes for a large model)")
            engine = await stack.enter_async_context(
                serve(config, renderer, self._folder / "logs", on_event=lambda kind, text: self._say(redact(text)))
            )
            runner = make_runner(config, engine, renderer, verifier)
            results = []
            for suite, statements in suites.items():
                async with Pace(suite, missing[suite], self._say).telling() as pace:
                    results.append(await self._evaluate(suite, statements, runner, known[suite], ledger, pace))
            return results

    async def _evaluate(
        self,
        suite: str,
        statements: Sequence[Statement],
        runner: RolloutRunner,
        known: Known,
        ledger: Ledger,
        pace: Pace,
    ) -> SuiteResult:
        config, step = self._config, self._subject.step or 0

        async def record(rollout: Rollout) -> None:
            await ledger.put_rollout(rollout, "evaluated", admitted_version=0, step=step)
            pace.count(rollout)

        return await evaluate_suite(
            suite,
            statements,
            runner=runner,
            k=config.eval.k,
            samples=config.eval.samples,
            temperature=config.eval.temperature,
            concurrency=config.rollout.concurrency,
            record=record,
            seed=config.run.seed,
            known=known,
            max_failed_fraction=config.rollout.max_failed_fraction,
        )
