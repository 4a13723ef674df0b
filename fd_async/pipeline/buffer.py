"""Admission and the queue of finished groups; the one place that bounds staleness.

A group is all attempts of one prompt. With batch B (groups), bound S and weight version v:

    capacity = (S + v + 1) * B - admitted          groups that may start; admitted counts trained ones, not dropped
    cut      needs B finished groups, and every unfinished or finished group admitted at version <= v - S among them

The second rule makes the bound hard without dropping: at version v at most B groups were admitted at <= v - S and are
not yet trained, so they fit the batch, and the learner waits for the slow ones instead of training past them.
Example: B = 2, S = 1, v = 0 admits 4 groups; groups 1..3 finish, group 0 is slow: batch 0 may be (1, 2), but batch 1
waits for group 0.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import anyio
from msgspec import Struct

Item = TypeVar("Item")


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


class RolloutBuffer(Generic[Item]):
    """Slots and finished groups. All methods run on the event loop; every change wakes the waiters.

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
        self._version = version
        self._last_version = last_version
        self._admitted = version * batch
        self._groups: dict[int, Group[Item]] = {}
        self._generating = 0
        self._changed = anyio.Condition()

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
        return sum(group.is_finished for group in self._groups.values())

    @property
    def num_outstanding(self) -> int:
        return len(self._groups)

    async def admit(self, ordinal: int) -> int:
        """Wait for a free slot, take it, and return the version that the group starts under."""
        async with self._changed:
            while self.capacity <= 0:
                await self._changed.wait()
            self._generating += self._group_size
            return self._add(ordinal, self._version, self._group_size)

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
        async with self._changed:
            turn = self._admitted // self._batch - self._max_staleness  # where `capacity` becomes positive
            version = turn if turn > self._version else min(admitted_version, self._version)
            if version <= self._version:
                self._generating += generating
            self._add(ordinal, version, unresolved)
            self._groups[ordinal].items.extend(items)
            self._changed.notify_all()
            return version

    async def begin(self, version: int) -> None:
        """Wait until a restored group may generate an attempt anew."""
        async with self._changed:
            if self._version >= version:
                return  # counted by `restore`
            while self._version < version:
                await self._changed.wait()
            self._generating += 1

    async def ready(self, ordinal: int, item: Item) -> None:
        """Add a finished attempt to its group."""
        async with self._changed:
            self._groups[ordinal].items.append(item)
            self._resolve(ordinal)

    async def drop(self, ordinal: int) -> list[Item]:
        """Give up one attempt of a group.

        Returns:
            The items of the group when this leaves it with fewer than `min_items`: the group is gone, its slot is free
            again, and the caller drops the items by name. Empty otherwise.
        """
        async with self._changed:
            return self._resolve(ordinal)

    async def cut(self) -> list[Group[Item]]:
        """Wait for a batch and take it, oldest first; the slots stay charged (the groups are trained)."""
        async with self._changed:
            while not self._is_cuttable():
                await self._changed.wait()
            finished = sorted(
                (group for group in self._groups.values() if group.is_finished),
                key=lambda group: (group.admitted_version, group.ordinal),
            )[: self._batch]
            for group in finished:
                del self._groups[group.ordinal]
            return finished

    async def give_back(self, groups: list[Group[Item]]) -> list[Item]:
        """Put groups of a cut back, some of whose items the caller has dropped.

        Returns:
            The items of groups that are left with fewer than `min_items`: those groups are gone, their slots are free
            again, and the caller drops the items by name.
        """
        orphans: list[Item] = []
        async with self._changed:
            for group in groups:
                if len(group.items) >= self.min_items:
                    self._groups[group.ordinal] = group
                else:
                    self._admitted -= 1
                    orphans += group.items
            self._changed.notify_all()
        return orphans

    async def publish(self, version: int) -> None:
        """Announce new weights; frees one batch of slots."""
        async with self._changed:
            self._version = version
            self._changed.notify_all()

    async def generated(self) -> None:
        """Note that one admitted attempt has ended its rollout."""
        async with self._changed:
            self._generating -= 1
            self._changed.notify_all()

    async def wait_all_generated(self) -> None:
        """Wait until every slot is taken and every rollout has ended (`sync` mode's barrier before feedback)."""
        async with self._changed:
            while self.capacity > 0 or self._generating > 0:
                await self._changed.wait()

    def _add(self, ordinal: int, version: int, unresolved: int) -> int:
        self._groups[ordinal] = Group(ordinal=ordinal, admitted_version=version, unresolved=unresolved, items=[])
        self._admitted += 1
        return version

    def _resolve(self, ordinal: int) -> list[Item]:
        group = self._groups[ordinal]
        group.unresolved -= 1
        self._changed.notify_all()
        if not group.is_finished:
            return []
        if len(group.items) >= self.min_items:
            return []
        del self._groups[ordinal]
        self._admitted -= 1
        return group.items

    def _is_cuttable(self) -> bool:
        due = [g for g in self._groups.values() if g.admitted_version <= self._version - self._max_staleness]
        return self.num_finished >= self._batch and all(group.is_finished for group in due)
