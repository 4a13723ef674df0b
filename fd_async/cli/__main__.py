"""`python -m fd_async.cli COMMAND ...`, what the scripts in bin/ execute."""

import sys

from fd_async.cli.main import leave, main

sys.exit(leave(main(sys.argv[1:])))
