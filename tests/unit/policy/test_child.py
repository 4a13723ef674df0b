"""What vLLM's processes do before vLLM does anything."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import pytest

from fd_async.policy.child import do_without_torchvision

PLACE = "torchvision.transforms.v2"


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Stand for what a search for torchvision finds; nothing at first."""
    answers: list[object] = [None]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: answers[0])
    monkeypatch.setattr(sys, "modules", {name: module for name, module in sys.modules.items() if name != PLACE})
    return answers


def test_the_import_of_a_missing_torchvision_succeeds_and_its_use_fails_by_name(found: list[object]) -> None:
    """`from torchvision.transforms.v2 import functional` is all that a text model needs."""
    do_without_torchvision()
    functional = importlib.import_module(PLACE).functional
    with pytest.raises(ImportError, match=r"functional\.resize: torchvision is not installed"):
        functional.resize()
    assert "torchvision" not in sys.modules, "who asks whether it is there must be told the truth"


def test_an_installed_torchvision_is_left_alone(found: list[object]) -> None:
    """Nothing stands in for it."""
    found[0] = object()
    do_without_torchvision()
    assert PLACE not in sys.modules
