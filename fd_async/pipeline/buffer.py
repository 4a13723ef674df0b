"""Admission and the queue of finished groups; the one place that bounds staleness.

A group is all attempts of one prompt. With batch B (groups), bound S and weight version v:

    capacity = (S + v + 1) * B - admitted          groups that may start; admitted counts trained ones, not dropped
    cut      needs B finished groups, oldest first; where they are newer than version a, at most (a + S - v) * B groups
             admitted at <= a may be left unfinished

The second rule makes the bound hard without dropping: a group admitted at a is trained at version a + S at the latest,
(a + S - v) batches are left until then, and the learner waits for the slow ones instead of training past them.
Example: B = 2, S = 1, v = 0 admits 4 groups; groups 1..3 finish, group 0 is slow: batch 0 may be (1, 2), but batch 1
waits for group 0.

Everything that changes does so between two turns of the event loop, and only those are woken whose wait is over: with
10,000 attempts under way a change costs what it costs with ten. Each change is noted (`listen`), in the order in which
it took place; the notes of a run, given to another buffer, must lead to the same batches (`pipeline.replay`).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import anyio
from msgspec import Struct

Item = TypeVar("Item")
Note = Callable[[str, str, int], None]
"""Takes kind, subject and value of a change."""


class Group(Struct, Generic[Item]):
    """Attempts of one prompt on their way to the learner."""

    ordinal: int
    admitted_version: int
    unresolved: int
    """Attempts that are neither ready nor dropped."""
    items: list[Item]

    @property
    def is_finished(self) -> bool:
        return self.unresolved == 0


class _Signal:
    """Wakes all who wait at this moment."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    async def wait(self) -> None:
        await self._event.wait()

    def send(self) -> None:
        self._event.set()
        self._event = anyio.Event()


class RolloutBuffer(Generic[Item]):
    """Slots and finished groups. All methods run on the event loop.

    Args:
        batch: groups per gradient step.
        max_staleness: S, in weight versions.
        group_size: attempts per group.
        min_items: a finished group with fewer items is dropped whole (GRPO needs 2 to compare).
        version: published weight version; trained groups so far are version * batch.
        last_version: versions beyond this are never trained, so nothing is admitted for them.
    """

    def __init__(
        self, *, batch: int, max_staleness: int, group_size: int, min_items: int, version: int, last_version: int
    ) -> None:
        self._batch = batch
        self._max_staleness = max_staleness
        self._group_size = group_size
        self.min_items = min_items
        self._note: Note = lambda kind, subject, value: None
        self._version = version
        self._last_version = last_version
        self._admitted = version * batch
        self._groups: dict[int, Group[Item]] = {}
        self._finished: list[tuple[int, int]] = []
        """Heap of (admitted version, ordinal) of the finished groups."""
        self._num_finished = Counter[int]()
        """Admitted version -> finished groups; no zeros."""
        self._unfinished = Counter[int]()
        """Admitted version -> unfinished groups; no zeros."""
        self._generating = self._unresolved = 0
        self._slot, self._batch_ready, self._published, self._all_generated = (_Signal() for _ in range(4))

    @property
    def version(self) -> int:
        return self._version

    @property
    def capacity(self) -> int:
        """Groups that may start now; negative after a resume that brought many queued groups."""
        ahead = min(self._max_staleness + self._version + 1, self._last_version)
        return ahead * self._batch - self._admitted

    @property
    def num_finished(self) -> int:
        return len(self._finished)

    @property
    def num_outstanding(self) -> int:
        return len(self._groups)

    @property
    def num_unresolved(self) -> int:
        """Attempts that hold a slot and are neither ready nor dropped."""
        return self._unresolved

    @property
    def is_cuttable(self) -> bool:
        """Whether a batch is there that leaves no more unfinished groups than later batches take in time."""
        if len(self._finished) < self._batch:
            return False
        finished = unfinished = 0
        for version in sorted(self._num_finished.keys() | self._unfinished.keys()):
            finished += self._num_finished[version]
            if finished >= self._batch:
                break  # the batch has none newer than this: waiting would not make it older
            unfinished += self._unfinished[version]
            if unfinished > max(0, version + self._max_staleness - self._version) * self._batch:
                return False
        return True

    def listen(self, note: Note) -> None:
        """Tell `note` of every change from now on, and first what the buffer is."""
        bounds = (self._batch, self._max_staleness, self._group_size, self.min_items, self._last_version)
        note("opened", " ".join(map(str, bounds)), self._version)
        self._note = note

    async def admit(self, ordinal: int) -> int:
        """Wait for a free slot, take it, and return the version that the group starts under."""
        while self.capacity <= 0:
            await self._slot.wait()
        self._generating += self._group_size
        self._add(Group(ordinal=ordinal, admitted_version=self._version, unresolved=self._group_size, items=[]))
        self._note("admitted", str(ordinal), self._version)
        return self._version

    async def restore(
        self, ordinal: int, admitted_version: int, unresolved: int, items: list[Item], *, generating: int
    ) -> int:
        """Put back a group that the ledger holds, without waiting: it was admitted before the restart.

        A resume that goes far back restores more groups than may be under way at once. What such a group lacks is
        generated when admission would have let it in, or it would be too old when it is trained.

        Args:
            ordinal: of the group; groups come in the order of their ordinals.
            admitted_version: as recorded; versions after the checkpoint no longer exist and count as the current one.
            unresolved: attempts that still need generation or feedback.
            items: attempts that are ready.
            generating: attempts that are generated again.

        Returns:
            The version under which those start, see `begin`.
        """
        self._note("restored", f"{ordinal} {unresolved} {len(items)}", admitted_version)
        turn = self._admitted // self._batch - self._max_staleness  # where `capacity` becomes positive
        version = turn if turn > self._version else min(admitted_version, self._version)
        if version <= self._version:
            self._generating += generating
        self._add(Group(ordinal=ordinal, admitted_version=version, unresolved=unresolved, items=list(items)))
        return version

    async def begin(self, version: int) -> None:
        """Wait until a restored group may generate an attempt anew."""
        if self._version >= version:
            return  # counted by `restore`
        while self._version < version:
            await self._published.wait()
        self._generating += 1

    async def ready(self, ordinal: int, item: Item) -> None:
        """Add a finished attempt to its group."""
        self._note("ready", str(ordinal), 0)
        self._groups[ordinal].items.append(item)
        self._resolve(ordinal)

    async def drop(self, ordinal: int) -> list[Item]:
        """Give up one attempt of a group.

        Returns:
            The items of the group when this leaves it with fewer than `min_items`: the group is gone, its slot is free
            again, and the caller drops the items by name. Empty otherwise.
        """
        self._note("dropped", str(ordinal), 0)
        return self._resolve(ordinal)

    async def cut(self) -> list[Group[Item]]:
        """Wait for a batch and take it, oldest first; the slots stay charged (the groups are trained)."""
        while not self.is_cuttable:
            await self._batch_ready.wait()
        oldest = [heapq.heappop(self._finished) for _ in range(self._batch)]
        self._num_finished -= Counter(version for version, _ in oldest)
        ordinals = [ordinal for _, ordinal in oldest]
        self._note("cut", " ".join(map(str, ordinals)), self._version)
        return [self._groups.pop(ordinal) for ordinal in ordinals]

    async def give_back(self, groups: Sequence[Group[Item]]) -> list[Item]:
        """Put groups of a cut back, some of whose items the caller has dropped.

        Returns:
            The items of groups that are left with fewer than `min_items`: those groups are gone, their slots are free
            again, and the caller drops the items by name.
        """
        orphans: list[Item] = []
        for group in groups:
            self._note("given_back", str(group.ordinal), len(group.items))
            if len(group.items) >= self.min_items:
                self._groups[group.ordinal] = group
                self._push(group)
            else:
                self._admitted -= 1
                orphans += group.items
        self._wake()
        return orphans

    async def publish(self, version: int) -> None:
        """Announce new weights; frees one batch of slots."""
        self._note("published", "", version)
        self._version = version
        self._published.send()
        self._wake()

    async def generated(self) -> None:
        """Note that one admitted attempt has ended its rollout."""
        self._generating -= 1
        self._wake()

    async def wait_all_generated(self) -> None:
        """Wait until every slot is taken and every rollout has ended (`sync` mode's barrier before feedback)."""
        while self.capacity > 0 or self._generating > 0:
            await self._all_generated.wait()

    def _add(self, group: Group[Item]) -> None:
        self._groups[group.ordinal] = group
        self._admitted += 1
        self._unresolved += group.unresolved
        if group.is_finished:
            self._push(group)
        else:
            self._unfinished[group.admitted_version] += 1
        self._wake()

    def _push(self, group: Group[Item]) -> None:
        heapq.heappush(self._finished, (group.admitted_version, group.ordinal))
        self._num_finished[group.admitted_version] += 1

    def _resolve(self, ordinal: int) -> list[Item]:
        group = self._groups[ordinal]
        group.unresolved -= 1
        self._unresolved -= 1
        orphans: list[Item] = []
        if group.is_finished:
            self._unfinished.subtract([group.admitted_version])
            if not self._unfinished[group.admitted_version]:
                del self._unfinished[group.admitted_version]
            if len(group.items) >= self.min_items:
                self._push(group)
            else:
                del self._groups[ordinal]
                self._admitted -= 1
                orphans = group.items
        self._wake()
        return orphans

    def _wake(self) -> None:
        """Wake those whose wait this change may have ended."""
        if self.capacity > 0:
            self._slot.send()
        elif self._generating <= 0:
            self._all_generated.send()
        if self.is_cuttable:
            self._batch_ready.send()
