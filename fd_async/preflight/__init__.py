"""What a configuration needs of the machine, and whether it is there. Imports no torch.

`inspect` only looks and answers at once; `try_verifier` starts the verifier and has it judge checks whose answer is
known, which takes as long as the header loads. Each finding says how to get what is missing.
"""

from fd_async.preflight.findings import Finding
from fd_async.preflight.inspection import inspect, try_verifier

__all__ = ["Finding", "inspect", "try_verifier"]
