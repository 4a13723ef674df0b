"""fd-view: what a run does or did, for people."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from fd_async.cli.parser import Parser
from fd_async.cli.shared import ErrorLog, run_folder
from fd_async.errors import ConfigError
from fd_async.telemetry.redact import protect_environment

HELP = "Show a run or an evaluation in the browser, also while it goes on; or write its report to a file."


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder, name of a run below runs/, or folder of an evaluation")
    parser.add_argument(
        "--port", type=_port, metavar="N", help="port of the page; default: the first free one from 8642 on, 0: any"
    )
    parser.add_argument(
        "--host", metavar="HOST", help="address to listen on; default: 127.0.0.1, which only this machine can reach"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--out", type=Path, metavar="FILE", help="serve nothing, write report.html to FILE")


def execute(arguments: argparse.Namespace, log: ErrorLog) -> int:
    """Serve the page until it is interrupted, or write the report."""
    run_dir = run_folder(arguments.run)
    protect_environment()
    if arguments.out is not None:
        if arguments.port is not None or arguments.host or arguments.open:
            raise ConfigError("--out writes a file and serves nothing: leave out --port, --host and --open")
        from fd_async.viewer.report import write_report

        print(f"wrote {write_report(run_dir, arguments.out)}")
        return 0
    import anyio

    from fd_async.viewer.server import serve

    host = arguments.host or "127.0.0.1"
    say = partial(print, "fd-view:", flush=True)
    anyio.run(partial(serve, run_dir, host=host, port=arguments.port, open_browser=arguments.open, say=say))
    return 0


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 to 65535")
    return int(text)
