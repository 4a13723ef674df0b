"""Who may ask. The page shows models, prompts and money, so no web site that the user visits may read it.

* Names: a request must name this machine (Host). A site whose name was made to point here (DNS rebinding) does not.
* Origins: what another site's script or frame asks for is refused; following a link to the page is not.
* Token: where the page is served to other machines, the address carries a secret that becomes a cookie.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_LOCAL = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Checks every request before it is answered.

    Args:
        host: that is listened on.
        token: that a request must bring; empty where only this machine can ask.
    """

    def __init__(self, host: str, token: str = "") -> None:
        self._names = {host.lower(), *_LOCAL}
        self._token = token
        # Named after the token: viewers on other ports of this host share the jar.
        self._cookie = f"fd_view_{hashlib.sha256(token.encode()).hexdigest()[:8]}"

    @property
    def middleware(self) -> Middleware:
        """Return what aiohttp puts around every handler."""

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.method not in ("GET", "HEAD"):
                raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD"])
            self._check_origin(request)
            if self._token:
                if (given := request.query.get("token")) is not None:
                    return self._admit(request, given)
                if not self._is_token(request.cookies.get(self._cookie, "")):
                    raise web.HTTPForbidden(text="this page needs the address that fd-view printed, with its token\n")
            return await handler(request)

        return check

    def _check_origin(self, request: web.Request) -> None:
        host = _name(f"//{request.headers.get('Host', '')}")
        if not self._token and host not in self._names:
            raise web.HTTPForbidden(text=f"this page is not served as {host!r}: use http://localhost\n")
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.headers.get("Host"):
            raise web.HTTPForbidden(text="another site's page may not read this one\n")
        site, mode = (request.headers.get(f"Sec-Fetch-{what}") for what in ("Site", "Mode"))
        if site in ("cross-site", "same-site") and (mode != "navigate" or request.path.startswith("/api/")):
            raise web.HTTPForbidden(text="another site's page may not read this one\n")

    def _admit(self, request: web.Request, given: str) -> web.StreamResponse:
        """Turn the token of the address into a cookie, so that it stands in no link that is shared."""
        if not self._is_token(given):
            raise web.HTTPForbidden(text="wrong token: use the address that fd-view printed\n")
        answer = web.HTTPSeeOther(request.rel_url.without_query_params("token"))
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="Lax", path="/")
        raise answer

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Forbid the browser whatever the page does not need; also with answers that say no."""
    response.headers.update(HEADERS)


def _name(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""
