"""The address, the port, and the end."""

from __future__ import annotations

import errno
import secrets
import signal
import socket
import webbrowser
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
from aiohttp import web

from fd_async.errors import PreflightError
from fd_async.viewer.server.guard import Guard, is_loopback
from fd_async.viewer.server.routes import make_app

DEFAULT_PORT = 8642
_PORTS_TRIED = 50
_LEAVE_S = 0.5


async def serve(
    run_dir: Path,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve the page of a run until SIGINT, SIGTERM or SIGHUP.

    Args:
        run_dir: of a run or an evaluation.
        host: to listen on. One that other machines can reach makes the address carry a token.
        port: to listen on, 0 for any; None takes the first free one from 8642 on.
        open_browser: show the page in the user's browser.
        say: told the address, and what to know about it, one line each.

    Raises:
        PreflightError: the folder is no run's, or host or port cannot be had.
    """
    token = "" if is_loopback(host) else secrets.token_urlsafe(16)
    app = make_app(run_dir, Guard(host, token))
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=_LEAVE_S / 2)
    await runner.setup()
    try:
        with anyio.open_signal_receiver(*_ending_signals()) as signals:
            bound = await _listen(runner, host, port)
            address = f"http://{_named(host)}:{bound}/{f'?token={token}' if token else ''}"
            if token:
                say(f"other machines can reach this page: whoever has the address below can read all of {run_dir}")
            say(f"{run_dir} at {address} (Ctrl-C ends it)")
            if open_browser:
                await _open(address, say)
            async for _ in signals:
                break
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(_LEAVE_S):
            await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, port: int | None) -> int:
    """Return the port that was got."""
    ports = [port] if port is not None else range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TRIED)
    for tried in ports:
        try:
            await web.TCPSite(runner, host, tried).start()
        except socket.gaierror as error:
            raise PreflightError(
                f"--host {host}: no such address ({error.strerror}); name one of this machine"
            ) from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            raise PreflightError(
                f"cannot listen on {host}:{tried}: {error.strerror or error}; name another --port or --host"
            ) from error
        return int(runner.addresses[0][1])
    if port is None:
        raise PreflightError(f"ports {ports[0]} to {ports[-1]} are all taken: name one with --port N, or --port 0")
    raise PreflightError(f"port {port} is taken: name another one, or leave --port out for the first free one")


async def _open(address: str, say: Callable[[str], None]) -> None:
    with anyio.move_on_after(5.0):
        if await anyio.to_thread.run_sync(webbrowser.open, address, abandon_on_cancel=True):
            return
    say("--open: found no browser to open; use the address above")


def _named(host: str) -> str:
    """Return what stands in the address: the machine's name where it listens on all of its addresses."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _ending_signals() -> list[signal.Signals]:
    """Leave out what the process was started to ignore, e.g. by nohup."""
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
