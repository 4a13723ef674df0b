"""What the room may load."""

from __future__ import annotations

import subprocess
import sys


def test_advantages_load_without_torch() -> None:
    """The controller computes advantages without paying for torch."""
    code = "import sys, fd_async.algorithms.advantages; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0
