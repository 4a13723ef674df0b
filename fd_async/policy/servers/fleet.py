"""All servers as one engine: who samples what, and one push to all of them."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import anyio

from fd_async.config.schema import Policy
from fd_async.errors import EngineDied, EngineError, PushFailed, PushRefused
from fd_async.policy.contract import Contract
from fd_async.policy.engine import Send
from fd_async.policy.manifest import check_manifest
from fd_async.policy.push import hash_file
from fd_async.policy.servers.member import Member
from fd_async.policy.servers.pushing import Weights
from fd_async.policy.servers.sampling import Finish, Sampling, Stay
from fd_async.policy.servers.together import Taken, push_to_all, report
from fd_async.policy.servers.watching import Watcher
from fd_async.policy.servers.wire import Down, LabelSpan, Unsuited
from fd_async.types import Completion, PushReport, StagedWeights, VersionSpan

_MAX_FRUITLESS = 5
"""Servers that may fail a request one after another without a token: what breaks each of them is the request."""
_LOYALTY = 4
"""Requests that a server may have more than the idlest one and still get the next turn of an attempt it knows."""
_MAX_KNOWN = 100_000


class Fleet:
    """An `Engine`. A request goes on at another server, from its tokens, when its server is lost."""

    def __init__(
        self, members: list[Member], watcher: Watcher, config: Policy, contract: Contract, stop_token_ids: list[int]
    ) -> None:
        self._members = members
        self._watcher = watcher
        self._config = config
        self._contract = contract
        self._stop_token_ids = stop_token_ids
        self._version = 0
        self._changed = anyio.Event()
        self._none_since: float | None = anyio.current_time()
        self._samplings: dict[str, Sampling] = {}
        self._known: dict[str, Member] = {}
        self._num_waiting = 0
        self._num_tokens = 0
        self._ids = itertools.count()
        self._pushing = anyio.Lock()

    @property
    def weight_version(self) -> int:
        return self._version

    def statistics(self) -> dict[str, float]:
        """Return `Engine.statistics`, and `serving`: servers that take requests."""
        reached = [member for member in self._members if member.state != "away"]
        queued = sum(member.gauges.get("num_requests_waiting", 0.0) for member in reached)
        return {
            "running": max(0.0, sum(len(member.stays) for member in reached) - queued),
            "waiting": self._num_waiting + queued,
            "kv_usage": max((member.gauges.get("kv_cache_usage_perc", 0.0) for member in reached), default=0.0),
            "tokens_generated": float(self._num_tokens),
            "serving": float(sum(member.state == "serving" for member in self._members)),
        }

    def on_change(self) -> None:
        """Wake those who wait for a server."""
        if any(member.state == "serving" for member in self._members):
            self._none_since = None
        elif self._none_since is None:
            self._none_since = anyio.current_time()
        self._changed.set()
        self._changed = anyio.Event()

    async def wait_until_reachable(self) -> None:
        """Wait until a push could go somewhere.

        Raises:
            EngineDied: no server came within `policy.start_timeout_s`.
        """
        await self._wait_for(lambda: any(member.state != "away" for member in self._members))

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
        self._require_fit(prompt_ids, max_tokens, request_id)
        sampling = Sampling(prompt_ids, max_tokens, request_id, seed)
        self._samplings[request_id] = sampling
        limit = self._config.generate_timeout_s
        try:
            with anyio.CancelScope(deadline=anyio.current_time() + limit) as scope:
                finish = await self._sample(sampling, scope, {"temperature": temperature, "top_p": top_p})
                return sampling.completion(finish)
            raise EngineError(f"generate {request_id}: no end within policy.generate_timeout_s = {limit:g} s")
        except BaseException:
            if salvage is not None and (partial := sampling.partial()) is not None:
                salvage(partial)
            raise
        finally:
            self._samplings.pop(request_id, None)

    def partial(self, request_id: str) -> Completion | None:
        """See `Engine.partial`."""
        sampling = self._samplings.get(request_id)
        return None if sampling is None else sampling.partial()

    async def score(self, token_ids: list[int]) -> list[float]:
        """See `Engine.score`."""
        self._require_fit(token_ids, 1, "score")
        limit = self._config.generate_timeout_s
        with anyio.CancelScope(deadline=anyio.current_time() + limit) as scope:
            reason = ""
            for _ in range(_MAX_FRUITLESS):
                member = await self._choose("", scope)
                try:
                    return await member.link.score(token_ids, f"score-{next(self._ids)}", member.salt)
                except (Down, Unsuited) as error:
                    self._watcher.lose(member, str(error))
                    reason = f"{member.name}: {error}"
            raise EngineError(f"score: {_MAX_FRUITLESS} servers failed it; the last one, {reason}")
        raise EngineError(f"score: no end within policy.generate_timeout_s = {limit:g} s")

    async def push(self, staged: StagedWeights, send: Send | None = None) -> PushReport:
        """See `Engine.push`. It succeeds when one server has the weights; the others are brought to them."""
        async with self._pushing:
            began = time.perf_counter()
            check_manifest(staged, self._contract)
            try:
                with anyio.fail_after(self._config.push_timeout_s):
                    weights = Weights(staged, await hash_file(staged))
            except TimeoutError as error:
                raise PushRefused(
                    f"push: checking the staged file took longer than policy.push_timeout_s ="
                    f" {self._config.push_timeout_s:g} s"
                ) from error
            results = await push_to_all(self._members, weights, self._config, self._watcher.lose)
            took = [result for result in results.values() if isinstance(result, Taken)]
            if not took:
                await self._settle_for_none(weights, results)
            self._watcher.weights = weights
            self._version = staged.version
            for member in self._members:
                if member.version != staged.version:
                    self._watcher.leave_behind(member, str(results.get(member, "it came while a push went on")))
                elif member.state == "behind":
                    member.move("serving")
            return report(weights, took, began)

    async def _settle_for_none(self, weights: Weights, results: dict[Member, Taken | Exception]) -> None:
        """Decide what a push means that no server took; return if one has taken it since.

        Raises:
            PushRefused: the old weights serve somewhere.
            PushFailed: the servers loaded it and are in doubt.
            EngineDied: all died, and none came back in time.
        """
        for kind in (PushRefused, PushFailed):
            for error in results.values():
                if isinstance(error, kind):
                    raise error
        # All died or are away: whichever comes back first shall get these weights; the file of older ones may be gone.
        self._watcher.weights = weights
        await self._wait_for(
            lambda: any(member.state == "serving" and member.version == weights.version for member in self._members)
        )

    async def _sample(self, sampling: Sampling, scope: anyio.CancelScope, params: dict[str, Any]) -> Finish:
        """Sample to the end, at as many servers as it takes."""
        fruitless = 0
        ticket = sampling.request_id.rpartition("-t")[0]
        while True:
            if finish := sampling.finish(self._stop_token_ids):
                return finish
            member = await self._choose(ticket, scope)
            before = len(sampling.token_ids)
            if finish := await self._stay(member, sampling, params):
                return finish
            fruitless = 0 if len(sampling.token_ids) > before else fruitless + 1
            if fruitless >= _MAX_FRUITLESS:
                raise EngineError(
                    f"request {sampling.request_id}: {fruitless} servers failed it; the last one, {member.name}:"
                    f" {member.reason}"
                )

    async def _stay(self, member: Member, sampling: Sampling, params: dict[str, Any]) -> Finish | None:
        """Sample at one server; None if that ended before the request did."""
        stay = sampling.stay = Stay(sampling)
        member.stays.add(stay)
        is_whole = False
        try:
            with stay.scope:
                finish = await self._run(member, sampling, stay, params)
                await member.verified.wait()
                is_whole = True
                return finish
        except (Down, Unsuited) as error:
            self._watcher.lose(member, str(error))
        finally:
            member.stays.discard(stay)
            sampling.stay = None
            if not is_whole:  # also when the caller leaves: what it is handed over must be good
                sampling.cut(stay.num_good)
        return None

    async def _run(self, member: Member, sampling: Sampling, stay: Stay, params: dict[str, Any]) -> Finish | None:
        """Take a stream to its end, and its versions from there."""
        body = {
            "request_id": f"{sampling.request_id}.{next(self._ids)}",
            "token_ids": sampling.prompt_ids + sampling.token_ids,
            "cache_salt": member.salt,
            "sampling_params": params
            | {
                "max_tokens": sampling.max_tokens - stay.start,
                "seed": sampling.seed,
                "stop_token_ids": self._stop_token_ids,
                "ignore_eos": True,
                "logprobs": 0,
                "detokenize": False,
            },
        }
        reason, labels = None, []
        async with aclosing(member.link.stream(body)) as deltas:
            async for delta in deltas:
                sampling.add(delta.token_ids, delta.logprobs, member.version)
                self._num_tokens += len(delta.token_ids)
                reason, labels = delta.finish_reason, delta.labels
        stay.has_seen_label = all(member.read_label(span.version) is not None for span in labels)
        sampling.relabel(stay.start, [_version(member, span) for span in labels])
        if reason == "abort":
            raise Down("it gave up a request")
        if reason not in ("stop", "length"):
            raise EngineError(f"request {sampling.request_id} ended with {reason!r}")
        return reason

    async def _choose(self, ticket: str, scope: anyio.CancelScope) -> Member:
        """Return the server for a request: the one that knows its attempt, or the one with the fewest requests."""
        left = scope.deadline - anyio.current_time()
        scope.deadline = math.inf  # its time is for sampling; this wait has a deadline of its own
        self._num_waiting += 1
        try:
            await self._wait_for(lambda: any(member.is_open for member in self._members))
        finally:
            self._num_waiting -= 1
        scope.deadline = anyio.current_time() + left
        candidates = [member for member in self._members if member.is_open]
        best = min(candidates, key=lambda member: len(member.stays))
        known = self._known.pop(ticket, None) if ticket else None
        if known is not None and known in candidates and len(known.stays) <= len(best.stays) + _LOYALTY:
            best = known
        if ticket:
            self._known[ticket] = best
            if len(self._known) > _MAX_KNOWN:
                del self._known[next(iter(self._known))]
        return best

    async def _wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait for a state of the servers, as long as any serves or `policy.start_timeout_s` has not passed.

        Raises:
            EngineDied: no server served for that long.
        """
        limit = self._config.start_timeout_s
        while not condition():
            changed, left = self._changed, None
            if self._none_since is not None:
                left = self._none_since + limit - anyio.current_time()
                if left <= 0:
                    states = "; ".join(f"{member.name}: {member.reason}" for member in self._members)
                    raise EngineDied(
                        f"no server of policy.servers has served for policy.start_timeout_s = {limit:g} s ({states});"
                        " start them with bin/fd-serve"
                    )
            with anyio.move_on_after(left):
                await changed.wait()

    def _require_fit(self, token_ids: list[int], max_tokens: int, request_id: str) -> None:
        limit, vocabulary = self._config.max_model_len, self._contract.num_embeddings
        if not token_ids or len(token_ids) + max_tokens > limit:
            raise EngineError(
                f"request {request_id}: {len(token_ids)} prompt + {max_tokens} new tokens do not fit"
                f" policy.max_model_len = {limit}"
            )
        # vLLM looks such an id up all the same, and its engine dies of it.
        if vocabulary and not 0 <= min(token_ids) <= max(token_ids) < vocabulary:
            raise EngineError(f"request {request_id}: a token id is outside the model's vocabulary of {vocabulary}")


def _version(member: Member, span: LabelSpan) -> VersionSpan:
    """Read the version of a span.

    Raises:
        Down: this run gave no weights of that label.
    """
    version = member.read_label(span.version)
    if version is None:
        raise Down(f"it sampled with weights {span.version!r}: restarted, or used by another run")
    return VersionSpan(version, span.start, span.end)
