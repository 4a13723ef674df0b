"""What is answered to whom.

/, /attempts, /config   the page; its script reads the rest of the address
/page.js, /page.css     its script and style
/api/status             how the run stands; asked every two seconds
/api/overview           curves, totals and tables; asked when `version` of the status changed
/api/attempts           a page of the list
/api/counts             numbers beside the choices of the filters
/api/attempt            one attempt, whole
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from fd_async.data.ledger import read_attempt
from fd_async.data.ledger.browsing import Counts, Filter, read_counts, read_lines
from fd_async.errors import LedgerError
from fd_async.viewer.assets import render, script, style
from fd_async.viewer.attempts import attempt
from fd_async.viewer.server.folder import RunFolder, has_ledger
from fd_async.viewer.server.guard import Guard, add_headers

QUERY_S = 10.0
_PAGE = 100
_FRESH_S = 0.5
"""Within this time all viewers get the same answer, so that ten of them cost what one does."""
_THREADS = 4
_MOST_DIGITS = 18
"""Of a number in an address; SQLite's go to 64 bits."""
T = TypeVar("T")


def make_app(run_dir: Path, guard: Guard) -> web.Application:
    """Return the application for one run or evaluation folder.

    Raises:
        PreflightError: if `run_dir` is no run folder.
    """
    viewer = _Viewer(RunFolder(run_dir))
    app = web.Application(middlewares=[guard.middleware, _say_errors])
    app.on_response_prepare.append(add_headers)
    app.on_shutdown.append(viewer.close)
    for path in ("/", "/attempts", "/config"):
        app.router.add_get(path, viewer.page)
    app.router.add_get("/page.js", _file(script("live"), "text/javascript"))
    app.router.add_get("/page.css", _file(style("live"), "text/css"))
    app.router.add_get("/favicon.ico", _nothing)
    for name in ("status", "overview", "attempts", "counts", "attempt"):
        app.router.add_get(f"/api/{name}", getattr(viewer, name))
    return app


class _Viewer:
    """Answers from one folder."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._closing = threading.Event()
        self._threads = anyio.CapacityLimiter(_THREADS)
        self._lock = anyio.Lock()
        self._status: dict[str, Any] = {}
        self._looked_at = -_FRESH_S
        self._overview = ("", b"")

    async def close(self, _: web.Application) -> None:
        """End the queries that are under way."""
        self._closing.set()

    async def page(self, _: web.Request) -> web.Response:
        text = render("live.html.j2", name=self._folder.name)
        return web.Response(text=text, content_type="text/html")

    async def status(self, _: web.Request) -> web.Response:
        await self._refresh()
        return _json(self._status)

    async def overview(self, _: web.Request) -> web.Response:
        await self._refresh()
        async with self._lock:
            version = self._status["version"]
            if self._overview[0] != version:
                data = await anyio.to_thread.run_sync(lambda: msgspec.json.encode(self._folder.overview()))
                self._overview = (version, data)
        return web.Response(body=self._overview[1], content_type="application/json")

    async def attempts(self, request: web.Request) -> web.Response:
        """Answer {lines, more}."""
        wanted, before = _filter(request), _number(request, "before")
        limit = min(_number(request, "limit") or _PAGE, 5 * _PAGE)
        if not has_ledger(self._folder.ledger):
            return _json({"lines": [], "more": False})
        lines = await self._query(
            lambda cancelled: read_lines(
                self._folder.ledger, wanted, before=before, limit=limit + 1, is_cancelled=cancelled
            )
        )
        return _json({"lines": lines[:limit], "more": len(lines) > limit})

    async def counts(self, request: web.Request) -> web.Response:
        wanted = _filter(request)
        if not has_ledger(self._folder.ledger):
            return _json(Counts(total=0, matching=0, facets={}))
        return _json(
            await self._query(lambda cancelled: read_counts(self._folder.ledger, wanted, is_cancelled=cancelled))
        )

    async def attempt(self, request: web.Request) -> web.Response:
        wanted, path = request.query.get("id", ""), self._folder.ledger

        def read(cancelled: Callable[[], bool]) -> bytes | None:
            record = read_attempt(path, wanted, is_cancelled=cancelled) if has_ledger(path) else None
            return None if record is None else msgspec.json.encode(attempt(record))

        found = await self._query(read)
        if found is None:
            return _problem(404, f"the ledger has no attempt {wanted}")
        return web.Response(body=found, content_type="application/json")

    async def _refresh(self) -> None:
        """Look at the folder unless somebody just did."""
        async with self._lock:
            if anyio.current_time() - self._looked_at >= _FRESH_S:
                self._status = await anyio.to_thread.run_sync(self._folder.refresh)
                self._looked_at = anyio.current_time()

    async def _query(self, function: Callable[[Callable[[], bool]], T]) -> T:
        """Run a query in a thread; its reader's leaving, the end of the server and its deadline end it."""
        left = threading.Event()
        deadline = time.monotonic() + QUERY_S

        def is_late() -> bool:
            return time.monotonic() > deadline

        def is_cancelled() -> bool:
            return left.is_set() or self._closing.is_set() or is_late()

        try:
            return await anyio.to_thread.run_sync(
                lambda: function(is_cancelled), abandon_on_cancel=True, limiter=self._threads
            )
        except LedgerError as error:
            if is_late():
                raise LedgerError(f"that took longer than {QUERY_S:.0f} s: ask for fewer steps or names") from error
            raise
        finally:
            left.set()


@web.middleware
async def _say_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer what went wrong in one line, as JSON."""
    try:
        return await handler(request)
    except LedgerError as error:
        return _problem(503, str(error))


async def _nothing(_: web.Request) -> web.Response:
    return web.Response(status=204)


def _filter(request: web.Request) -> Filter:
    """Read a filter from the address; what it does not know it refuses."""
    given = {key: value for key, value in request.query.items() if key not in ("before", "limit") and value}
    try:
        return msgspec.convert(given, Filter, strict=False)
    except msgspec.ValidationError as error:
        raise web.HTTPBadRequest(text=msgspec.json.encode({"error": f"not a filter: {error}"}).decode()) from error


def _number(request: web.Request, name: str) -> int | None:
    text = request.query.get(name, "")
    if text and not (text.isdecimal() and len(text) <= _MOST_DIGITS):
        raise web.HTTPBadRequest(text=msgspec.json.encode({"error": f"{name}: {text!r} is not a number"}).decode())
    return int(text) if text else None


def _file(text: str, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=text, content_type=kind)

    return answer


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _problem(status: int, text: str) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode({"error": text}), content_type="application/json")
