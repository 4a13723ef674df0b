"""A push to one server, in three steps that a push to all takes side by side.

    prepare    the server goes on; whatever is wrong is found here and refused
    commit     it is held, loads, gets the label of the version, is let go
    verify     the label is read back, the probe scored; only then do new requests come in

`PushRefused`: the old weights still serve there. `PushFailed`, `Down`: what serves there is in doubt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import msgspec
from msgspec import Struct

from fd_async.config.schema import Policy
from fd_async.errors import AlignmentError, PushFailed, PushRefused
from fd_async.policy.manifest import REFUSED, FileStamp
from fd_async.policy.push import PAUSE
from fd_async.policy.servers.member import Member
from fd_async.policy.servers.wire import Down, Rejected, Unsuited
from fd_async.types import StagedWeights

_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.005, 0.1
_DISCARD_S = 5.0
_RESUME_S = 20.0
_COLLECTIVE = "Call to collective_rpc method failed: "


FAILURES = (Down, Unsuited, Rejected, PushRefused, PushFailed, AlignmentError)
"""All that a server can do to a push, or to a look at it."""


class Weights(Struct, frozen=True):
    """Staged weights whose file has been checked."""

    staged: StagedWeights
    stamp: FileStamp

    @property
    def version(self) -> int:
        return self.staged.version


class Stall(Struct, frozen=True):
    """Seconds held, and of these seconds loading."""

    stall_s: float
    commit_s: float


async def prepare(member: Member, weights: Weights, config: Policy) -> None:
    """Have the server's workers build the new weights beside the old ones.

    Raises:
        PushRefused: nothing changed.
        Down: the server is gone.
    """
    message = {
        "staged": msgspec.to_builtins(weights.staged),
        "stamp": msgspec.to_builtins(weights.stamp),
        "ahead": config.push_ahead,
    }
    try:
        with _phase(member, "preparing the new weights", PushRefused, config):
            await member.link.call("fd_prepare", message)
            look_s = _FIRST_LOOK_S
            while await member.link.call("fd_is_prepared") != ["True"] * member.num_workers:
                await anyio.sleep(look_s)
                look_s = min(2 * look_s, _LONGEST_LOOK_S)
    except BaseException:
        await discard(member)
        raise


async def discard(member: Member) -> None:
    """Have the workers drop what they prepared, if the server still listens."""
    with anyio.move_on_after(_DISCARD_S, shield=True):
        try:
            await member.link.call("fd_discard")
        except (Down, Unsuited, Rejected):
            return  # what it prepared ends with it, or with the next push


async def commit(member: Member, weights: Weights, config: Policy) -> Stall:
    """Swap the prepared weights in. No new requests come in until `verify` has ended.

    Raises:
        PushRefused: nothing changed, requests come in again.
        PushFailed: the weights are in doubt; the server may be held still.
        Down: the server is gone.
    """
    mode, clear_cache = PAUSE[config.in_flight]
    member.begin_push()
    held = time.perf_counter()
    try:
        with _phase(member, "holding running requests (policy.in_flight)", PushRefused, config):
            await member.link.pause(mode, clear_cache)
        for stay in member.stays:
            stay.hold()
        began = time.perf_counter()
        # Half of a commit is no state to stop in: cancellation waits, the deadline of the phase stands.
        with anyio.CancelScope(shield=True), _phase(member, "loading weights", PushFailed, config):
            await member.link.call("fd_commit", weights.version)
            await member.link.set_label(member.label(weights.version))
        commit_s = time.perf_counter() - began
        with anyio.CancelScope(shield=True), _phase(member, "resuming", PushFailed, config):
            await member.link.resume()
    except (PushFailed, Down):
        member.end_push(trusted=False)
        raise
    except BaseException:  # refused, or cancelled before anything was loaded
        await _let_go(member)
        raise
    return Stall(stall_s=time.perf_counter() - held, commit_s=commit_s)


async def verify(member: Member, weights: Weights, config: Policy) -> float:
    """Return the largest difference, nats, between the learner's log-probs of the probe and the server's.

    Raises:
        PushFailed: another label, or a difference over `policy.probe_tolerance`.
        Down: the server is gone.
    """
    staged = weights.staged
    what = f"push of version {staged.version} to {member.name}"
    try:
        with _phase(member, "probing", PushFailed, config):
            label = await member.link.label()
            if label != member.label(staged.version):
                raise PushFailed(f"{what}: the server shows weights {label!r} after it")
            # The label hides from the prefix cache; prompt log-probs are not taken from it in any case.
            scores = await member.link.score(staged.probe_ids, f"probe-{label}-{member.num_pushes}", label)
    except BaseException:
        member.end_push(trusted=False)
        raise
    differences = [abs(a - b) for a, b in zip(scores, staged.probe_logprobs, strict=True)]
    max_abs = math.nan if any(map(math.isnan, differences)) else max(differences)  # `max` overlooks a NaN
    if not max_abs <= config.probe_tolerance:
        member.end_push(trusted=False)
        raise PushFailed(
            f"{what}: server and learner differ by {max_abs:.2g} nats on the probe, more than policy.probe_tolerance"
            f" = {config.probe_tolerance:g}"
        )
    member.has(staged.version)
    member.end_push(trusted=True)
    return max_abs


async def _let_go(member: Member) -> None:
    """Resume a server that nothing was changed in."""
    with anyio.move_on_after(_RESUME_S, shield=True) as scope:
        try:
            await member.link.resume()
        except (Down, Unsuited, Rejected) as error:
            member.end_push(trusted=False)
            member.take_away(str(error))
            return
        await discard(member)
        member.end_push(trusted=True)
    if scope.cancelled_caught:
        member.end_push(trusted=False)
        member.take_away("it did not resume after a push that was refused")


@contextmanager
def _phase(member: Member, what: str, failure: type[PushRefused | PushFailed], config: Policy) -> Iterator[None]:
    """Give a phase its deadline, and its errors a type that says what became of the weights."""
    where = f"push to {member.name}: {what}"
    try:
        with anyio.fail_after(config.push_timeout_s):
            yield
    except TimeoutError as error:
        raise failure(f"{where} took longer than policy.push_timeout_s = {config.push_timeout_s:g} s") from error
    except Down as error:
        text = str(error)
        # Of several workers one may refuse when another has loaded: that is a refusal only before the loading.
        if REFUSED in text and (failure is PushRefused or member.num_workers == 1):
            raise PushRefused(f"{where}: {text[text.index(REFUSED) :]}") from error
        if _COLLECTIVE in text:
            raise failure(f"{where} failed: {text.partition(_COLLECTIVE)[2]}") from error
        raise
    except (Unsuited, Rejected, AlignmentError) as error:
        raise failure(f"{where} failed: {error}") from error
