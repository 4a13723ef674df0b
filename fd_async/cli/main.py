"""From arguments to an exit code: finds the command and turns what it raises into one line each."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TypeGuard

from fd_async.cli import check, data, evaluate, export, run, sweep, view
from fd_async.cli import report as report_figures
from fd_async.cli.parser import Parser
from fd_async.cli.shared import ErrorLog
from fd_async.errors import FdError, PreflightError
from fd_async.telemetry.redact import redact

INTERRUPTED = 130
_LEAVE_S = 20.0
"""For what Python does at the end of a process."""

COMMANDS: dict[str, ModuleType] = {
    "run": run,
    "check": check,
    "eval": evaluate,
    "export": export,
    "view": view,
    "data": data,
    "report": report_figures,
    "sweep": sweep,
}
"""Name -> module with `HELP`, `add_arguments(parser)` and `execute(arguments, log) -> exit code`."""


def make_parser(command: str) -> Parser:
    """Build the parser of one command of COMMANDS."""
    parser = Parser(prog=f"fd-{command}", description=COMMANDS[command].HELP, allow_abbrev=False)
    COMMANDS[command].add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `COMMAND ARGUMENTS...`; return the exit code."""
    if not argv or argv[0] not in COMMANDS:
        print(f"usage: python -m fd_async.cli {{{','.join(COMMANDS)}}} ...", file=sys.stderr)
        return 2
    command = argv[0]
    arguments = make_parser(command).parse_args(argv[1:])
    log = ErrorLog()
    _heed_signals()
    try:
        return COMMANDS[command].execute(arguments, log)
    except KeyboardInterrupt:
        print(f"fd-{command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left, e.g. `| head`
        return 0
    except (Exception, BaseExceptionGroup) as error:
        return report(error, f"fd-{command}", log, debug=arguments.debug)


def report(error: BaseException, prog: str, log: ErrorLog, *, debug: bool) -> int:
    """Print one line per cause, keep the traceback in the log; return the exit code.

    A task group wraps what its tasks raise: the causes inside are what a person wants to read, and they come last. The
    exit code is that of the first cause that fd_async raised on purpose, 1 where all are surprises.
    """
    causes = list(_causes(error))
    if all(isinstance(cause, KeyboardInterrupt) for cause in causes):
        print(f"{prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    written = log.write(error)
    known = [code for cause in causes if (code := _exit_code(cause)) is not None]
    if debug:
        sys.stderr.write(redact("".join(traceback.format_exception(error))))
    elif written:
        print(f"{prog}: traceback in {written}", file=sys.stderr)
    elif not known:
        print(f"{prog}: run it again with --debug for the traceback", file=sys.stderr)
    for line in dict.fromkeys(line for cause in causes for line in _lines(cause)):
        print(f"{prog}: {redact(line)}", file=sys.stderr)
    return known[0] if known else 1


def _heed_signals() -> None:
    """Let a scheduler's signals end what has no event loop yet as Ctrl-C does; `nohup` keeps its meaning."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
            signal.signal(number, signal.default_int_handler)


def _exit_code(cause: BaseException) -> int | None:
    """Return what scripts are told; None where the cause is a surprise."""
    if isinstance(cause, FdError):
        return cause.exit_code
    return PreflightError.exit_code if _is_full_disk(cause) else None


def _is_full_disk(cause: BaseException) -> TypeGuard[OSError]:
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _causes(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _causes(inner)
    else:
        yield error


def _lines(cause: BaseException) -> list[str]:
    if isinstance(cause, FdError):
        return str(cause).splitlines() or [type(cause).__name__]
    if _is_full_disk(cause):
        where = f"{cause.filename}: " if cause.filename else ""
        advice = "free space, then continue with --resume (fd-eval: the same command)"
        return [f"{where}the disk is full ({cause.strerror}); {advice}"]
    frames = traceback.extract_tb(cause.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    text = str(cause).strip().splitlines()
    return [f"unexpected {type(cause).__name__}{': ' + text[0] if text else ''}{where}"]


def leave(code: int) -> int:
    """Return the exit code of a process that has nothing left to do; end it if a thread that hangs keeps it."""
    timer = threading.Timer(_LEAVE_S, os._exit, [code])
    timer.daemon = True
    timer.start()
    return code


def run_main() -> int:
    """Entry point of fd-run."""
    return leave(main(["run", *sys.argv[1:]]))


def check_main() -> int:
    """Entry point of fd-check."""
    return main(["check", *sys.argv[1:]])


def eval_main() -> int:
    """Entry point of fd-eval."""
    return leave(main(["eval", *sys.argv[1:]]))


def export_main() -> int:
    """Entry point of fd-export."""
    return main(["export", *sys.argv[1:]])


def data_main() -> int:
    """Entry point of fd-data."""
    return leave(main(["data", *sys.argv[1:]]))


def view_main() -> int:
    """Entry point of fd-view."""
    return main(["view", *sys.argv[1:]])


def report_main() -> int:
    """Entry point of fd-report."""
    return main(["report", *sys.argv[1:]])


def sweep_main() -> int:
    """Entry point of fd-sweep."""
    return main(["sweep", *sys.argv[1:]])
