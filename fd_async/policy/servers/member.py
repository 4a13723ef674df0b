"""One server of the fleet: what is known of it, and the requests that it runs.

away ▸ behind ▸ serving          `watching` moves it to the right
away ◂──────────────┘            whoever finds it dead, or its weights in doubt, takes it away
      behind ◂──────┘            it missed a push: it gets no new requests, those it has may end
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import anyio

from fd_async.policy.servers.sampling import Stay
from fd_async.policy.servers.wire import Link

FRESH_LABEL = "default"
"""Label of a vLLM that has the weights it was started with."""


class Member:
    """State of one server; changes are told to `on_change`."""

    def __init__(self, link: Link, run_label: str, on_change: Callable[[], None]) -> None:
        self.link = link
        self.state: Literal["away", "behind", "serving"] = "away"
        self.reason = "not reached yet"
        """Why it is away or behind."""
        self.version = -1
        """Of the weights that it has; -1 for weights that are not this run's."""
        self.shows = ""
        """The label that it must show."""
        self.num_pushes = 0
        self.in_doubt = False
        """Its weights may be neither the old nor the new ones."""
        self.num_workers = 1
        self.stays: set[Stay] = set()
        self.gauges: dict[str, float] = {}
        self.pushing = anyio.Lock()
        self.verified = anyio.Event()
        """Unset while what it samples comes from weights that no probe has confirmed."""
        self.verified.set()
        self._run_label = run_label
        self._on_change = on_change

    @property
    def name(self) -> str:
        return self.link.url

    @property
    def is_open(self) -> bool:
        """Whether it takes requests now."""
        return self.state == "serving" and self.verified.is_set()

    @property
    def salt(self) -> str:
        """Key of the prefix cache: hides what other weights, or this version before a failed push, computed."""
        return f"{self._run_label}.{self.version}.{self.num_pushes}"

    def label(self, version: int) -> str:
        """Return the label of a version in this run."""
        return f"{self._run_label}-{version}"

    def read_label(self, label: str) -> int | None:
        """Return the version of a label; None if this run did not give it."""
        run, _, version = label.rpartition("-")
        return int(version) if run == self._run_label and version.isdecimal() else None

    def has(self, version: int) -> None:
        """Note that it holds this run's weights of a version, and shows their label."""
        self.version, self.shows, self.in_doubt = version, self.label(version), False

    def move(self, state: Literal["behind", "serving"], reason: str = "") -> None:
        self.state, self.reason = state, reason
        self._on_change()

    def take_away(self, reason: str) -> bool:
        """End its requests, which go on elsewhere, and give it none. Returns False if it was away already."""
        if self.state == "away":
            self.reason = reason
            return False
        self.state, self.reason = "away", reason
        for stay in self.stays:
            stay.scope.cancel()
        self._on_change()
        return True

    def begin_push(self) -> None:
        self.num_pushes += 1
        self.verified = anyio.Event()

    def end_push(self, *, trusted: bool) -> None:
        """Let requests in again; those that ended meanwhile go on, or with doubtful weights somewhere else."""
        if trusted:
            for stay in self.stays:
                stay.trust()
            self.verified.set()
        else:
            self.in_doubt = True
        self._on_change()
