"""`policy.engine = "servers"`: the policy served by `vllm serve` processes that somebody else starts, over HTTP.

    wire        one server's routes, and what its answers may look like
    member      what is known of one server
    sampling    one request, at one server or at several one after another
    pushing     a push to one server; `together`: to all
    watching    looks after the servers
    fleet       all of them as one `Engine`
    guard       what `bin/fd-serve` puts before vLLM's routes

Invariants: a server gets requests only while it shows the weights that it should have and the probe has agreed with
them; a request ends with its own tokens, whatever becomes of the servers, or with a typed error.
"""

from __future__ import annotations

from fd_async.policy.servers.opening import open_servers

__all__ = ["open_servers"]
