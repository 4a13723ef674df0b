"""Where log lines go and what never reaches them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from fd_async.telemetry.logs import OWN, setup_logging
from fd_async.telemetry.redact import protect, redact


@pytest.fixture(autouse=True)
def _logging_restored() -> Iterator[None]:
    """Give other tests the logging that they found."""
    root, own = logging.getLogger(), logging.getLogger(OWN)
    before = root.handlers[:], root.level, own.handlers[:], own.level, own.propagate
    yield
    root.handlers[:], own.handlers[:] = before[0], before[2]
    root.setLevel(before[1])
    own.setLevel(before[3])
    own.propagate = before[4]
    logging.captureWarnings(False)
    structlog.reset_defaults()


def rows(path: Path) -> list[dict[str, object]]:
    """Read a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_own_events_go_to_the_console_and_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys and values stay apart in the file; debug stays away at level info."""
    logs = setup_logging(tmp_path, "info")
    log = structlog.stdlib.get_logger("fd_async.test")
    log.info("weights_published", weight_version=12, path=Path("a"))
    log.debug("hidden")
    logs.close()
    (row,) = rows(tmp_path / "logs" / "controller.jsonl")
    assert (row["event"], row["weight_version"], row["path"], row["level"]) == ("weights_published", 12, "a", "info")
    err = capsys.readouterr().err
    assert "weights_published" in err
    assert "weight_version=12" in err
    assert "\x1b" not in err


def test_a_traceback_reaches_the_file(tmp_path: Path) -> None:
    """It is rendered where the exception is, not in the writing thread."""
    logs = setup_logging(tmp_path, "info")
    try:
        raise RuntimeError("the cause")
    except RuntimeError:
        structlog.stdlib.get_logger("fd_async.test").exception("failed")
    logs.close()
    (row,) = rows(tmp_path / "logs" / "controller.jsonl")
    assert "RuntimeError: the cause" in str(row["exception"])


def test_other_libraries_stay_off_the_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their warnings are in a file, their chatter nowhere."""
    noisy, kept = logging.getLogger("vllm"), logging.FileHandler(tmp_path / "vllm.log")
    noisy.handlers[:] = [logging.StreamHandler(sys.stdout), kept]
    logs = setup_logging(tmp_path, "info")
    logging.getLogger("vllm.engine").info("chatter")
    logging.getLogger("vllm.engine").warning("low on %s", "memory")
    logs.close()
    text = (tmp_path / "logs" / "third_party.log").read_text()
    assert "vllm.engine: low on memory" in text
    assert "chatter" not in text
    out = capsys.readouterr()
    assert "memory" not in out.out + out.err
    assert noisy.handlers == [kept]
    noisy.handlers.clear()
    kept.close()
    assert not (tmp_path / "logs" / "controller.jsonl").exists()


def test_under_the_live_view_only_warnings_reach_the_console(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file still has everything."""
    logs = setup_logging(tmp_path, "info", live=True)
    log = structlog.stdlib.get_logger("fd_async.test")
    log.info("quiet_event")
    log.warning("loud_event")
    logs.close()
    err = capsys.readouterr().err
    assert "loud_event" in err
    assert "quiet_event" not in err
    assert [row["event"] for row in rows(tmp_path / "logs" / "controller.jsonl")] == ["quiet_event", "loud_event"]


def test_another_process_writes_its_own_file_and_no_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ranks do not talk over the controller."""
    logs = setup_logging(tmp_path, "info", process="learner_0")
    structlog.stdlib.get_logger("fd_async.test").warning("rank_event")
    logs.close()
    assert capsys.readouterr().err == ""
    assert rows(tmp_path / "logs" / "learner_0.jsonl")[0]["event"] == "rank_event"


def test_secrets_never_reach_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Values of *_KEY and *_TOKEN are removed from every line, nested or in a traceback."""
    monkeypatch.setenv("SOME_API_KEY", "sk-value-one")
    monkeypatch.setenv("HUB_TOKEN", "hf_value_two")
    logs = setup_logging(tmp_path, "info")
    log = structlog.stdlib.get_logger("fd_async.test")
    log.warning("call", nested={"a": ["sk-value-one"]})
    try:
        raise ValueError("bad hf_value_two")
    except ValueError:
        log.exception("refused")
    logging.getLogger("httpx").warning("Authorization: Bearer abc.def-ghi")
    logs.close()
    everything = capsys.readouterr().err + "".join(p.read_text() for p in (tmp_path / "logs").iterdir())
    for secret in ("sk-value-one", "hf_value_two", "abc.def-ghi"):
        assert secret not in everything
    assert "[SOME_API_KEY]" in everything


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer s3cretvalue",
        '{"authorization": "Basic s3cretvalue"}',
        "{'x-api-key': 's3cretvalue', 'a': 1}",
        r"{\"Authorization\": \"Bearer s3cretvalue\"}",
        "(b'Authorization', 'Bearer s3cretvalue')",
        "sent bearer s3cretvalue.abc",
    ],
)
def test_headers_are_redacted(text: str) -> None:
    """Whatever quotes and separators surround the value."""
    assert "s3cret" not in redact(text)


def test_redaction_leaves_ordinary_text_alone() -> None:
    """The name of the variable is no secret, and short values are not protected."""
    protect("ab", "SHORT_KEY")
    text = 'api_key_env = "ANTHROPIC_API_KEY", absolute'
    assert redact(text) == text


def test_setting_up_twice_writes_each_line_once(tmp_path: Path) -> None:
    """The second set-up replaces the first."""
    setup_logging(tmp_path, "info")
    logs = setup_logging(tmp_path, "info")
    structlog.stdlib.get_logger("fd_async.test").info("once")
    logs.close()
    logs.close()
    assert len(rows(tmp_path / "logs" / "controller.jsonl")) == 1
