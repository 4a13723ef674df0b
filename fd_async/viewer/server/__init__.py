"""One local page of a run: what `fd-view RUN` serves.

    serving   the address, the port, the end: serve
    routes    what is answered to whom
    guard     who may ask: names of this machine, this page's own requests, a token where others can reach it
    folder    the run folder, read anew as it grows

Invariants:
    * Nothing is written but what SQLite itself keeps beside a ledger that it reads; the run never waits for a reader.
    * Only GET is answered. Every answer forbids the browser to load or run anything but the page's own files.
    * Text of attempts leaves as JSON and becomes text nodes.
    * What blocks is done in threads; a query has a deadline and ends when its reader has left.
"""

from fd_async.viewer.server.serving import serve

__all__ = ["serve"]
