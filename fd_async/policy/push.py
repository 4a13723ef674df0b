"""The controller's side of a push.

    check ▸ prepare           the engine goes on; whatever is wrong is found here and refused
    hold ▸ load ▸ let go      nothing is sampled

Each phase has `policy.push_timeout_s` and names itself when that passes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import msgspec

from fd_async.config.schema import Policy
from fd_async.errors import EngineDied, PushFailed, PushRefused, first_cause
from fd_async.policy.contract import Contract
from fd_async.policy.engine import Send
from fd_async.policy.manifest import REFUSED, FileStamp, check_file, check_manifest, group_address
from fd_async.types import StagedWeights

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

PAUSE = {"keep": ("keep", False), "recompute": ("keep", True), "drain": ("wait", True)}
"""policy.in_flight -> vLLM's pause mode, and whether the KV goes, prefixes for requests in vLLM's queue included."""
_SENDER = "fd_async.policy.nccl:Broadcaster"
"""What the learner, which may not import this room, sends through."""
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.002, 0.05
"""How often to ask whether the workers are prepared; each question waits for the end of an engine step."""

_DISCARD_S = 5.0


async def hash_file(staged: StagedWeights) -> FileStamp:
    """Check the staged file in a thread, which a cancelled call leaves to end soon.

    Raises:
        PushRefused: it is not the manifest's.
    """
    stop = threading.Event()
    try:
        # A file system that hangs keeps its thread, not the controller.
        return await anyio.to_thread.run_sync(check_file, staged, stop, abandon_on_cancel=True)
    finally:
        stop.set()


class Pusher:
    """Brings staged weights into a running engine; knows nothing of versions or probes."""

    def __init__(self, llm: AsyncLLM, config: Policy, contract: Contract) -> None:
        self._llm = llm
        self._config = config
        self._contract = contract
        self._joined = ""
        """Address of the NCCL group that the workers are in."""

    async def check(self, staged: StagedWeights, send: Send | None) -> dict[str, Any]:
        """Check and prepare a push while the engine goes on; return what NCCL's workers must know of it.

        Raises:
            PushRefused: nothing changed.
            EngineDied: the engine's process is gone.
        """
        check_manifest(staged, self._contract, in_file=self._in_file)
        if not self._in_file:
            if send is None:
                raise PushRefused('policy.push = "nccl" needs `send`: nobody would send what the engine waits for')
            group_address(staged.path)
            names = [self._contract.name(name) for name in staged.names]
            return {"names": names, "dtype_names": staged.dtypes, "shapes": staged.shapes}
        with self._phase("checking the staged file", PushRefused):
            stamp = await hash_file(staged)
        with self._phase("preparing the new weights", PushRefused):
            await self._prepare(staged, stamp)
        return {}

    async def _prepare(self, staged: StagedWeights, stamp: FileStamp) -> None:
        """Have the workers build the new weights beside the old ones, in a thread of their own."""
        message = {
            "staged": msgspec.to_builtins(staged),
            "stamp": msgspec.to_builtins(stamp),
            "ahead": self._config.push_ahead,
            "engines": self._config.data_parallel_size,
        }
        try:
            await self._llm.collective_rpc("fd_prepare", args=(message,))
            look_s = _FIRST_LOOK_S
            while not await self._is_prepared():
                await anyio.sleep(look_s)
                look_s = min(2 * look_s, _LONGEST_LOOK_S)
        except BaseException:
            await self._discard()
            raise

    async def _is_prepared(self) -> bool:
        """Ask the workers of every engine: `AsyncLLM.collective_rpc` tells what those of the first one answer."""
        core: Any = self._llm.engine_core
        return all(map(all, await core.call_utility_all_async("collective_rpc", "fd_is_prepared", None, (), None)))

    async def _discard(self) -> None:
        """Have the workers drop what they prepared, so that it does not keep its memory."""
        with anyio.move_on_after(_DISCARD_S, shield=True):
            await self._llm.collective_rpc("fd_discard")

    async def commit(self, staged: StagedWeights, message: dict[str, Any], send: Send | None) -> tuple[float, float]:
        """Hold the engine, load, let it go on. Returns seconds held and, of these, seconds loading.

        Raises:
            PushRefused: nothing changed.
            PushFailed: it broke after it began, or did not end within `policy.push_timeout_s`; the engine stays held.
            EngineDied: the engine's process is gone.
        """
        mode, clear_cache = PAUSE[self._config.in_flight]
        held = time.perf_counter()
        in_doubt = loads = False
        try:
            with self._phase("holding running requests (policy.in_flight)", PushRefused):
                # AsyncLLM.pause_generation is this call and a sleep of 20 ms.
                await self._llm.engine_core.pause_scheduler_async(mode, clear_cache)  # pyright: ignore[reportArgumentType]
            began = time.perf_counter()
            loads = True
            # Half of a commit is no state to stop in: cancellation waits, the deadline of the phase stands.
            with anyio.CancelScope(shield=True), self._phase("loading weights", PushFailed):
                await self._load(staged, message, send)
            commit_s = time.perf_counter() - began
        except (PushFailed, EngineDied):
            in_doubt = True  # nothing is served from here on, and an engine that hangs would not answer the resume
            raise
        finally:
            if not in_doubt:
                with anyio.CancelScope(shield=True), self._phase("resuming", PushFailed):
                    await self._llm.resume_generation()
                if self._in_file and not loads:
                    with self._phase("dropping the prepared weights", PushFailed):
                        await self._discard()
        return time.perf_counter() - held, commit_s

    async def _load(self, staged: StagedWeights, message: dict[str, Any], send: Send | None) -> None:
        if send is None or self._in_file:
            await self._llm.collective_rpc("fd_commit", args=(staged.version,))
            await self._llm.update_weight_version(str(staged.version))
        else:
            await self._receive_while_sent(staged, message, send)
            await self._llm.finish_weight_update(str(staged.version))

    async def _receive_while_sent(self, staged: StagedWeights, message: dict[str, Any], send: Send) -> None:
        """Run both ends of the transfer at once: each blocks until the other is there. The first failure ends both."""

        async def receive() -> None:
            await self._join(staged.path)
            await self._receive(message)

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(send, staged, _SENDER, self._num_workers)
                group.start_soon(receive)
        except BaseExceptionGroup as failures:
            error = first_cause(failures)
            raise error from error.__cause__

    async def _receive(self, message: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._llm.start_weight_update()
        await self._llm.update_weights(WeightTransferUpdateRequest(update_info=message))

    async def _join(self, path: str) -> None:
        """Bring the workers into the learner's NCCL group, at the first push and when the learner's address changes."""
        if path == self._joined:
            return
        host, port = group_address(path)
        if self._joined:
            await self._llm.shutdown_weight_transfer_engine()
        await self._init_workers(
            {
                "master_address": host,
                "master_port": port,
                "rank_offset": 1,
                "world_size": 1 + self._num_workers,
                "packed": True,
            }
        )
        self._joined = path

    @property
    def _in_file(self) -> bool:
        return self._config.push != "nccl"

    @property
    def _num_workers(self) -> int:
        return self._config.tensor_parallel_size * self._config.data_parallel_size

    async def _init_workers(self, info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        with anyio.fail_after(self._config.push_timeout_s):
            await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=info))

    @contextmanager
    def _phase(self, what: str, failure: type[PushRefused | PushFailed]) -> Iterator[None]:
        """Give a phase its deadline, and its errors a type that says what became of the weights."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            with anyio.fail_after(self._config.push_timeout_s):
                yield
        except (PushRefused, PushFailed):
            raise
        except TimeoutError as error:
            raise failure(
                f"push: {what} took longer than policy.push_timeout_s = {self._config.push_timeout_s:g} s"
            ) from error
        except EngineDeadError as error:
            raise EngineDied(f"push: the engine's process died while {what}") from error
        except Exception as error:
            # Of several workers one may refuse when another has loaded: that is a refusal only before the loading.
            if REFUSED in str(error) and (failure is PushRefused or self._num_workers == 1):
                raise PushRefused(_first_line(error)) from error
            raise failure(f"push: {what} failed: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
