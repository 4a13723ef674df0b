"""Whether addresses answer, all at once and in bounded time: a TCP connection, nothing sent."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

_TIMEOUT_S = 3.0
_MOST_AT_ONCE = 32


def reach(urls: Sequence[str]) -> dict[str, str]:
    """Connect to each http(s) address, through nothing; return why it failed, empty where it answered.

    What a proxy of the environment stands for is not tried: the proxy is.
    """
    if not urls:
        return {}
    with ThreadPoolExecutor(min(_MOST_AT_ONCE, len(urls))) as pool:
        return dict(zip(urls, pool.map(_problem, urls), strict=True))


def _problem(url: str) -> str:
    from urllib.request import getproxies, proxy_bypass  # brings ssl, which --quick does without where it can

    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=_TIMEOUT_S):
            return ""
    except socket.gaierror:
        return f"the name {parts.hostname} is not known here"
    except TimeoutError:
        return f"no answer within {_TIMEOUT_S:g} s"
    except (OSError, ValueError) as error:
        return (os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)).lower()
