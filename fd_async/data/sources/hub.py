"""Files of data sets on the Hugging Face hub, at one commit. The only file of the package that imports huggingface_hub.

A download has a deadline, is cached, and is checked: the server must have served the commit that was asked for, and a
large file must have the sha256 under which the cache keeps it.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from fd_async.config.places import Place
from fd_async.errors import FdError, PreflightError

_SUFFIXES = (".parquet", ".jsonl")
_REQUEST_TIMEOUT_S = 20.0
_Value = TypeVar("_Value")


def fetch(place: Place, *, offline: bool, timeout_s: float) -> Path:
    """Return the local copy of the file that a `hub:` place names; one that is in the cache is not asked for again.

    Raises:
        PreflightError: it cannot be had within `data.hub_timeout_s`, is not in the cache (offline), or is another file.
    """
    from huggingface_hub import constants

    offline = offline or bool(constants.HF_HUB_OFFLINE)
    snapshot = Path(constants.HF_HUB_CACHE, f"datasets--{place.repository.replace('/', '--')}", "snapshots")
    snapshot /= place.revision
    names = [place.file] if place.file else _data_files(str(p.relative_to(snapshot)) for p in snapshot.rglob("*"))
    is_there = len(names) == 1 and (snapshot / names[0]).is_file()
    if (place.file or offline) and is_there:
        path = snapshot / names[0]
    elif offline:
        raise PreflightError(
            f"{place.base}: is not in the cache {constants.HF_HUB_CACHE}, and data.offline or HF_HUB_OFFLINE forbids to"
            f" ask: run bin/fd-data '{place.base}' once with a connection, or copy that cache"
        )
    else:
        try:
            with _without_retries():
                path = _within(timeout_s, place, lambda: _download(place))
        except PreflightError as error:
            if not is_there:
                raise
            advice = f"the cache has {names[0]}, which data.offline = true takes without asking for others"
            raise PreflightError(f"{error}; {advice}") from error
    _check(place, path)
    return path


@contextmanager
def _without_retries() -> Iterator[None]:
    """Leave out the hub's own lines about each try: one of ours says what came of them."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _download(place: Place) -> Path:
    from huggingface_hub import errors, hf_hub_download

    where = f"{place.base}: "
    try:
        file = place.file or _only_file(place)
        found = hf_hub_download(
            place.repository,
            file,
            repo_type="dataset",
            revision=place.revision,
            etag_timeout=_REQUEST_TIMEOUT_S,
        )
        return Path(found)
    except FdError:
        raise
    except errors.GatedRepoError as error:
        raise PreflightError(f"{where}asks for consent: accept its terms on the hub and set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise PreflightError(f"{where}the hub has no such data set, or HF_TOKEN may not see it") from error
    except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        what = "commit" if isinstance(error, errors.RevisionNotFoundError) else "file"
        raise PreflightError(f"{where}the data set has no such {what}") from error
    except Exception as error:  # whatever httpx and the download backends raise
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        why = f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
        raise PreflightError(f"{where}cannot be had from the hub: {why}") from error


def _only_file(place: Place) -> str:
    """Find the data file of a place that names none."""
    from huggingface_hub import HfApi

    found = _data_files(HfApi().list_repo_files(place.repository, repo_type="dataset", revision=place.revision))
    if len(found) == 1:
        return found[0]
    if not found:
        raise PreflightError(f"{place.base}: has no {' or '.join(_SUFFIXES)} file")
    listed = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    raise PreflightError(
        f"{place.base}: has {len(found)} data files ({listed}): name one behind the commit, /PATH/FILE"
    )


def _data_files(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(_SUFFIXES))


def _check(place: Place, path: Path) -> None:
    """Demand the commit that was asked for and a whole file."""
    parts = path.parts
    served = parts[parts.index("snapshots") + 1] if "snapshots" in parts else place.revision
    if served != place.revision:
        raise PreflightError(f"{place.base}: the hub served the commit {served}, another one than was asked for")
    digest = os.path.realpath(path).rpartition(os.sep)[2]
    if re.fullmatch(r"[0-9a-f]{64}", digest) and sha256_of(path) != digest:
        raise PreflightError(f"{place.base}: its copy in the cache is damaged: delete {os.path.realpath(path)}")


def sha256_of(path: Path) -> str:
    """Hash a file.

    Raises:
        PreflightError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PreflightError(f"{path}: cannot be read: {error.strerror}") from error


def _within(timeout_s: float, place: Place, work: Callable[[], _Value]) -> _Value:
    """Do blocking work in a thread that a process need not wait for; the library itself has no deadline for a whole.

    Raises:
        PreflightError: the time is over; the thread is left behind and ends with the process.
    """
    values: list[_Value] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            values.append(work())
        except BaseException as error:  # is raised in the thread that waits
            raised.append(error)

    thread = threading.Thread(target=run, name="hub", daemon=True)
    thread.start()
    deadline = time.monotonic() + timeout_s
    while thread.is_alive() and time.monotonic() < deadline and threading.main_thread().is_alive():
        thread.join(0.1)  # in short waits: a process that a signal ends waits for the thread that waits here
    if raised:
        raise raised[0]
    if not values:
        raise PreflightError(
            f"{place.base}: the hub did not deliver within data.hub_timeout_s = {timeout_s:g} s; "
            f"what came is kept, so another try goes on from there"
        )
    return values[0]
