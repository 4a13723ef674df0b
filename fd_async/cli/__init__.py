"""The commands fd-run, fd-check, fd-data, fd-eval, fd-export, fd-view, fd-report and fd-sweep.

The only room that reads arguments, writes to stdout and turns exceptions into exit codes (0 done, 2 configuration,
3 preflight, 4 provider or budget, 5 engine or rank, 6 stalled, 7 alarm, 130 interrupted). Everything heavy is
imported inside the command that needs it: `--help`, `--dry-run` and fd-check answer without torch.
"""

from fd_async.cli.main import (
    check_main,
    data_main,
    eval_main,
    export_main,
    main,
    report_main,
    run_main,
    sweep_main,
    view_main,
)

__all__ = [
    "check_main",
    "data_main",
    "eval_main",
    "export_main",
    "main",
    "report_main",
    "run_main",
    "sweep_main",
    "view_main",
]
