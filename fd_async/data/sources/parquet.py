"""Rows of a Parquet file. The only file that imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fd_async.data.sources.rows import Row
from fd_async.errors import PreflightError

_BATCH_ROWS = 1000


def parquet_rows(path: Path) -> Iterator[Row]:
    """Yield every row with all its columns, a batch in memory at a time; rows count from 1.

    Raises:
        PreflightError: pyarrow is missing, or the file is damaged; with the row where reading stopped.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise PreflightError(f"{path}: Parquet files need pyarrow: pip install pyarrow") from error
    number = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            # One column after the other: a column of no interest, however large or strange, is never read.
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError, MemoryError, OverflowError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        after = f" after row {number}" if number else ""
        raise PreflightError(f"{path}: not a whole Parquet file{after}: {why}") from error
