"""The composition root: a configuration becomes open parts and a controller; the only room that knows every other.

running      one experiment, from its folder to its exit code
opening      what outlives every learner of the run: ledger, verifier, feedback, engine
evaluating   an evaluation in a folder of its own; subject: which model, which folder; pace: how fast
replaying    a run from its ledger
models       a finished model for other tools
"""

from fd_async.app.evaluating import Evaluated, evaluate
from fd_async.app.models import export
from fd_async.app.opening import load_renderer, serve
from fd_async.app.replaying import replay
from fd_async.app.running import run, run_experiment
from fd_async.app.subject import evaluation_folder, find_subject

__all__ = [
    "Evaluated",
    "evaluate",
    "evaluation_folder",
    "export",
    "find_subject",
    "load_renderer",
    "replay",
    "run",
    "run_experiment",
    "serve",
]
