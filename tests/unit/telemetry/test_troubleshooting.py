"""docs/troubleshooting.md quotes messages that the code really prints."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from fd_async import errors

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def source() -> str:
    """Return the package's source with adjacent string literals joined and `\\n` and quotes as in the output."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "fd_async").rglob("*.py"))
    return re.sub(r"(\"|')\s*\n\s*f?(\"|')", "", text)


def test_every_quoted_message_is_one_that_the_code_prints() -> None:
    """Change the page together with the message."""
    code = source()
    quoted = re.findall(r"^(?:### `(.+)`|\| `([^|`]+)` \|.*)$", PAGE, re.MULTILINE)
    assert len(quoted) > 200
    fragments = [
        part.strip() for pair in quoted for part in re.split("…", "".join(pair)) if len(part.strip(" ,.:;()=")) > 4
    ]
    assert [part for part in fragments if part not in code] == []


def test_every_error_class_stands_with_its_exit_code() -> None:
    """The table of exit codes names each class that ends a run."""
    rows = {int(code): line for code, line in re.findall(r"^\| (\d+) \|(.+)$", PAGE, re.MULTILINE)}
    assert set(rows) == {0, 1, 2, 3, 4, 5, 6, 7, 130}
    for name, error in inspect.getmembers(errors, inspect.isclass):
        assert issubclass(error, errors.FdError)
        if name in {"FeedbackRejected", "FeedbackUnavailable"}:  # end one attempt
            assert f"`{name}`" in PAGE
        elif name not in {"FdError", "FeedbackError"}:
            assert f"`{name}`" in rows[error.exit_code], name
