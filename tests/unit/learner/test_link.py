"""Messages, errors and checkpoints as the controller sees them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fd_async import errors
from fd_async.errors import LearnerError, NonFiniteLoss
from fd_async.learner.link import HEADER, Failed, Step, Stepped, as_error, decode_reply, encode, failure
from fd_async.learner.ranks import settings
from fd_async.types import StepReport
from tests.fakes.tiny_policy import tiny_config


def test_replies_survive_the_wire() -> None:
    """A report comes back equal, metrics and deltas included."""
    report = StepReport(
        step=3, metrics={"loss": 0.25}, token_deltas={"a": [0.0, -1.5]}, teacher_choices={"a": {1: [(7, 0.98)]}}
    )
    frame = encode(Stepped(id=7, report=report))
    assert HEADER.unpack(frame[: HEADER.size])[0] == len(frame) - HEADER.size
    reply = decode_reply(frame[HEADER.size :])
    assert isinstance(reply, Stepped)
    assert (reply.id, reply.report) == (7, report)


def test_the_sender_numbers_a_request() -> None:
    """One message object goes to several ranks under different ids."""
    assert b"\x2a" in encode(Step(step=1, samples=[]), 42)


def test_known_errors_cross_as_themselves() -> None:
    """A rank's typed error is raised as the same type, with its text."""
    error = as_error(failure(NonFiniteLoss("step 3: the loss is nan"), 1), rank=0)
    assert type(error) is NonFiniteLoss
    assert str(error) == "step 3: the loss is nan"


def test_unknown_errors_become_learner_errors_with_their_name() -> None:
    """Whatever a library raises arrives named; a name that is no exception of ours never becomes a class."""
    error = as_error(Failed(kind="OutOfMemoryError", text="no memory"), rank=2)
    assert type(error) is LearnerError
    assert str(error) == "learner rank 2 failed: OutOfMemoryError: no memory"
    assert type(as_error(Failed(kind="annotations", text=""), rank=0)) is LearnerError
    assert errors.LearnerError is LearnerError


def test_a_rank_learns_what_to_set_before_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs waiting threads do not spin, and ranks of one machine talk over its own loop."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    on_cpu = settings(tiny_config(learner={"ranks": 2}), on_one_machine=True)
    assert (on_cpu["DS_ACCELERATOR"], on_cpu["OMP_WAIT_POLICY"], on_cpu["OMP_NUM_THREADS"]) == ("cpu", "PASSIVE", "1")
    assert on_cpu.get("GLOO_SOCKET_IFNAME", "lo") == "lo"
    assert "GLOO_SOCKET_IFNAME" not in settings(tiny_config(learner={"ranks": 2}), on_one_machine=False)
    on_gpu = settings(tiny_config(learner={"ranks": 2, "gpus": [6, 7]}), on_one_machine=True)
    assert "DS_ACCELERATOR" not in on_gpu
    assert (on_gpu["CUDA_DEVICE_ORDER"], "CUDA_DEVICE_ORDER" in on_cpu) == ("PCI_BUS_ID", False)


def test_the_controllers_side_loads_without_torch() -> None:
    """Importing the client must not pay for torch, transformers or deepspeed."""
    code = (
        "import sys, fd_async.learner.client; sys.exit(bool({'torch', 'transformers', 'deepspeed'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0
