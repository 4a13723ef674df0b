"""The policy engine on this machine: vLLM's front end in this process, its cores and workers in child processes."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from fd_async.config.schema import Policy
from fd_async.errors import AlignmentError, EngineDied, EngineError, PushFailed, PushRefused
from fd_async.policy.contract import read_contract
from fd_async.policy.engine import Send
from fd_async.policy.launch import RunningEngine, running_engine
from fd_async.policy.outputs import completion_of, sampled_so_far
from fd_async.policy.push import Pusher
from fd_async.policy.watch import end_of
from fd_async.types import Completion, PushReport, StagedWeights

_ABORT_S = 5.0


@asynccontextmanager
async def open_engine(
    model_path: str,
    config: Policy,
    *,
    dtype: str,
    seed: int,
    stop_token_ids: list[int],
    log_dir: Path | None = None,
    frozen: bool = False,
) -> AsyncIterator[LocalEngine]:
    """Run a vLLM engine for the length of the block; afterwards none of its processes is left.

    Args:
        model_path: Hugging Face id or checkpoint folder.
        config: the `[policy]` table.
        dtype: `model.dtype`.
        seed: of the engine, for requests that bring none.
        stop_token_ids: a completion ends after any of these; the model's own end tokens are not added.
        log_dir: gets `vllm.log` (`vllm_frozen.log`) with everything that vLLM says.
        frozen: takes no pushes.

    Raises:
        EngineError: vLLM did not start.
        PreflightError: the checkpoint cannot serve as the contract of pushes.
    """
    async with running_engine(model_path, config, dtype=dtype, seed=seed, log_dir=log_dir, frozen=frozen) as running:
        pusher = None
        if not frozen:
            contract = await anyio.to_thread.run_sync(read_contract, model_path)
            pusher = Pusher(running.llm, config, contract)
            await _say_version_0(running, config)
        yield LocalEngine(running, config, stop_token_ids, pusher, log_dir)


async def _say_version_0(running: RunningEngine, config: Policy) -> None:
    """Have the engine mark what it samples, as the first thing that it is asked.

    Raises:
        EngineError: it does not answer.
        EngineDied: its process is gone already.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        with anyio.fail_after(config.push_timeout_s):
            await running.llm.update_weight_version("0")
    except TimeoutError as error:
        limit = f"policy.push_timeout_s = {config.push_timeout_s:g} s"
        raise EngineError(f"vLLM started and did not answer within {limit}; see {running.log[0]}") from error
    except EngineDeadError as error:
        raise EngineDied(f"vLLM's engine process died as soon as it had started; see {running.log[0]}") from error


class LocalEngine:
    """An `Engine`. Requests are independent; pushes take turns, and new requests wait while one is under way."""

    def __init__(
        self,
        running: RunningEngine,
        config: Policy,
        stop_token_ids: list[int],
        pusher: Pusher | None,
        log_dir: Path | None,
    ) -> None:
        self._log_dir = log_dir
        self._running = running
        self._llm = running.llm
        self._config = config
        self._stop_token_ids = stop_token_ids
        self._pusher = pusher
        self._version = 0
        self._num_pushes = 0
        self._suspect = self._dead = ""
        self._pushing = anyio.Lock()
        self._gate = anyio.Event()
        self._gate.set()
        self._open_requests: set[anyio.CancelScope] = set()
        self._states: dict[str, Any] = {}
        """What vLLM's front end knows of each `generate` under way."""
        self._num_holds = 0
        self._unproven: int | None = None
        """Version whose probe has not agreed yet."""
        self._score_ids = itertools.count()

    @property
    def weight_version(self) -> int:
        return self._version

    @property
    def pids(self) -> list[int]:
        """Processes of the engine: cores and workers."""
        return [process.pid for process in self._running.processes]

    def statistics(self) -> dict[str, float]:
        return self._running.counters.read()

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
        """See `Engine.generate`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed if self._running.takes_seeds else None,
            stop_token_ids=self._stop_token_ids,
            ignore_eos=True,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        try:
            with self._request(f"generate {request_id}"):
                await self._pass_gate()
                output = (await self._run(prompt_ids, params, request_id)).outputs[0]
                await self._pass_gate()  # a push that is not proven yet may have sampled its last tokens
        except BaseException:
            sampled = self.partial(request_id)
            if salvage is not None and sampled is not None:
                salvage(sampled)
            raise
        finally:
            self._states.pop(request_id, None)
        return completion_of(output, request_id)

    def partial(self, request_id: str) -> Completion | None:
        """See `Engine.partial`."""
        state = self._states.get(request_id)
        return None if state is None else sampled_so_far(state, self._unproven)

    async def watch(self) -> str:
        """Wait until the engine is lost and return why."""
        return await end_of(self._running, self._config, lambda: self._num_holds)

    def kill(self, reason: str) -> None:
        """Kill the engine's processes; every call under way raises `EngineDied`, and so does every later one."""
        self._dead = self._dead or reason
        self._running.kill()
        self._end_requests()

    async def score(self, token_ids: list[int]) -> list[float]:
        """See `Engine.score`."""
        with self._request("score"):
            await self._pass_gate()
            return await self._score(token_ids)

    async def push(self, staged: StagedWeights, send: Send | None = None) -> PushReport:
        """See `Engine.push`."""
        if self._pusher is None:
            raise PushRefused("this engine is a frozen copy and takes no pushes")
        async with self._pushing:
            self._refuse_if_lost()
            began = time.perf_counter()
            message = await self._pusher.check(staged, send)
            checked = time.perf_counter()
            self._gate = anyio.Event()
            self._num_holds += 1
            self._unproven = staged.version
            try:
                stall_s, commit_s = await self._pusher.commit(staged, message, send)
                # The prefix cache is keyed by tokens and salt: a new salt hides everything that old weights computed.
                self._num_pushes += 1
                committed = time.perf_counter()
                max_abs = await self._probe(staged)
            except PushRefused:
                self._unproven = None
                raise
            except (PushFailed, EngineDied) as error:
                self._suspect = str(error)
                self._end_requests()
                raise
            finally:
                self._num_holds += 1
                self._gate.set()
            self._version, self._unproven = staged.version, None
            return PushReport(
                version=staged.version,
                stage_s=checked - began,
                stall_s=stall_s,
                commit_s=commit_s,
                probe_s=time.perf_counter() - committed,
                probe_max_abs=max_abs,
            )

    async def _pass_gate(self) -> None:
        while not self._gate.is_set():  # a push may close it again before whoever waited here goes on
            await self._gate.wait()

    async def _probe(self, staged: StagedWeights) -> float:
        """Return the largest difference, nats, between the learner's log-probs of the probe and any engine's."""
        num_engines = self._config.data_parallel_size
        differences: list[float] = []
        try:
            with anyio.fail_after(self._config.push_timeout_s, shield=True):
                for rank in range(num_engines) if num_engines > 1 else (None,):
                    scores = await self._score(staged.probe_ids, rank)
                    differences += [abs(a - b) for a, b in zip(scores, staged.probe_logprobs, strict=True)]
        except (TimeoutError, EngineError, AlignmentError) as error:
            raise PushFailed(f"push of version {staged.version}: the probe could not be scored: {error}") from error
        max_abs = math.nan if any(map(math.isnan, differences)) else max(differences)  # `max` overlooks a NaN
        if not max_abs <= self._config.probe_tolerance:
            raise PushFailed(
                f"push of version {staged.version}: engine and learner differ by {max_abs:.2g} nats on the probe, "
                f"more than policy.probe_tolerance = {self._config.probe_tolerance:g}"
            )
        return max_abs

    async def _score(self, token_ids: list[int], data_parallel_rank: int | None = None) -> list[float]:
        from vllm import SamplingParams

        # vLLM skips the prefix cache for prompt log-probs: the answer always comes from the weights.
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, flat_logprobs=True, detokenize=False)
        output = await self._run(token_ids, params, f"score-{next(self._score_ids)}", data_parallel_rank)
        scores = list(output.prompt_logprobs.logprobs)
        if len(scores) != len(token_ids) - 1:
            raise AlignmentError(f"vLLM scored {len(scores)} of {len(token_ids) - 1} tokens")
        return scores

    async def _run(
        self, prompt_ids: list[int], params: Any, request_id: str, data_parallel_rank: int | None = None
    ) -> Any:
        """Run one request to its end and return vLLM's last output; abort it when cancelled.

        Args:
            prompt_ids: of the request.
            params: vLLM's.
            request_id: unique.
            data_parallel_rank: the engine that runs it; vLLM chooses where it is None.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        limit = self._config.max_model_len
        if not prompt_ids or len(prompt_ids) + params.max_tokens > limit:
            raise EngineError(
                f"request {request_id}: {len(prompt_ids)} prompt + {params.max_tokens} new tokens "
                f"do not fit policy.max_model_len = {limit}"
            )
        prompt: Any = {"prompt_token_ids": prompt_ids, "cache_salt": f"{self._version}.{self._num_pushes}"}
        try:
            # What `AsyncLLM.generate` does, which would throw away what was sampled before it lets a cancellation out.
            queue = await self._llm.add_request(request_id, prompt, params, data_parallel_rank=data_parallel_rank)
            self._states[request_id] = self._llm.output_processor.request_states.get(queue.request_id)
            output: Any = queue.get_nowait() or await queue.get()
            while not output.finished:
                output = queue.get_nowait() or await queue.get()
        except anyio.get_cancelled_exc_class():
            await self._abort(request_id)
            raise
        except EngineDeadError as error:
            where = f"; see vLLM's log in {self._log_dir}" if self._log_dir else ""
            raise EngineDied(f"vLLM's engine process died while {request_id} ran{where}") from error
        except Exception as error:  # vLLM hands over whatever went wrong inside
            await self._abort(request_id)
            failure = EngineDied if self._llm.errored else EngineError
            raise failure(f"vLLM failed request {request_id}: {error}") from error
        return output

    async def _abort(self, request_id: str) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        with anyio.move_on_after(_ABORT_S, shield=True), suppress(EngineDeadError):
            await self._llm.abort(request_id)

    @contextmanager
    def _request(self, what: str) -> Iterator[None]:
        """Bound a request in time, and end it at once when the engine dies or a push leaves its weights in doubt."""
        self._refuse_if_lost()
        deadline = anyio.current_time() + self._config.generate_timeout_s
        with anyio.CancelScope(deadline=deadline) as scope:
            self._open_requests.add(scope)
            try:
                yield
            finally:
                self._open_requests.discard(scope)
        if scope.cancelled_caught:
            self._refuse_if_lost()
            raise EngineError(
                f"{what}: no end within policy.generate_timeout_s = {self._config.generate_timeout_s:g} s"
            )
        self._refuse_if_lost()

    def _refuse_if_lost(self) -> None:
        if self._dead:
            raise EngineDied(self._dead)
        if self._suspect:
            raise PushFailed(f"the engine's weights are in doubt, restart it: {self._suspect}")

    def _end_requests(self) -> None:
        for scope in self._open_requests:
            scope.cancel()
