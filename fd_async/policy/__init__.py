"""Inference: the policy as a running engine that samples tokens, scores them and takes new weights.

Owns vLLM: no other room imports it. Importing this package does not import vllm or torch; `open_engine` does, in a
thread. Invariants: ids in, ids out; a push is checked before it changes anything and verified by a probe after it;
every process that the room starts is gone when `open_engine` is left.
"""

from __future__ import annotations

from fd_async.policy.engine import Engine
from fd_async.policy.local import LocalEngine, open_engine

__all__ = ["Engine", "LocalEngine", "open_engine"]
