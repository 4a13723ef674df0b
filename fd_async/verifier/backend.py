"""What the judge needs of a Lean: one request, one answer, and four ways to fail.

A backend never judges. `VerifierError` (infrastructure) says nothing about the proof; the other failures were
caused by the input, twice if the cause was a crash.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from msgspec import Raw, Struct

from fd_async.errors import VerifierError
from fd_async.verifier.messages import Message


class LeanRequest(Struct, frozen=True):
    """`body` is compiled under `header`; `probe`, if any, is compiled after it and answered apart."""

    header: str
    body: str
    probe: str = ""
    probe_always: bool = False
    """Run the probe even after a body with `sorry`; never after one with errors."""
    infotree: bool = False
    """Ask for the elaborator's tree of the body (`infotree: full`: the others lack terms), where the backend has it."""
    caller: str = ""
    """Who asks (the rollout's id): the scheduler is fair between callers."""
    cost_key: str = ""
    """What is checked (the statement's name): earlier checks of it predict the seconds of this one."""


class LeanAnswer(Struct, frozen=True):
    """Positions count from the first line of `body`, or of `probe`.

    `probe` is None when none was asked for, or when the body already failed.
    """

    messages: list[Message]
    num_sorries: int
    seconds: float
    probe: list[Message] | None = None
    infotree: Raw | None = None
    """JSON as the REPL sent it; None when it was not asked for or not given."""
    queue_s: float = 0.0
    """Seconds of waiting for a worker, apart from `seconds`."""

    @property
    def errors(self) -> list[Message]:
        return [message for message in self.messages if message.is_error]


class CheckFailed(Exception):
    """Base of the failures that belong to the input. `args[0]` is one line."""


class CheckTimeout(CheckFailed):
    """The worker got its whole time and did not finish."""


class CheckOutOfMemory(CheckFailed):
    """Two workers ran out of memory on it."""


class CheckCrash(CheckFailed):
    """Two workers died of it."""


class HeaderRefused(VerifierError):
    """Lean does not accept the header; `args[0]` has its first error."""


class LeanBackend(Protocol):
    """One Lean to compile with."""

    name: str
    toolchain: str
    root: str
    """How a constant is named whatever namespaces are open: `_root_.`, or nothing where there are no namespaces."""

    async def run(self, request: LeanRequest) -> LeanAnswer:
        """Compile; raises CheckFailed or VerifierError."""
        ...

    def statistics(self) -> Mapping[str, float]:
        """Counters since the start; gauges `waiting` and `busy`."""
        ...
