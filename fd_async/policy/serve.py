"""`bin/fd-serve`: one `vllm serve` as a run's configuration wants it, with all that pushes need.

What it adds to vLLM: the engine's arguments and environment that `policy.engine = "local"` would have, the route that
takes and gives token ids, the routes for pushes (vLLM calls them development mode), the workers' extension, and the
guard of `servers.guard` in front of everything.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fd_async.config.load import load_config
from fd_async.config.schema import RunConfig
from fd_async.errors import ConfigError, FdError, PreflightError
from fd_async.policy.child import do_without_torchvision, logging_config
from fd_async.policy.environment import engine_environment
from fd_async.policy.launch import engine_arguments
from fd_async.policy.servers.guard import KEY_VARIABLE
from fd_async.scratch import scratch_folder

_OWN = {
    "--host": "give it before, where fd-serve sees whether a key is needed",
    "--port": "give it before",
    "--uds": "runs speak TCP; take it out",
    "--api-key": "name its environment variable in policy.servers_key_env",
    "--config": "vLLM's own file could set --host; give every argument by itself",
}
"""What may not be said to vLLM alone, and what to do instead."""
_EPILOG = "Everything after -- goes to `vllm serve` as it is. See docs/servers.md."


def main(argv: Sequence[str]) -> int:
    """Serve until the process is told to end; return the exit code."""
    arguments, own = _parse(argv)
    try:
        config = load_config(arguments.config[0], arguments.config[1:], arguments.set, check_files=False)
        _refuse_own(own)
        key = _key(config, arguments.host)
    except FdError as error:
        sys.stderr.write(f"fd-serve: {error}\n")
        return error.exit_code
    with scratch_folder("serve") as scratch:
        logging_file = scratch / "logging.json"
        logging_file.write_text(logging_config(None, os.getpid()))
        os.environ.update(engine_environment(config.model.path, config.policy, logging_file))
        os.environ["VLLM_SERVER_DEV_MODE"] = "1"
        if key:
            os.environ[KEY_VARIABLE] = key
        return _serve([*vllm_arguments(config, arguments.host, arguments.port, guarded=bool(key)), *own])


def vllm_arguments(config: RunConfig, host: str, port: int, *, guarded: bool) -> list[str]:
    """Return the arguments of `vllm serve`."""
    engine = engine_arguments(
        config.model.path, config.policy, dtype=config.model.dtype, seed=config.run.seed, frozen=False
    )
    del engine["disable_log_stats"]  # /metrics tells the controller how full the KV cache is
    engine.pop("weight_transfer_config", None)  # NCCL reaches no server; a run on servers pushes otherwise
    if not config.policy.gpus and config.policy.tensor_parallel_size == 1:
        # As in `launch`: vLLM's own choice on a CPU spins on shared memory, a whole core, between messages.
        engine["distributed_executor_backend"] = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
    words = [engine.pop("model"), "--host", host, "--port", str(port), "--enable-scale-out"]
    for name, value in engine.items():
        words += _option(name, value)
    if guarded:
        words += ["--middleware", "fd_async.policy.servers.guard.Guard"]
    return [*words, "--disable-uvicorn-access-log", "--no-log-error-stack"]


def _option(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", str(value)]


def _serve(words: list[str]) -> int:
    from vllm.entrypoints.cli.main import main as vllm_main
    from vllm.model_executor.models import registry

    if "--kv-cache-memory-bytes" in words:
        do_without_torchvision()
        registry._run_in_subprocess = _call  # see `launch`: a fresh interpreter would look for torchvision
    sys.argv = ["vllm", "serve", *words]
    vllm_main()
    return 0


def _call(function: Any) -> Any:
    return function()


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="fd-serve", description=__doc__, epilog=_EPILOG, allow_abbrev=False)
    parser.add_argument("--config", action="append", type=Path, required=True, metavar="FILE", help="the run's files")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="one key; repeatable")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; any but this machine's wants a key")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    own = list(argv)
    split = own.index("--") if "--" in own else len(own)
    return parser.parse_args(own[:split]), own[split + 1 :]


def _refuse_own(words: list[str]) -> None:
    """Let nothing after -- change who may connect behind the guard's back.

    Raises:
        ConfigError: names the argument.
    """
    for word in words:
        flag = word.split("=")[0].replace("_", "-")
        if flag in _OWN or (flag.startswith("--ho") and "--host".startswith(flag)):
            raise ConfigError(f"{word} stands after --: {_OWN.get(flag, _OWN['--host'])}")


def _key(config: RunConfig, host: str) -> str:
    """Return the key that clients must show; empty where only this machine can connect and none is set.

    Raises:
        ConfigError: the variable is empty.
        PreflightError: other machines could connect without a key.
    """
    variable = config.policy.servers_key_env
    key = os.environ.get(variable, "") if variable else ""
    if variable and not key:
        raise ConfigError(f"policy.servers_key_env names {variable}, which is not set: export the key in it")
    if not key and not _is_loopback(host):
        raise PreflightError(
            f"--host {host} lets other machines change the weights and run code in the workers: set a key in the"
            " variable that policy.servers_key_env names, or listen on 127.0.0.1"
        )
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
