"""Files of data sets on the Hugging Face hub, at one commit. The only file of the package that imports huggingface_hub.

A download has a deadline, is cached, and is checked: the server must have served the commit that was asked for, and a
large file must have the sha256 under which the cache keeps it.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fd_async.config.places import Place
from fd_async.errors import FdError, PreflightError

_SUFFIXES = (".parquet", ".jsonl")
_REQUEST_TIMEOUT_S = 20.0
_Value = TypeVar("_Value")


def fetch(place: Place, *, offline: bool, timeout_s: float) -> Path:
    """Return the local copy of the file that a `hub:` place names.

    Raises:
        PreflightError: it cannot be had within `data.hub_timeout_s`, is not in the cache (offline), or is another file.
    """
    from huggingface_hub import constants

    offline = offline or bool(constants.HF_HUB_OFFLINE)
    path = _within(timeout_s, place, lambda: _locate(place, offline))
    _check(place, path)
    return path


def _locate(place: Place, offline: bool) -> Path:
    from huggingface_hub import errors, hf_hub_download

    where = f"{place.base}: "
    try:
        file = place.file or _only_file(place, offline)
        found = hf_hub_download(
            place.repository,
            file,
            repo_type="dataset",
            revision=place.revision,
            local_files_only=offline,
            etag_timeout=_REQUEST_TIMEOUT_S,
        )
        return Path(found)
    except FdError:
        raise
    except errors.GatedRepoError as error:
        raise PreflightError(
            f"{where}the data set asks for consent: accept its terms on the hub and set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise PreflightError(f"{where}the hub has no such data set, or HF_TOKEN may not see it") from error
    except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        what = "commit" if isinstance(error, errors.RevisionNotFoundError) else "file"
        raise PreflightError(f"{where}the data set has no such {what}") from error
    except (errors.LocalEntryNotFoundError, errors.CacheNotFound, errors.OfflineModeIsEnabled) as error:
        if offline:
            raise PreflightError(
                f"{where}is not in the cache {constants_cache()}, and data.offline or HF_HUB_OFFLINE forbids to ask: "
                f"run bin/fd-data '{place.base}' once with a connection, or copy that cache"
            ) from error
        raise PreflightError(f"{where}the hub cannot be reached and the cache has no copy: {_why(error)}") from error
    except Exception as error:  # whatever httpx and the download backends raise
        raise PreflightError(f"{where}cannot be read from the hub: {_why(error)}") from error


def _only_file(place: Place, offline: bool) -> str:
    """Find the data file of a place that names none."""
    if offline:
        from huggingface_hub import snapshot_download

        folder = Path(
            snapshot_download(place.repository, repo_type="dataset", revision=place.revision, local_files_only=True)
        )
        names = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    else:
        from huggingface_hub import HfApi

        names = HfApi().list_repo_files(place.repository, repo_type="dataset", revision=place.revision)
    found = sorted(name for name in names if name.endswith(_SUFFIXES))
    if len(found) == 1:
        return found[0]
    listed = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    raise PreflightError(
        f"{place.base}: has {len(found)} data files ({listed}): name one behind the commit, /PATH/FILE"
        if found
        else f"{place.base}: has no {' or '.join(_SUFFIXES)} file{' in the cache' if offline else ''}"
    )


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
    thread.join(timeout_s)
    if raised:
        raise raised[0]
    if not values:
        raise PreflightError(
            f"{place.base}: the hub did not deliver within data.hub_timeout_s = {timeout_s:g} s; "
            f"what came is kept, so another try goes on from there"
        )
    return values[0]


def constants_cache() -> str:
    """Name the folder of the cache."""
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _why(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
