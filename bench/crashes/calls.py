"""What the lives of a run bought, and which of it their ledger must have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct, field

RECORDED_S = 1.0
"""An answer that was delivered longer than this before a kill must be in the ledger.

Delivered is what the seller's `send` has returned from: it waits in the buyer's socket. From there the buyer's event
loop has to wake, read it, and commit it. With stand-ins that takes 0.6 ms, at most 4 ms in 246 calls on two idle cores,
and at most 0.19 s in 245 calls where four busy loops of higher priority had the same two cores: a fifth of the bound.
Only a machine that withholds a core for a whole second makes a sound run look broken.
"""


class Purchases(Struct):
    """What one life of a run bought."""

    sold: Counter[str] = field(default_factory=Counter)
    """Question -> how often its answer was paid."""
    delivered_at: dict[str, float] = field(default_factory=dict)
    """Question -> `time.monotonic()` right after its answer was first sent; that clock is the machine's."""

    def deliver(self, key: str, at: float) -> None:
        """Note that an answer was sent; a second one to the same question changes nothing."""
        self.delivered_at.setdefault(key, at)


class Calls(Struct, frozen=True, kw_only=True):
    """What became of the paid calls of all lives of a run."""

    rebought: int
    """Answers that were bought although the ledger had them, or twice in one life."""
    lost: int
    """Answers that had to be in the ledger and were not."""
    due: int
    """Answers that had to be in the ledger: of these `lost` are counted."""
    cut_off: int
    """Answers on their way at a kill: not in the ledger, and nobody can blame it."""
    oldest_cut_off_s: float
    """The longest that one of those had been delivered when the kill came; near `RECORDED_S` the bound is too tight."""


def count_calls(
    bought: Sequence[Purchases], recorded: Sequence[frozenset[str]], killed_at: Sequence[float | None]
) -> Calls:
    """Compare what was sold with what the ledger had after each life.

    An answer that is not in the ledger when its buyer is killed is lost with it. On its way it may be until
    `RECORDED_S` after its delivery; later it is the run that lost it. A life that ended by itself has waited for every
    answer that it paid, so all of them must be there.

    Args:
        bought: for each life; the last ones may be missing where they bought nothing.
        recorded: questions whose answers the ledger had after each life.
        killed_at: `time.monotonic()` of the kill of each life; None where it ended by itself.
    """
    again = lost = due = cut_off = 0
    oldest = 0.0
    for life, purchases in enumerate(bought):
        before = recorded[life - 1] if life else frozenset[str]()
        kill = killed_at[life]
        for key, count in purchases.sold.items():
            again += count if key in before else count - 1
            age = kill - purchases.delivered_at.get(key, kill) if kill is not None else float("inf")
            is_there, is_due = key in recorded[life], age >= RECORDED_S
            due += is_due
            lost += is_due and not is_there
            if not is_there and not is_due:
                cut_off += 1
                oldest = max(oldest, age)  # negative where the answer came after the kill
    return Calls(rebought=again, lost=lost, due=due, cut_off=cut_off, oldest_cut_off_s=oldest)


def call_figures(runs: Iterable[Calls]) -> dict[str, Any]:
    """Add the calls of several runs up."""
    calls = list(runs)
    return {
        "rebought": sum(run.rebought for run in calls),
        "lost_answers": sum(run.lost for run in calls),
        "due_answers": sum(run.due for run in calls),
        "cut_off_calls": sum(run.cut_off for run in calls),
        "oldest_cut_off_s": round(max((run.oldest_cut_off_s for run in calls), default=0.0), 4),
    }
