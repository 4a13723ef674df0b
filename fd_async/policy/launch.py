"""Starting vLLM and making sure that it is gone afterwards."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import psutil

from fd_async.config.schema import Policy
from fd_async.errors import EngineError
from fd_async.policy.child import do_without_torchvision, logging_config
from fd_async.policy.contract import has_recurrent_layers
from fd_async.policy.environment import engine_environment, temporary_environment
from fd_async.policy.leftovers import remove_shared_files, shared_files
from fd_async.scratch import scratch_folder

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

    from fd_async.policy.counters import Counters

_SHUTDOWN_S = 20.0
"""Time for vLLM's own shutdown; what is left then is killed."""
_LOOK_S = 0.01
_PROCESS_NAMES = ("EngineCore", "VLLM_DP")
"""How vLLM calls the processes that it starts here: cores, and the coordinator of several engines."""
_ERROR_LINE = re.compile(r"(\w+(?:Error|Exception): .*)")
_LAST_LOG_BYTES = 1 << 20
_starting = anyio.Lock()
"""One start at a time: the environment belongs to the whole process."""


class RunningEngine:
    """vLLM's front end, its counters and the processes behind it.

    Attributes:
        processes: all of them, cores and coordinator with their descendants.
        children: those of them that this process started; vLLM cannot do without any.
        log: where all of them write, and its length before they did.
        takes_seeds: whether requests may bring one.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        counters: Counters,
        children: list[BaseProcess],
        log: tuple[Path, int],
        *,
        takes_seeds: bool,
    ) -> None:
        self.llm = llm
        self.takes_seeds = takes_seeds
        self.counters = counters
        self.children = children
        self.processes = _with_descendants(children)
        self._shared_files = shared_files(self.processes)
        self.log = log

    def kill(self) -> None:
        """Kill all processes, and end what waits for an answer of theirs: vLLM would leave it waiting for ever."""
        from vllm.v1.engine.exceptions import EngineDeadError

        if self.llm.output_handler is not None:
            self.llm.output_handler.cancel()  # else it logs the end of the processes as a failure
        core: Any = self.llm.engine_core
        core.resources.engine_dead = True
        for answer in list(core.utility_results.values()):
            if not answer.done():
                answer.set_exception(EngineDeadError())
        self.llm.output_processor.propagate_error(EngineDeadError())
        _kill(self.processes, wait_s=0.0)

    async def close(self) -> None:
        """Shut vLLM down and kill what is still there; never cancelled, never longer than a few seconds more."""
        with anyio.CancelScope(shield=True):
            if self.llm.output_handler is not None:
                self.llm.output_handler.cancel()
            with anyio.move_on_after(_SHUTDOWN_S):
                await anyio.to_thread.run_sync(self.llm.shutdown, abandon_on_cancel=True)
            await self._sockets_closed()
            with anyio.move_on_after(_SHUTDOWN_S):
                await anyio.to_thread.run_sync(self.llm.engine_core.resources.ctx.destroy, 0, abandon_on_cancel=True)
            self.llm.shutdown = _do_nothing  # vLLM would call it again when the interpreter ends, and fail
            await anyio.to_thread.run_sync(_kill, self.processes)
            remove_shared_files(self._shared_files)

    async def _sockets_closed(self) -> None:
        """Wait for vLLM to close its sockets, in a callback on this loop that one of its threads may have asked for."""
        reader = self.llm.engine_core.resources.output_queue_task
        with anyio.move_on_after(_SHUTDOWN_S):
            while reader is not None and not reader.done():  # noqa: ASYNC110  # its task, no event
                await anyio.sleep(_LOOK_S)


@asynccontextmanager
async def running_engine(
    model_path: str, config: Policy, *, dtype: str, seed: int, log_dir: Path | None, frozen: bool
) -> AsyncIterator[RunningEngine]:
    """Run vLLM for the length of the block.

    Raises:
        EngineError: vLLM did not start, or not within `policy.start_timeout_s`.
    """
    with scratch_folder("vllm") as scratch:
        log_file = (log_dir or scratch) / ("vllm_frozen.log" if frozen else "vllm.log")
        log_file.parent.mkdir(parents=True, exist_ok=True)
        logging_file = scratch / "logging.json"
        logging_file.write_text(logging_config(log_file.resolve(), os.getpid()))
        environment = engine_environment(model_path, config, logging_file)
        look = partial(engine_arguments, model_path, config, dtype=dtype, seed=seed, frozen=frozen)
        try:
            async with _starting:
                with anyio.fail_after(config.start_timeout_s):
                    arguments = await anyio.to_thread.run_sync(look, abandon_on_cancel=True)  # may read files
                    engine = await _start(partial(_build, arguments, environment, log_file))
        except TimeoutError as error:
            raise EngineError(
                f"vLLM was not ready after policy.start_timeout_s = {config.start_timeout_s:g} s"
                + (f"; see {log_file}" if log_dir else "")
            ) from error
        try:
            yield engine
        finally:
            await engine.close()


def engine_arguments(model_path: str, config: Policy, *, dtype: str, seed: int, frozen: bool) -> dict[str, Any]:
    """Return the arguments of vLLM's `AsyncEngineArgs`."""
    arguments: dict[str, Any] = {
        "model": model_path,
        "dtype": dtype,
        "seed": seed,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "language_model_only": True,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "enforce_eager": config.enforce_eager,
        "enable_prefix_caching": config.prefix_caching,
        "tensor_parallel_size": config.tensor_parallel_size,
        "data_parallel_size": config.data_parallel_size,
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        "enable_log_requests": False,
    }
    if config.max_num_batched_tokens:
        arguments["max_num_batched_tokens"] = config.max_num_batched_tokens
    if config.gpus:
        arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
        # On Hopper vLLM would take FlashInfer's kernel for gated delta layers, whatever it finds to compile it with.
        arguments["gdn_prefill_backend"] = "triton"
    else:
        arguments["kv_cache_memory_bytes"] = int(config.kv_cache_gib * 2**30)
        if _prefills_whole(model_path, config):
            arguments["enable_chunked_prefill"] = False
    if not frozen:
        arguments["worker_extension_cls"] = "fd_async.policy.transfer.WorkerExtension"
        if config.push == "nccl":
            arguments["weight_transfer_config"] = {"backend": "nccl"}
    return arguments


def _prefills_whole(model_path: str, config: Policy) -> bool:
    """Say whether a CPU engine can be kept from prefilling a prompt in parts, so that requests may bring seeds.

    After a part vLLM 0.32 takes back the random number that it drew for nothing, which CPU generators cannot do: it
    dies. Its prefix cache of a recurrent layer asks for parts, and so does a batch shorter than the longest prompt.
    """
    if 0 < config.max_num_batched_tokens < config.max_model_len:
        return False
    return not (config.prefix_caching and has_recurrent_layers(model_path))


def _build(arguments: dict[str, Any], environment: dict[str, str], log_file: Path) -> RunningEngine:
    """Import vLLM and start its processes. Blocking, many seconds."""
    before = {process.pid for process in multiprocessing.active_children()}
    log_start = log_file.stat().st_size if log_file.exists() else 0
    logger = logging.getLogger("vllm")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())  # vLLM warns while it is imported, before it sets its handlers
    with temporary_environment(environment), _deaf_children():
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from fd_async.policy.counters import Counters, recorder

        is_cpu = "kv_cache_memory_bytes" in arguments
        if is_cpu:
            # vLLM looks at a model's class in a fresh interpreter, which keeps CUDA out of this one. Here there is none
            # to keep out, and a fresh interpreter would look for torchvision.
            from vllm.model_executor.models import registry

            do_without_torchvision()
            registry._run_in_subprocess = _call
        if is_cpu and arguments["tensor_parallel_size"] == 1:
            # vLLM puts its one CPU worker into a process of its own, which then spins on shared memory for a second
            # after every message: a whole core, taken from the learner. The environment is right in the core as well.
            from vllm.v1.executor.uniproc_executor import UniProcExecutor

            arguments = arguments | {"distributed_executor_backend": UniProcExecutor}

        counters = Counters()
        try:
            llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[recorder(counters)])
        except (RuntimeError, ValueError, OSError, AssertionError, TypeError) as error:
            raise EngineError(f"vLLM did not start: {_cause(error, log_file, log_start)}") from error
    takes_seeds = not is_cpu or arguments.get("enable_chunked_prefill") is False
    return RunningEngine(llm, counters, _new_children(before), (log_file, log_start), takes_seeds=takes_seeds)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Start processes that Ctrl-C on the terminal does not reach; they leave its session only after long imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def _start(build: Callable[[], RunningEngine]) -> RunningEngine:
    """Run `build` in a thread. When cancelled, kill what it started, so that the thread and its processes end."""
    before = {process.pid for process in multiprocessing.active_children()}
    finished = anyio.Event()
    outcome: list[RunningEngine | EngineError] = []

    async def work() -> None:
        with anyio.CancelScope(shield=True):
            try:
                outcome.append(await anyio.to_thread.run_sync(build, limiter=anyio.CapacityLimiter(1)))
            except EngineError as error:
                outcome.append(error)
            finally:
                finished.set()

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        try:
            await finished.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                while not finished.is_set():
                    _kill(_with_descendants(_new_children(before)), wait_s=0.0)
                    with anyio.move_on_after(0.2):
                        await finished.wait()
                for result in outcome:
                    if isinstance(result, RunningEngine):
                        await result.close()
            raise
    (result,) = outcome
    if isinstance(result, EngineError):
        raise result
    return result


def _call(function: Callable[[], Any]) -> Any:
    return function()


def _do_nothing(timeout: float | None = None) -> None:
    """Stand in for a shutdown that has happened."""


def _new_children(before: set[int | None]) -> list[BaseProcess]:
    """Return vLLM's processes that this one started since `before`."""
    children = multiprocessing.active_children()
    return [child for child in children if child.pid not in before and child.name.startswith(_PROCESS_NAMES)]


def _with_descendants(children: list[BaseProcess]) -> list[psutil.Process]:
    """Return them and everything below them."""
    found: list[psutil.Process] = []
    for child in children:
        try:
            process = psutil.Process(child.pid)
            found += [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return found


def _kill(processes: list[psutil.Process], wait_s: float = 5.0) -> None:
    """Kill those that still run. psutil compares start times, so that a reused pid is left alone."""
    for process in processes:
        try:
            if process.is_running():
                process.kill()
        except psutil.NoSuchProcess:
            continue
    if wait_s:
        psutil.wait_procs(processes, timeout=wait_s)


def _cause(error: BaseException, log_file: Path, log_start: int) -> str:
    """Return the line that says why: the engine's processes log it, the front end says only that they failed."""
    errors = logged_errors(log_file, log_start) if "root cause" in str(error) else []
    return errors[0] if errors else str(error)


def logged_errors(log_file: Path, start: int) -> list[str]:
    """Return the lines of vLLM's log that name an exception, of its last part and from byte `start` on."""
    if not log_file.exists():
        return []
    with log_file.open("rb") as log:
        log.seek(max(start, log_file.stat().st_size - _LAST_LOG_BYTES))
        lines = log.read().decode(errors="replace").splitlines()
    return [match[1] for line in lines if "root cause" not in line and (match := _ERROR_LINE.search(line))]
