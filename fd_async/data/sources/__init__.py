"""Where statements come from: local files, folders of Lean sources, pinned data sets of the Hugging Face hub.

Owns reading, checking, the split by hash and headers; `reading` is what other rooms call. The text of a statement is
kept byte for byte. Nothing is dropped: one bad row refuses the whole source with one line.
"""

from fd_async.data.sources.reading import (
    Selection,
    Sources,
    describe,
    overlaps,
    read_selection,
    read_suites,
    read_train,
)

__all__ = ["Selection", "Sources", "describe", "overlaps", "read_selection", "read_suites", "read_train"]
