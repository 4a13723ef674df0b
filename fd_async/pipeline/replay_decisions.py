"""Whether the queue decides again as it did: its notes, given to another buffer, must lead to the same batches.

    opened ▸ restored* ▸ (admitted | ready | dropped | cut | given_back | published)*      once per process of the run

Nothing waits here: where the buffer would, the run did something that its own rules do not allow.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from fd_async.data.ledger.recorded import Event
from fd_async.pipeline.buffer import Group, RolloutBuffer

Result = TypeVar("Result")


class Decisions:
    """What the notes of a run led to."""

    def __init__(self) -> None:
        self.num_cuts = 0
        self.cuts: dict[int, list[int]] = {}
        """Weight version -> ordinals of its last batch, in order."""
        self.difference = ""
        """The first event that the buffer would not have let happen; empty when there is none."""


class _WouldWait(Exception):
    """The buffer does not allow now what the run did."""


def decide_again(events: Iterable[Event]) -> Decisions:
    """Play the notes of a run; notes of other kinds are skipped."""
    decisions = Decisions()
    buffer: RolloutBuffer[None] | None = None
    batch: dict[int, Group[None]] = {}
    for number, event in enumerate(events, start=1):
        if event.kind == "opened":
            buffer = _open(event)
        elif event.kind not in _PLAYERS:
            continue
        elif buffer is None:
            decisions.difference = f"event {number} ({_words(event)}) comes before the queue was opened"
            return decisions
        else:
            try:
                batch = _PLAYERS[event.kind](buffer, event, batch)
            except (_WouldWait, KeyError) as error:
                why = "the queue would have waited" if isinstance(error, _WouldWait) else f"there is no group {error}"
                decisions.difference = f"event {number} ({_words(event)}): {why}"
                return decisions
            if event.kind == "cut":
                decisions.num_cuts += 1
                decisions.cuts[event.value] = list(batch)
                if list(batch) != _ordinals(event):
                    decisions.difference = (
                        f"event {number}: the batch of weight version {event.value} was prompts {event.subject}, "
                        f"the queue gives {' '.join(map(str, batch))}"
                    )
                    return decisions
    return decisions


def differs_from(decisions: Decisions, batches: Sequence[Sequence[int]]) -> str:
    """Say which trained batch is not the one that was cut; empty when all agree.

    Args:
        decisions: of the same run.
        batches: ordinals per step, from step 1, each once.
    """
    for version, trained in enumerate(batches):
        if decisions.cuts.get(version) != list(trained):
            cut = " ".join(map(str, decisions.cuts.get(version, []))) or "none"
            return f"step {version + 1} trained prompts {' '.join(map(str, trained))}, the queue gives {cut}"
    return ""


def _open(event: Event) -> RolloutBuffer[None]:
    batch, max_staleness, group_size, min_items, last_version = map(int, event.subject.split())
    return RolloutBuffer(
        batch=batch,
        max_staleness=max_staleness,
        group_size=group_size,
        min_items=min_items,
        version=event.value,
        last_version=last_version,
    )


Batch = dict[int, Group[None]]


def _admitted(buffer: RolloutBuffer[None], event: Event, batch: Batch) -> Batch:
    if buffer.capacity <= 0 or _at_once(buffer.admit(int(event.subject))) != event.value:
        raise _WouldWait
    return batch


def _restored(buffer: RolloutBuffer[None], event: Event, batch: Batch) -> Batch:
    ordinal, unresolved, num_items = map(int, event.subject.split())
    _at_once(buffer.restore(ordinal, event.value, unresolved, [None] * num_items, generating=0))
    return batch


def _ready(buffer: RolloutBuffer[None], event: Event, batch: Batch) -> Batch:
    _at_once(buffer.ready(int(event.subject), None))
    return batch


def _dropped(buffer: RolloutBuffer[None], event: Event, batch: Batch) -> Batch:
    _at_once(buffer.drop(int(event.subject)))
    return batch


def _cut(buffer: RolloutBuffer[None], event: Event, batch: Batch) -> Batch:
    if not buffer.is_cuttable:
        raise _WouldWait
    return {group.ordinal: group for group in _at_once(buffer.cut())}


def _given_back(buffer: RolloutBuffer[None], event: Event, batch: Batch) -> Batch:
    group = batch[int(event.subject)]
    del group.items[event.value :]
    _at_once(buffer.give_back([group]))
    return batch


def _published(buffer: RolloutBuffer[None], event: Event, batch: Batch) -> Batch:
    _at_once(buffer.publish(event.value))
    return batch


_PLAYERS = {
    "admitted": _admitted,
    "restored": _restored,
    "ready": _ready,
    "dropped": _dropped,
    "cut": _cut,
    "given_back": _given_back,
    "published": _published,
}


def _at_once(operation: Coroutine[Any, Any, Result]) -> Result:
    """Run what does not wait, in a thread that has no event loop."""
    try:
        operation.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the queue waits where it need not")


def _ordinals(event: Event) -> list[int]:
    return [int(word) for word in event.subject.split()]


def _words(event: Event) -> str:
    return f"{event.kind} {event.subject} at weight version {event.value}".replace("  ", " ")
