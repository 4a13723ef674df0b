"""fd-data: what a source of statements holds, whether it compiles, how it is split."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fd_async.cli.parser import Parser, add_config, step
from fd_async.cli.shared import ErrorLog, protect_keys
from fd_async.errors import ConfigError, PreflightError, VerifierError

if TYPE_CHECKING:
    from fd_async.config.schema import Data, RunConfig
    from fd_async.data.sources.summary import Summary
    from fd_async.types import Statement

HELP = "Read sources of statements, print what they hold, check that they compile, write their split."


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "source",
        nargs="*",
        metavar="SOURCE",
        help="JSONL or Parquet file, folder of .lean files, hub:OWNER/NAME@COMMIT/FILE, leanworkbook or minif2f; "
        "default: those of --config",
    )
    add_config(parser, required=False)
    parser.add_argument("--check", action="store_true", help="put each statement through the verifier of --config")
    parser.add_argument("--split", action="store_true", help="split by hash, as data.source does")
    parser.add_argument("--write", type=Path, metavar="DIR", help="write the two parts of the split as JSONL files")
    parser.add_argument(
        "--report",
        type=Path,
        default=Path("fd-data-check.jsonl"),
        metavar="FILE",
        help="where --check writes the statements that fail, default: %(default)s",
    )
    parser.add_argument("--offline", action="store_true", help="the same as data.offline = true")
    parser.add_argument("--num-train", type=step, metavar="N", help="the same as data.num_train")
    parser.add_argument("--num-test", type=step, metavar="N", help="the same as data.num_test")
    parser.add_argument(
        "--columns", action="append", default=[], metavar="OURS=THEIRS", help="as in data.columns; repeatable"
    )


def execute(arguments: argparse.Namespace, log: ErrorLog) -> int:
    """Print a block per source; 1 where --check found statements that do not compile."""
    from fd_async.config.places import evaluated
    from fd_async.data.sources import Sources

    config = _config(arguments)
    table = _table(arguments, config)
    named = arguments.source or [table.source or table.train, *evaluated(table)]
    sources = Sources(table)
    is_bad = False
    for text in dict.fromkeys(named):
        statements = sources.read(text, "" if arguments.source else "test" if text in evaluated(table) else "train")
        _print_summary(text, statements, config)
        if arguments.split or arguments.write:
            _split(text, statements, table, arguments.write)
        if arguments.check:
            assert config is not None
            is_bad |= _check(text, statements, config, arguments.report, start=text == named[0])
    return 1 if is_bad else 0


def _config(arguments: argparse.Namespace) -> RunConfig | None:
    from fd_async.config.load import load_config

    if not arguments.config:
        if arguments.check or arguments.set or not arguments.source:
            need = "--check" if arguments.check else "--set" if arguments.set else "no SOURCE"
            raise ConfigError(f"{need} needs --config FILE, e.g. --config configs/tiny_fd.toml")
        return None
    options = {f"data.{name}": (f"--{name.replace('_', '-')}", value) for name, value in _given(arguments).items()}
    config = load_config(arguments.config[0], arguments.config[1:], arguments.set, options=options)
    protect_keys(config)
    return config


def _table(arguments: argparse.Namespace, config: RunConfig | None) -> Data:
    from fd_async.config.checks import columns_problem
    from fd_async.config.schema import Data

    if config is not None:
        return config.data
    problem = columns_problem(arguments.columns)
    if problem:
        raise ConfigError(f"--columns: {problem}")
    if arguments.num_test == 0:
        raise ConfigError("--num-test: give at least 1")
    return Data(**_given(arguments))


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keys of `[data]` that have options here."""
    names = ("columns", "offline", "num_train", "num_test")
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None and value != [] and value is not False}


def _print_summary(text: str, statements: Sequence[Statement], config: RunConfig | None) -> None:
    from fd_async.data.sources.summary import summarise

    found = summarise(statements)
    print(text)
    _line("statements", f"{found.num_statements:,}, {found.num_proofs:,} with a known proof")
    _line("sha256", found.sha256)
    _line("headers", _headers(found))
    _line("longest", _longest(found, statements, config))
    _print_doubts(found)


def _print_doubts(found: Summary) -> None:
    if found.twins:
        pairs = "; ".join(" = ".join(names[:3]) for names in found.twins[:3])
        _line("twins", f"{sum(len(names) - 1 for names in found.twins):,} under other names: {pairs}")
    if found.renamed:
        _line("renamed", f"{len(found.renamed):,} have another name in the statement: {_some(found.renamed)}")
    if found.unstated:
        _line("unstated", f"{len(found.unstated):,} without `theorem NAME`, which no proof can solve: "
              f"{_some(found.unstated)}")  # fmt: skip


def _headers(found: Summary) -> str:
    top, num = found.headers[0]
    shown = " / ".join(top.split("\n")) or "none (verifier.header)"
    more = f", {len(found.headers) - 1} others" if len(found.headers) > 1 else ""
    spelt = f" in {found.spellings} spellings" if found.spellings > len(found.headers) else ""
    return f"{len(found.headers)}{spelt}: {num:,} x {shown[:200]}{more}"


def _longest(found: Summary, statements: Sequence[Statement], config: RunConfig | None) -> str:
    """Count tokens where the model is at hand, else give the bound that holds for every tokenizer."""
    if config is None or not Path(config.model.path).is_dir():
        return f"{found.longest}: {found.longest_bytes:,} bytes (--config counts a prompt's tokens)"
    from fd_async.app.opening import load_renderer

    renderer = load_renderer(config)
    from fd_async.data.sources.summary import num_bytes

    candidates = sorted(statements, key=num_bytes, reverse=True)[:64]
    num, name = max((len(renderer.student_prompt(row)), row.name) for row in candidates)
    limit = config.rollout.max_prompt_tokens
    verdict = "fits" if num <= limit else "TOO LONG for"
    return f"{name}: prompt of {num:,} tokens, {verdict} rollout.max_prompt_tokens = {limit:,}"


def _split(text: str, statements: Sequence[Statement], table: Data, folder: Path | None) -> None:
    from fd_async.config.places import suite_name
    from fd_async.data.sources.canonical import SALT, split, statements_hash
    from fd_async.data.sources.rows import as_row
    from fd_async.telemetry.sinks import replace_file

    parts = dict(zip(("train", "test"), split(statements, table.num_train, table.num_test, text), strict=True))
    _line("split", f"rule {SALT}")
    for part, chosen in parts.items():
        _line(f"  {part}", f"{len(chosen):,} statements, sha256 {statements_hash(chosen)}")
        if folder is None:
            continue
        path = folder / f"{suite_name(text)}.{part}.jsonl"
        rows = "".join(json.dumps(as_row(row), ensure_ascii=False) + "\n" for row in chosen).encode()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.read_bytes() != rows:
                raise PreflightError(f"{path}: holds something else already: delete it, or name another folder")
            replace_file(path, rows)
        except OSError as error:
            raise PreflightError(f"{path}: cannot be written: {error.strerror}; name another folder") from error
        _line("", f"wrote {path}")


def _check(text: str, statements: Sequence[Statement], config: RunConfig, report: Path, *, start: bool) -> bool:
    """Examine the statements and write the faults; True where there are any."""
    from fd_async.app.examining import examine_statements
    from fd_async.telemetry.logs import setup_logging

    setup_logging(None, "warning")  # to stderr: stdout is for the figures
    began, shown_at = time.monotonic(), 0.0

    def on_done(done: int, faults: int) -> None:
        nonlocal shown_at
        if time.monotonic() - shown_at > 1.0 and sys.stderr.isatty():
            shown_at = time.monotonic()
            print(f"\r{done:,} of {len(statements):,} checked, {faults:,} failed", end="", file=sys.stderr, flush=True)

    try:
        with report.open("w" if start else "a", encoding="utf-8") as file:
            faults = examine_statements(config, statements, on_done)
            for fault in faults:
                row = {"source": text} | {name: getattr(fault, name) for name in fault.__struct_fields__}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise PreflightError(f"--report {report}: cannot be written: {error.strerror}; name another file") from error
    bad = [fault for fault in faults if fault.kind != "infrastructure"]
    seconds = time.monotonic() - began
    _line("check", f"{len(statements) - len(faults):,} compile with `sorry`, {len(bad):,} do not ({seconds:,.0f} s)")
    for fault in bad[:5]:
        _line("", f"{fault.name}: {fault.reason[:160]}")
    if faults:
        _line("", f"all of them with Lean's words: {report}")
    if len(bad) < len(faults):
        first = next(fault for fault in faults if fault.kind == "infrastructure")
        num = len(faults) - len(bad)
        raise VerifierError(f"{text}: {num:,} statements got no answer; the first, {first.name}: {first.reason}")
    return bool(bad)


def _line(name: str, value: str) -> None:
    print(f"  {name:<12}{value}", flush=True)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
