"""Data sets of the hub: what is asked, what is checked, and what is said when the hub misbehaves."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import huggingface_hub.utils._detect_agent
import huggingface_hub.utils._http
import huggingface_hub.utils.logging
import pytest

from fd_async.config.schema import Data
from fd_async.data.sources import Sources
from fd_async.data.sources.pinned import PINNED, Pinned
from fd_async.errors import ConfigError, PreflightError
from tests.fakes.hub_server import COMMIT, OTHER, REPOSITORY, FakeHub, serve_hub

ROWS = "".join(f'{{"name": "t{i}", "formal_statement": "theorem t{i} : {i} = {i} := by sorry"}}\n' for i in range(40))
PLACE = f"hub:{REPOSITORY}@{COMMIT}/data/test.jsonl"


class Impatient:
    """What the library knows of time: it waits between its own tries."""

    @staticmethod
    def sleep(seconds: float) -> None:
        """Go on at once."""

    time, monotonic = time.time, time.monotonic


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one data file and an empty cache."""
    with serve_hub({"README.md": b"words", "data/test.jsonl": ROWS.encode()}) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.utils._http, "time", Impatient)
        monkeypatch.setattr(huggingface_hub.file_download, "time", Impatient)
        monkeypatch.setattr(huggingface_hub.utils._detect_agent, "_registry", {})  # asks the hub for more than data
        yield hub


def read(place: str = PLACE, **keys: object) -> list[str]:
    return [row.name for row in Sources(Data(**keys)).read(place)]  # type: ignore[arg-type]


def test_a_file_is_read_once_and_then_from_the_cache(hub: FakeHub) -> None:
    """A pinned commit cannot change, so the second time nobody is asked, and offline mode reads it as well."""
    assert len(read()) == 40
    asked = len(hub.requests)
    assert len(read()) == len(read(offline=True)) == 40
    assert len(hub.requests) == asked


def test_the_only_data_file_need_not_be_named(hub: FakeHub) -> None:
    """Also offline, once it is in the cache; two of them are named in the refusal."""
    whole = f"hub:{REPOSITORY}@{COMMIT}"
    assert len(read(whole)) == len(read(whole, offline=True)) == 40
    hub.mode = "418 Teapot"
    with pytest.raises(PreflightError, match=r"the cache has data/test.jsonl, which data.offline = true takes"):
        read(whole)
    hub.mode = "honest"
    hub.files["data/train.parquet"] = b""
    with pytest.raises(PreflightError, match=r"has 2 data files \(data/test.jsonl, data/train.parquet\)"):
        read(whole)


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("other", f"the hub served the commit {OTHER}"),
        ("cut", "cannot be had from the hub"),
        ("changed", "is damaged: delete"),
        ("404 RepoNotFound", "no such data set"),
        ("404 RevisionNotFound", "no such commit"),
        ("404 EntryNotFound", "no such file"),
        ("403 GatedRepo", "accept its terms"),
        ("401 Unauthorized", "401 Unauthorized"),
        ("418 Teapot", "the hub"),
        ("trickle", r"within data.hub_timeout_s = 0.4 s"),
        ("hang", r"within data.hub_timeout_s = 0.4 s"),
    ],
)
def test_whatever_the_hub_does_is_one_line(hub: FakeHub, mode: str, said: str) -> None:
    """It names the source and never hangs longer than the deadline."""
    hub.mode = mode
    began = time.monotonic()
    with pytest.raises(PreflightError, match=said) as caught:
        read(hub_timeout_s=0.4 if mode in ("trickle", "hang") else 30.0)
    assert str(caught.value).startswith(f"hub:{REPOSITORY}@{COMMIT}")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 20
    hub.released.set()


def test_a_hub_that_refuses_is_told_from_offline_mode(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is offline on purpose learns how to fill the cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody + "/{repo_id}/{filename}")
    with pytest.raises(PreflightError, match="cannot be had from the hub: "):
        read()
    with pytest.raises(PreflightError, match=r"data.offline or HF_HUB_OFFLINE.*once with a connection") as caught:
        read(offline=True)
    assert str(tmp_path / "cache") in str(caught.value)


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=50)


def test_the_environment_turns_the_hub_off_and_names_another_one(hub: FakeHub, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_HUB_OFFLINE reach a command as they reach other tools."""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": hub.url}
    command = [sys.executable, "-m", "fd_async.cli", "data", PLACE]
    off = run(command, {**environment, "HF_HUB_OFFLINE": "1"})
    assert (off.returncode, off.stderr.count("\n")) == (3, 1)
    assert not hub.requests
    on = run(command, environment)
    assert on.returncode == 0, on.stderr
    assert "statements  40, 0 with a known proof" in on.stdout


@pytest.mark.parametrize("place", ["hub:a@main/x", "hub:a/b@main/x", f"hub:a/b@{COMMIT}/../x", "hub:a/b", "hub:"])
def test_a_data_set_needs_a_commit(place: str) -> None:
    """A branch moves, and with it what a run was trained on."""
    with pytest.raises(ConfigError, match="all 40 digits"):
        read(place)


def test_a_named_source_is_the_one_that_was_pinned(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file, its number of rows and its hash are demanded, each with its own line."""
    good = Pinned(address=PLACE, columns={}, num_rows=40, licence="MIT", is_split=True)
    for changes, said in (
        ({"file_sha256": "0" * 64}, "the file has the sha256"),
        ({"num_rows": 41}, "has 40 statements, pinned are 41"),
        ({"statements_sha256": "0" * 64}, "its statements have the sha256"),
    ):
        fields = {name: getattr(good, name) for name in good.__struct_fields__}
        monkeypatch.setitem(PINNED, "minif2f", Pinned(**{**fields, **changes}))
        with pytest.raises(PreflightError, match=said):
            read("minif2f")
    monkeypatch.setitem(PINNED, "leanworkbook", good)
    table = Data(num_train=20, num_test=5)
    train, test = (Sources(table).read("leanworkbook", role) for role in ("train", "test"))  # type: ignore[arg-type]
    assert (len(train), len(test)) == (20, 5)
    assert not {row.name for row in train} & {row.name for row in test}
    assert len(Sources(table).read("leanworkbook")) == 40


def test_a_hub_that_is_not_there_is_told_in_one_line(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The library tries again five times and would say so each time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nowhere)
    before = huggingface_hub.utils.logging.get_verbosity()
    with pytest.raises(PreflightError, match="cannot be had from the hub"):
        read(f"hub:{REPOSITORY}@{COMMIT}")
    assert (capsys.readouterr().err, caplog.text) == ("", "")
    assert huggingface_hub.utils.logging.get_verbosity() == before
