"""The sources that have a name. A table of facts and no code; docs/data.md says where each fact comes from."""

from __future__ import annotations

from msgspec import Struct


class Pinned(Struct, frozen=True, kw_only=True):
    """One version of one data set on the Hugging Face hub."""

    address: str
    """As it would be written in a configuration."""
    columns: dict[str, str]
    num_rows: int
    licence: str
    is_split: bool
    """By hash: `data.train` gets its training part, `data.eval` its test part, unless `#` says otherwise."""
    file_sha256: str = ""
    """Of the file; empty where nobody has told us."""
    statements_sha256: str = ""
    """Ours, of all statements; empty until somebody who reached the hub has told us: it is printed then."""


PINNED: dict[str, Pinned] = {
    "leanworkbook": Pinned(
        address="hub:Goedel-LM/Lean-workbook-proofs@b731852af8d8ab11498fda27bce9020738c01c59"
        "/data/train-00000-of-00001.parquet",
        columns={"name": "problem_id", "formal_statement": "full_proof", "proof": "full_proof"},
        num_rows=29_750,
        licence="MIT",
        is_split=True,
        file_sha256="24fcb50eecc2ccbcc52a58c6412c6d10edbeaa9483a97d30e207fb20ef6e2677",
    ),
    "minif2f": Pinned(
        address="hub:AI-MO/minif2f_test@5def318348521dfc34875045a9ecddf729a2b49f",
        columns={},
        num_rows=244,
        licence="not verified, see its card; MiniF2F itself: MIT and Apache-2.0",
        is_split=False,
    ),
}
