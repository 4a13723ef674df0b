"""Who looks after the servers: one loop for each asks every second, takes it away when it fails, and brings it back.

A server that comes back is asked what it is, resumed (a controller that was killed may have left it held), given the
weights that all should have, and probed, before it gets a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import structlog

from fd_async.config.schema import RunConfig
from fd_async.errors import PushRefused
from fd_async.policy.servers.member import FRESH_LABEL, Member
from fd_async.policy.servers.pushing import FAILURES, Weights, commit, prepare, verify
from fd_async.policy.servers.wire import Down, Unsuited

_LOOK_S = 1.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.5, 15.0
_STEADY_S = 30.0
"""A server that fails again before has to wait twice as long as the last time."""
_CHECK_IDS = [1, 2]
log = structlog.get_logger(__name__)


class Watcher:
    """What the loops share.

    Args:
        config: of the run.
        fingerprint: of the checkpoint that the run starts from.
        on_event: told of servers that leave and come back, as (kind, one line).
    """

    def __init__(self, config: RunConfig, fingerprint: str, on_event: Callable[[str, str], None]) -> None:
        self.weights: Weights | None = None
        """What every server should serve; None before the first push."""
        self._config = config
        self._policy = config.policy
        self._fingerprint = fingerprint
        self._on_event = on_event

    async def watch(self, member: Member) -> None:
        """Look after one server until cancelled."""
        retry_s, joined = _FIRST_RETRY_S, None
        while True:
            if await self._attend(member):
                joined = anyio.current_time() if joined is None else joined
                if anyio.current_time() - joined > _STEADY_S:
                    retry_s = _FIRST_RETRY_S
                await anyio.sleep(_LOOK_S)
            if member.state != "serving":
                joined = None
                await anyio.sleep(retry_s)
                retry_s = min(2 * retry_s, _LONGEST_RETRY_S)

    async def admit(self, member: Member) -> None:
        """Find out what a server is, and have it serve if it may.

        Raises:
            Unsuited: it was not started for this run.
            Down, PushRefused, PushFailed: not now.
        """
        label = await self._question(member)
        member.shows = label
        if self.weights is None:
            await self._admit_first(member, label)
        elif member.in_doubt or label != member.label(self.weights.version):
            member.version = -1
            member.move("behind", f"it came with weights {label!r}")
        else:
            async with member.pushing:
                await verify(member, self.weights, self._policy)
            self._serve(member)

    async def look(self, member: Member) -> None:
        """Ask a server for its label, which its engine answers between two steps, and how full it is.

        Raises:
            Down: no answer, or weights that it should not have.
        """
        before, num_pushes = list(member.stays), member.num_pushes
        label = await self._label(member)
        if member.state == "away" or member.num_pushes != num_pushes or not member.verified.is_set():
            return  # a push reads the label back itself
        if label != member.shows:
            raise Down(f"it shows weights {label!r} instead of {member.shows!r}: restarted, or used by another run")
        for stay in before:
            stay.has_seen_label = True
        with self._deadline("/metrics"):
            member.gauges = await member.link.gauges()

    def lose(self, member: Member, reason: str) -> None:
        """Take a server away and say so, once."""
        if member.take_away(reason):
            self._say("server_lost", f"{member.name} is out: {reason}")

    def miss(self, member: Member, reason: str) -> None:
        """Note that a server is not there yet."""
        member.reason = reason
        self._say("server_missing", f"{member.name} is not there yet: {reason}")

    def leave_behind(self, member: Member, reason: str) -> None:
        """Give a server that missed a push no more requests."""
        if member.state == "serving":
            member.move("behind", reason)
            self._say("server_behind", f"{member.name} gets no new requests: {reason}")

    async def _attend(self, member: Member) -> bool:
        """Do what a server needs now; return whether it serves."""
        if member.state == "away" and member.pushing.locked():
            return False  # the push that lost it still has something to end there
        try:
            await (self.admit(member) if member.state == "away" else self.look(member))
            if member.state == "behind":
                await self._bring(member)
        except PushRefused as refusal:
            if member.reason != str(refusal):
                self._say("server_behind", f"{member.name} gets no requests: {refusal}")
            member.reason = str(refusal)
        except FAILURES as error:
            if isinstance(error, Unsuited) and member.reason != str(error):
                self._say("server_refused", f"{member.name}: {error}")
            self.lose(member, str(error))
            member.reason = str(error)
        return member.state == "serving"

    async def _admit_first(self, member: Member, label: str) -> None:
        """Admit a server before any push: only the weights that it started with are known."""
        first = member.label(0)
        if label == FRESH_LABEL:
            with self._deadline("/update_weight_version"):
                await member.link.set_label(first)
        elif label != first or member.in_doubt:
            member.version = -1
            member.move("behind", f"it has weights {label!r} of something else; the first push replaces them")
            return
        member.has(0)
        member.end_push(trusted=True)
        self._serve(member)

    async def _bring(self, member: Member) -> None:
        """Push the weights that all should have to one server."""
        weights = self.weights
        if weights is None or member.pushing.locked():
            return
        async with member.pushing:
            if member.version != weights.version or member.in_doubt:
                await prepare(member, weights, self._policy)
                await commit(member, weights, self._policy)
                await verify(member, weights, self._policy)
        if weights is self.weights and member.state == "behind":
            self._serve(member)

    def _serve(self, member: Member) -> None:
        if self.weights is not None and member.version != self.weights.version:
            member.move("behind", "a push went on while it was admitted")
            return
        member.move("serving")
        self._say("server_joined", f"{member.name} serves version {member.version}")

    async def _label(self, member: Member) -> str:
        with self._deadline("the label of its weights"):
            return await member.link.label()

    async def _question(self, member: Member) -> str:
        """Find out whether a server suits this run, try every kind of route, and return the label that it shows."""
        try:
            label = await self._label(member)
            with self._deadline("a description"):
                self._require_suited(member, await self._describe(member))
                await member.link.resume()
                await member.link.score(_CHECK_IDS, f"check-{member.num_pushes}", "check")
        except Unsuited as error:
            raise Unsuited(
                f"{error}; start it with bin/fd-serve and this run's configuration (docs/servers.md)"
            ) from error
        return label

    async def _describe(self, member: Member) -> list[dict[str, Any]]:
        try:
            return await member.link.call("fd_describe")
        except Down as error:
            if "fd_describe" in str(error):
                raise Unsuited("its workers lack the extension that takes pushes") from error
            raise

    def _require_suited(self, member: Member, rows: list[dict[str, Any]]) -> None:
        """Hold what the workers say of themselves to the configuration.

        Raises:
            Unsuited: names the first difference.
        """
        row = rows[0] if rows and isinstance(rows[0], dict) else {}
        if row.get("fingerprint") != self._fingerprint:
            path = self._config.model.path
            raise Unsuited(f"it serves another checkpoint ({row.get('model')}) than model.path = {path}")
        for name, wanted in (
            ("dtype", self._config.model.dtype),
            ("logprobs_mode", "processed_logprobs"),
            ("data_parallel_size", 1),
        ):
            if row.get(name) != wanted:
                raise Unsuited(f"it runs with {name} = {row.get(name)}, not {wanted}")
        if int(row.get("max_model_len") or 0) < self._policy.max_model_len:
            raise Unsuited(
                f"its max_model_len = {row.get('max_model_len')} is below policy.max_model_len ="
                f" {self._policy.max_model_len}"
            )
        member.num_workers = len(rows)

    @contextmanager
    def _deadline(self, what: str) -> Iterator[None]:
        """Bound a question by `policy.heartbeat_s`; where that is 0, still by something."""
        key = "heartbeat_s" if self._policy.heartbeat_s else "push_timeout_s"
        limit = getattr(self._policy, key)
        try:
            with anyio.fail_after(limit):
                yield
        except TimeoutError as error:
            raise Down(f"no answer to {what} within policy.{key} = {limit:g} s") from error

    def _say(self, kind: str, text: str) -> None:
        log.info(kind, text=text)
        self._on_event(kind, text)
