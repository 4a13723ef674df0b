"""One check on its way through the pool."""

from __future__ import annotations

from dataclasses import dataclass, field

from anyio import Event

from fd_async.errors import VerifierError
from fd_async.verifier.repl.schedule import Ticket
from fd_async.verifier.repl.workers import Slot


@dataclass(eq=False)
class Check:
    """A caller: in the queue, running, or set aside. It waits until `slot` or `error` is there."""

    since: float
    caller: str
    cost_key: str
    event: Event = field(default_factory=Event)
    slot: Slot | None = None
    error: VerifierError | None = None
    ticket: Ticket[Check] | None = None
    began_s: float = 0.0
    """`running_s` of its process when it began, and when it last went on."""
    resumed_s: float = 0.0
    budget_s: float = 0.0

    @property
    def ran_s(self) -> float:
        """Seconds that it has run until now."""
        return self.slot.repl.running_s - self.began_s if self.slot and self.slot.repl else 0.0

    @property
    def over_s(self) -> float:
        """Seconds beyond its budget since it last went on."""
        return self.slot.repl.running_s - self.resumed_s - self.budget_s if self.slot and self.slot.repl else 0.0
