"""The composition root: a configuration becomes open parts and a controller; the only room that knows every other.

running   one experiment, from its folder to its exit code
opening   what outlives every learner of the run: ledger, verifier, feedback, engine
models    what is done with a finished model: evaluate, export
"""

from fd_async.app.models import evaluate, export
from fd_async.app.opening import load_renderer, serve
from fd_async.app.replaying import replay
from fd_async.app.running import run, run_experiment

__all__ = ["evaluate", "export", "load_renderer", "replay", "run", "run_experiment", "serve"]
