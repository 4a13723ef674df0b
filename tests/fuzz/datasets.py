"""Files of statements as they come from spreadsheets, editors and broken disks."""

from __future__ import annotations

import json
import os
import random
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from fd_async.cli.shared import STARTED, has_begun
from fd_async.data.statements import limit_by_hash, read_statements
from fd_async.errors import PreflightError
from tests.fuzz.report import Report, run_command

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny_fd.toml"


def fuzz(cases: int, seed: int, folder: Path) -> Report:
    """Read `cases` files; each gives statements or one line with file and line number."""
    report = Report()
    file = folder / "data.jsonl"
    for case in range(cases):
        dice = random.Random(f"datasets/{seed}/{case}")
        data = damaged(dice)
        file.write_bytes(data)
        report.cases += 1
        try:
            statements = read_statements(file)
            limit_by_hash(statements, 2)
            msgspec.msgpack.encode(statements)
            report.outcomes["accepted"] += 1
        except PreflightError as error:
            report.outcomes["refused"] += 1
            if not re.match(re.escape(str(file)) + r"(:\d+)?: [^\n]{1,400}\Z", str(error)):
                report.found(f"not one short line with the place: {error}", repr(data))
        except BaseException:
            report.found(traceback.format_exc(), repr(data))
    for path in oddities(folder):
        report.cases += 1
        try:
            read_statements(path)
            report.found("accepted", str(path))
        except PreflightError:
            report.outcomes["odd path refused"] += 1
        except BaseException:
            report.found(traceback.format_exc(), str(path))
    return report


def fuzz_runs(cases: int, seed: int, folder: Path) -> Report:
    """Start `cases` runs on files that are refused: exit 3 (or 2), and a folder that the next run may take."""
    report = Report()
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        number = 0
        while report.cases < cases:
            number += 1
            dice = random.Random(f"runs/{seed}/{number}")
            file = folder / "bad.jsonl"
            file.write_bytes(damaged(dice))
            try:
                read_statements(file)
                continue
            except PreflightError:
                pass
            key = dice.choice(("data.train", "data.eval"))
            name = f"run{number}"
            argv = ["run", "--config", str(TINY), "--run", name]
            argv += ["--set", f"run.dir={folder}", "--set", f"{key}={file}"]
            run_command(argv, report, f"{argv}\n{file.read_bytes()[:500]!r}", codes=frozenset({3}))
            left = [entry for entry in STARTED if (folder / name / entry).exists()]
            if left or has_begun(folder / name):
                report.found(f"left {left} behind", repr(argv))
    finally:
        os.chdir(before)
    return report


def oddities(folder: Path) -> list[Path]:
    """Make paths that are no file of statements: a folder, a pipe that nobody writes to, a dangling link..."""
    pipe, link, loop, device = folder / "pipe", folder / "link", folder / "loop", Path("/dev/zero")
    os.mkfifo(pipe)
    link.symlink_to(folder / "nothing")
    loop.symlink_to(loop)
    empty = folder / "empty"
    empty.write_bytes(b"")
    return [folder, pipe, link, loop, device, empty, folder / "none", folder / ("n" * 300), empty / "below a file"]


def damaged(dice: random.Random) -> bytes:
    """Make a small file of statements and damage it in one to three ways."""
    rows = [row(number, dice) for number in range(dice.choice((0, 1, 2, 5)))]
    data = b"".join(
        json.dumps(each, ensure_ascii=dice.random() < 0.5).encode(errors="surrogatepass") + b"\n" for each in rows
    )
    for _ in range(dice.choice((0, 1, 1, 2, 3))):
        data = dice.choice(DAMAGE)(data, dice)
    return data


def row(number: int, dice: random.Random) -> Any:
    """Make one row, good or with a wrong field."""
    good: dict[str, Any] = {"name": f"t{number}", "formal_statement": "theorem t : 1 + 1 = 2 := by sorry"}
    if dice.random() < 0.3:
        good |= {dice.choice(("header", "proof", "more", "tags")): "by\n  omega"}
    if dice.random() < 0.4:
        key = dice.choice(("name", "formal_statement", "header", "proof", "ünknown", ""))
        good[key] = dice.choice(VALUES)
    if dice.random() < 0.1:
        good.pop(dice.choice(("name", "formal_statement")))
    return good if dice.random() < 0.95 else dice.choice(VALUES)


VALUES: tuple[Any, ...] = (
    None, 0, -1, 1.5, 10**30, float("nan"), float("inf"), True, [], {}, [[]], {"name": "x"}, "", " ", "\n", "\x00",
    "\x7f",
    "a\nb", "\ud800", "é" * 3, "\U0001f600", "x" * 100_000, "../../etc", "{", "${HOME}", "\u202e", "t0", ["a"] * 50,
)  # fmt: skip


def _splice(data: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(data) + 1)
    return data[:place] + dice.randbytes(dice.choice((1, 2, 30))) + data[place + dice.choice((0, 1, 5)) :]


DAMAGE: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _splice, _splice,
    lambda data, dice: data[: dice.randrange(len(data) + 1)],
    lambda data, dice: b"\xef\xbb\xbf" + data,
    lambda data, dice: data.replace(b"\n", dice.choice((b"\r\n", b"\r", b"\n\n", b"\x00", b" ", b"\x0c", b""))),
    lambda data, dice: data.decode(errors="replace").encode(dice.choice(("utf-16", "utf-32", "utf-16-le", "utf-7"))),
    lambda data, dice: data.decode(errors="replace").encode("cp1252", errors="replace"),
    lambda data, dice: data + data,
    lambda data, dice: b"[" + data.replace(b"\n", b",") + b"]",
    lambda data, dice: b"name,formal_statement\n" + data,
    lambda data, dice: data + b'{"name": "d", "formal_statement": "x", "q": ' + b"[" * dice.choice((10, 20000)),
    lambda data, dice: data + b'{"name": "d", "formal_statement": "x", "q": ' + b"[" * 9000 + b"]" * 9000 + b"}",
    lambda data, dice: data + b'{"name": "n", "formal_statement": "x", "q": ' + b"9" * dice.choice((20, 5000)) + b"}",
    lambda data, dice: data.replace(b'"', b"'"),
    lambda data, dice: b"# statements\n" + data,
    lambda data, dice: b"\x1f\x8b\x08" + dice.randbytes(100),
    lambda data, dice: b"",
    lambda data, dice: b"\n \n\t\n",
    lambda data, dice: data.replace(b"name", b"Name", 1),
    lambda data, dice: b"\x00" * dice.choice((1, 5000)) + data,
)  # fmt: skip
