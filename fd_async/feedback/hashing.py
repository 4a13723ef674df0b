"""The key that prevents a second purchase."""

from __future__ import annotations

import hashlib

import msgspec


def prompt_hash(provider: str, model: str, system: str, user: str) -> str:
    """Hash everything that shapes an answer, sha256 in hex.

    The address of the server is left out on purpose: moving a proxy must not buy everything again.
    """
    return hashlib.sha256(msgspec.json.encode([provider, model, system, user])).hexdigest()
