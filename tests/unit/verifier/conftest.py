"""Statements, configurations and a Lean without processes for the verifier's tests."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fd_async.config.schema import Verifier as VerifierTable
from fd_async.types import Statement
from fd_async.verifier.backend import LeanAnswer, LeanRequest
from fd_async.verifier.judge import Judge
from fd_async.verifier.messages import Message
from tests.fakes import repl_fake

FAKE_REPL = str(Path(repl_fake.__file__))
STATEMENT = Statement(name="foo", formal_statement="theorem foo (p q : Prop) (hp : p) : p ∨ q := by sorry")
AXIOMS = ["propext", "Classical.choice", "Quot.sound"]


def proof(tactics: str) -> str:
    """A file that states `foo` as given and proves it with these tactics."""
    return f"theorem foo (p q : Prop) (hp : p) : p ∨ q := by\n  {tactics}\n"


def fake_config(**changes: Any) -> VerifierTable:
    """A verifier table that runs the fake REPL, with short deadlines."""
    table: dict[str, Any] = {
        "backend": "repl",
        "command": [sys.executable, "-S", "-E", FAKE_REPL],
        "workers": 1,
        "spares": 1,
        "check_timeout_s": 5.0,
        "queue_timeout_s": 10.0,
        "import_timeout_s": 10.0,
        "memory_limit_gib": 4.0,
        "sandbox": "unsandboxed",
    }
    return VerifierTable(**{**table, **changes})


class ScriptedLean:
    """A LeanBackend in this process: the honest part of the fake REPL, and a record of the requests."""

    name = "scripted"
    toolchain = "none"
    root = "_root_."

    def __init__(self) -> None:
        self.requests: list[LeanRequest] = []

    async def run(self, request: LeanRequest) -> LeanAnswer:
        self.requests.append(request)
        repl_fake.ENVIRONMENTS.clear()
        body = repl_fake.answer(request.body, None)
        messages = _messages(body)
        probe = None
        sorries = len(body.get("sorries", []))
        if request.probe and not any(m.is_error for m in messages) and (request.probe_always or not sorries):
            probe = _messages(repl_fake.answer(request.probe, 0))
        return LeanAnswer(messages=messages, num_sorries=sorries, seconds=0.0, probe=probe)

    def statistics(self) -> Mapping[str, float]:
        return {}


def _messages(answer: dict[str, Any]) -> list[Message]:
    import msgspec

    return msgspec.convert(answer.get("messages", []), list[Message])


@pytest.fixture
def lean() -> ScriptedLean:
    """A fresh scripted Lean."""
    return ScriptedLean()


@pytest.fixture
def judge(lean: ScriptedLean) -> Judge:
    """A judge over the scripted Lean."""
    return Judge(lean, "", frozenset(AXIOMS), 2400)
