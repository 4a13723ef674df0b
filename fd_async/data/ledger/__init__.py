"""The durable record of a run: attempts, verdicts, paid feedback, trained batches, drops.

    writer    Ledger, open_ledger: what the run records and what a resume reads
    reading   read_attempts, read_attempt: what people read, also while a run writes
    browsing  read_lines, read_counts: attempts as a list to filter, without opening one
    packing   records as bytes
    files     tables, opening, what is said when the file fails
    space     how large the file may grow

One SQLite file in WAL mode, written in a thread and synced before a write returns, so whatever the run uses is on
disk first. Writes that wait for the same sync share it (group commit). Facts are only ever added, but for the verdict
of an accepted proof: its audit confirms or replaces it before anyone learns from it, and what was replaced is kept. The
outcome of a rollout moves from `queued` to `trained` or `dropped:CAUSE`, and back to `queued` when a resume returns to
an older checkpoint. Any other move is refused. A write that has begun is finished even where its caller is cancelled:
what it records may have cost money. An attempt under way has one row that is replaced as it goes on and goes with the
transaction that records its end. One process writes at a time; others may read.
"""

from fd_async.data.ledger.reading import AttemptRecord, is_empty, read_attempt, read_attempts
from fd_async.data.ledger.writer import Ledger, QueuedRollout, open_ledger

__all__ = ["AttemptRecord", "Ledger", "QueuedRollout", "is_empty", "open_ledger", "read_attempt", "read_attempts"]
