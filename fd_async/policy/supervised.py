"""An engine that outlives its processes.

    open ▸ bring the last weights ▸ serve ▸ lost: kill, close ▸ open ▸ ...

One task opens engines one after another. An engine is lost when a process of it ends, when it does not answer, or when
a push leaves its weights in doubt. Callers wait while the next one opens: a request goes on from the tokens that it
has, a push is made again, a score is asked again. Deadlines count under a living engine only, and anew under each.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskStatus

from fd_async.config.schema import Policy
from fd_async.errors import EngineDied, EngineError, LearnerError, PushFailed, PushRefused
from fd_async.policy.engine import Send
from fd_async.policy.lives import Life, MortalEngine, OpenEngine, OpenRequest
from fd_async.policy.outputs import joined
from fd_async.types import Completion, PushReport, StagedWeights

_LOST = (EngineDied, PushFailed)
_DEATH_FOLLOWS_S = 30.0
"""After vLLM gave up a request of its own accord: it does so when SIGTERM tells it to end, which takes a while."""
_CAUSE_FOLLOWS_S = 0.5
"""After a call met a death, before the watch has seen it."""
_PAUSE_S = 1.0
"""Before the second restart in a row, twice that before the third, and so on."""


@asynccontextmanager
async def supervised(
    open_engine: OpenEngine,
    config: Policy,
    *,
    stop_token_ids: list[int],
    log: str,
    on_event: Callable[[str, str], None],
) -> AsyncIterator[SupervisedEngine]:
    """Keep an engine running for the length of the block; afterwards nothing of it is left.

    Args:
        open_engine: opens one.
        config: the `[policy]` table.
        stop_token_ids: as the engines have them.
        log: name of the file that vLLM writes, for messages.
        on_event: told of "engine_died" and "engine_restarted".

    Raises:
        EngineError: the first start failed.
        EngineDied: more than `policy.max_restarts` engines were lost without a successful push between.
    """
    engine = SupervisedEngine(open_engine, config, stop_token_ids, log, on_event)
    try:
        async with anyio.create_task_group() as group:
            await group.start(engine._run)
            yield engine
            group.cancel_scope.cancel()
    except BaseExceptionGroup as failures:
        if engine._ended and failures.split(EngineDied)[1] is None:  # calls of the block may have heard it first
            raise EngineDied(engine._ended) from failures
        if len(failures.exceptions) > 1:
            raise
        raise failures.exceptions[0] from failures.exceptions[0].__cause__


class SupervisedEngine:
    """An `Engine`; see the module docstring."""

    def __init__(
        self,
        open_engine: OpenEngine,
        config: Policy,
        stop_token_ids: list[int],
        log: str,
        on_event: Callable[[str, str], None],
    ) -> None:
        self._open_engine = open_engine
        self._config = config
        self._stop_token_ids = stop_token_ids
        self._log = log
        self._on_event = on_event
        self._life: Life | None = None
        self._moved = anyio.Event()
        self._ended = ""
        self._accepted: tuple[StagedWeights, Send | None] | None = None
        self._version = 0
        self._deaths = 0
        """Since the last push that a caller made and that succeeded."""
        self._num_lives = 0
        self._past_tokens = 0.0
        self._in_group = False
        """The present learner's NCCL group has an engine in it, and takes no other."""
        self._requests: dict[str, OpenRequest] = {}

    @property
    def weight_version(self) -> int:
        return self._version

    @property
    def present(self) -> MortalEngine | None:
        """The engine that is open, if one is."""
        return self._life.engine if self._life else None

    @property
    def pids(self) -> list[int]:
        """Processes of the present engine; none while there is none."""
        return self._life.engine.pids if self._life else []

    def statistics(self) -> dict[str, float]:
        """Return `Engine.statistics`, `restarts`, `serving` (0 or 1); requests without an engine count as waiting."""
        if self._life is None:
            figures = {"running": 0.0, "waiting": float(len(self._requests)), "kv_usage": 0.0, "tokens_generated": 0.0}
        else:
            figures = self._life.engine.statistics()
        tokens = self._past_tokens + figures["tokens_generated"]
        restarts, serving = max(0.0, self._num_lives - 1.0), float(self._life is not None)
        return figures | {"tokens_generated": tokens, "restarts": restarts, "serving": serving}

    async def generate(
        self,
        prompt_ids: list[int],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        request_id: str,
        seed: int | None = None,
        salvage: Callable[[Completion], None] | None = None,
    ) -> Completion:
        """See `Engine.generate`. A seed repeats a sample only if no engine was lost on the way."""
        request = self._requests[request_id] = OpenRequest(max_tokens, self._stop_token_ids)
        try:
            while (finished := request.finished()) is None:
                life = await self._living()
                try:
                    part = await life.engine.generate(
                        prompt_ids + request.token_ids,
                        max_tokens=max_tokens - len(request.token_ids),
                        temperature=temperature,
                        top_p=top_p,
                        request_id=request_id,
                        seed=_seed(seed, len(request.token_ids)),
                        salvage=request.keep,
                    )
                except _LOST as error:
                    life.lose(error)
                    continue
                if part.finish_reason != "abort":
                    return joined(request.sampled, part)
                if part.token_ids:
                    request.keep(part)
                if not await _is_lost_soon(life):
                    return request.sampled or part
            return finished
        except BaseException:
            if salvage is not None and request.sampled is not None:
                salvage(request.sampled)
            raise
        finally:
            self._requests.pop(request_id, None)

    def partial(self, request_id: str) -> Completion | None:
        """See `Engine.partial`."""
        request = self._requests.get(request_id)
        if request is None:
            return None
        part = self._life.engine.partial(request_id) if self._life else None
        return request.sampled if part is None else joined(request.sampled, part)

    async def score(self, token_ids: list[int]) -> list[float]:
        """See `Engine.score`."""
        while True:
            life = await self._living()
            try:
                return await life.engine.score(token_ids)
            except _LOST as error:
                life.lose(error)

    async def push(self, staged: StagedWeights, send: Send | None = None) -> PushReport:
        """See `Engine.push`; an engine that is lost in it is replaced, and the push made again.

        Raises:
            PushFailed: the sender failed, and with it the engine: another learner has to push to the next one.
        """
        while True:
            life = await self._living(whole=False)
            async with life.pushing:
                if life.lost.is_set():
                    continue
                self._in_group = self._config.push == "nccl"
                try:
                    report = await life.engine.push(staged, send)
                except _LOST as error:
                    life.lose(error)
                    if isinstance(error.__cause__, LearnerError):
                        self._in_group = False  # the group is gone with its sender
                        raise
                    continue
                self._accepted, self._version, self._deaths = (staged, send), staged.version, 0
                life.whole.set()
                self._move()
                return report

    async def _living(self, *, whole: bool = True) -> Life:
        """Wait for an engine, `whole` for one that has its weights."""
        while True:
            if self._ended:
                raise EngineDied(self._ended)
            life = self._life
            if life and not life.lost.is_set() and (life.whole.is_set() or not whole):
                return life
            await self._moved.wait()

    def _move(self) -> None:
        """Have everybody who waits look again."""
        self._moved.set()
        self._moved = anyio.Event()

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        """Open engines one after another; ends only by an error or when it is cancelled."""
        while True:
            began = time.monotonic()
            try:
                async with self._open_engine() as engine:
                    if not self._num_lives:
                        task_status.started()
                    cause = await self._live(Life(engine), began)
            except (EngineError, OSError) as error:
                if not self._num_lives:
                    raise
                cause = f"the restart failed: {error}"
                self._on_event("engine_died", cause)
            self._count_death(cause)
            await anyio.sleep(_PAUSE_S * (self._deaths - 1))

    async def _live(self, life: Life, began: float) -> str:
        """Serve until the engine is lost; return why, when its processes are killed and its calls ended."""
        self._life = life
        self._num_lives += 1
        self._move()
        async with anyio.create_task_group() as group:
            group.start_soon(life.watch)
            group.start_soon(self._restore, life, began)
            await life.lost.wait()
            with anyio.move_on_after(_CAUSE_FOLLOWS_S):
                await life.seen.wait()
            self._on_event("engine_died", life.cause)
            life.engine.kill(life.cause)
            group.cancel_scope.cancel()
        self._past_tokens += life.engine.statistics()["tokens_generated"]
        self._life = None
        return life.cause

    async def _restore(self, life: Life, began: float) -> None:
        """Bring the last weights to a new engine, then let requests in."""
        if self._accepted is None:
            life.whole.set()
        else:
            refusal = await self._push_again(life, *self._accepted)
            # Weights are gone when the learner stages others, which come next, or starts anew and then brings its own:
            # the deadlines of its steps and of its start bound that.
            are_gone = not await anyio.Path(self._accepted[0].path).exists()
            with anyio.move_on_after(math.inf if are_gone else self._config.push_timeout_s):
                await life.whole.wait()
            if not life.whole.is_set():
                limit = f"policy.push_timeout_s = {self._config.push_timeout_s:g} s"
                reason = f"its weights could not be brought back ({refusal}) and no others came within {limit}"
                life.lose(PushFailed(reason))
                return
        if self._num_lives > 1:
            seconds = time.monotonic() - began
            self._on_event("engine_restarted", f"weight version {self._version}, after {seconds:.1f} s")
        self._move()

    async def _push_again(self, life: Life, staged: StagedWeights, send: Send | None) -> str:
        """Push what the last engine had, unless a caller was faster; return why it was refused, or nothing."""
        if self._config.push == "nccl":
            return "their sender is gone"
        async with life.pushing:
            if life.whole.is_set():
                return ""
            try:
                await life.engine.push(staged, send)
            except PushRefused as refusal:
                return str(refusal)
            except _LOST as error:
                life.lose(error)
                return str(error)
            life.whole.set()
            return ""

    def _count_death(self, cause: str) -> None:
        self._deaths += 1
        limit = self._config.max_restarts
        if self._in_group:
            why = 'policy.push = "nccl" cannot take a new engine into its group; resume the run, or take "shm"'
        elif self._deaths > limit:
            why = f"{_times(self._deaths)} without a successful push between (policy.max_restarts = {limit})"
        else:
            return
        self._ended = f"vLLM was lost: {why}; last: {cause}; see {self._log}"
        self._move()
        raise EngineDied(self._ended)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _seed(seed: int | None, num_sampled: int) -> int | None:
    """Return the seed of a part: the same random numbers again would tie its tokens to the first part's."""
    return seed if seed is None or not num_sampled else random.Random(f"{seed} {num_sampled}").getrandbits(31)


async def _is_lost_soon(life: Life) -> bool:
    with anyio.move_on_after(_DEATH_FOLLOWS_S):
        await life.lost.wait()
    return life.lost.is_set()
