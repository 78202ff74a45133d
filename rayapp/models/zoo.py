"""Zoo: fetching MONAI bundles, by `monai.bundle.download`. A bundle appears under its name whole or not at all.

By name, the zoo's own index (`models/model_info.json` of its repository, or a mirror of it) says where the archive of
each version lies and what its SHA-1 is; an archive from elsewhere comes with an address and its SHA-256. Either is
checked before it is opened. Two servers that fetch the same bundle at once do so side by side; the first one's stays.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import shutil
import socket
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import ContentTooShortError, HTTPError, URLError
from urllib.parse import urlparse
from zipfile import BadZipFile

from packaging.version import InvalidVersion, Version

from rayapp.errors import BadRequest, ModelBroken

INDEX = "https://raw.githubusercontent.com/Project-MONAI/model-zoo/dev/models/model_info.json"
INDEX_BYTES = 16 << 20
"""More than that is no index."""
PATIENCE_S = 30.0
"""Seconds without a byte, after which who sends is taken to be away."""
STAGED = ".fetched-"
STALE_S = 24 * 3600.0
"""Age of what a killed server left of a download, from which it is swept away."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A bundle's zip: where it lies, and the digest, of the kind that `algorithm` names, that it must have."""

    url: str
    digest: str
    algorithm: str

    @property
    def host(self) -> str:
        """Who sends it; empty for a file."""
        return urlparse(self.url).netloc


def fetch(
    name: str,
    folder: Path,
    *,
    index: str = INDEX,
    version: str | None = None,
    url: str | None = None,
    sha256: str | None = None,
) -> Path:
    """The bundle in `folder`, fetched if it is not there yet: from the zoo (its newest version, or `version`), or as a
    zip archive from `url`.

    Raises:
        BadRequest: for an address without the archive's SHA-256.
        ModelBroken: if it cannot be fetched, is another archive than its digest says, or holds no bundle of that name.
    """
    target = folder / name
    if (target / "configs").is_dir():
        return target
    if url is not None and not _SHA256.fullmatch(sha256 or ""):
        raise BadRequest(f"the address of bundle {name!r} needs its archive's sha256 beside it, 64 hex digits")
    if url is not None:
        archive = Archive(url=url, digest=str(sha256), algorithm="sha256")
    else:
        archive = listed(name, version, index)
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    staged = Path(tempfile.mkdtemp(prefix=STAGED, dir=folder))
    try:
        _download(name, staged, archive)
        if not (staged / name / "configs").is_dir():
            raise ModelBroken(f"what was fetched for bundle {name!r} holds no {name}/configs")
        try:
            (staged / name).replace(target)
        except OSError:
            if not (target / "configs").is_dir():  # else another server was quicker
                raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


def listed(name: str, version: str | None, index: str) -> Archive:
    """The archive of a version, by default the newest, as the index at that address has it.

    Raises ModelBroken if the index cannot be read, or has no such bundle or version, or no digest of it.
    """
    known = _index(name, index)
    versions = {key.removeprefix(f"{name}_v"): key for key in known if key.startswith(f"{name}_v")}
    if not versions:
        names = {key.rpartition("_v")[0] for key in known}
        near = difflib.get_close_matches(name, sorted(names), n=1)
        raise ModelBroken(f"the zoo has no bundle {name!r}" + (f"; it has {near[0]!r}" if near else ""))
    newest = max(versions, key=_order)
    entry = known.get(versions.get(version or newest, ""))
    if entry is None:
        raise ModelBroken(f"the zoo has no version {version} of bundle {name!r}; the newest is {newest}")
    digest, source = str(entry.get("checksum", "")), str(entry.get("source", ""))
    if not _SHA1.fullmatch(digest) or not source:
        raise ModelBroken(f"the zoo's index has no address and checksum of bundle {name!r} {version or newest}")
    return Archive(url=source, digest=digest, algorithm="sha1")


def _index(name: str, address: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE_S) as answer:
            read = json.loads(answer.read(INDEX_BYTES))
    except (OSError, ValueError, HTTPException) as error:
        why = _why(error, urlparse(address).netloc)
        raise ModelBroken(f"bundle {name!r} could not be fetched: the zoo's index: {why}") from error
    if not isinstance(read, dict) or not all(isinstance(entry, dict) for entry in read.values()):
        raise ModelBroken(f"bundle {name!r} could not be fetched: {address} is no index of a zoo")
    return read


def _order(version: str) -> tuple[bool, Version]:
    """Sorts versions; what is none comes first."""
    try:
        return True, Version(version)
    except InvalidVersion:
        return False, Version("0")


def _download(name: str, staged: Path, archive: Archive) -> None:
    from monai.apps.utils import download_url  # slow to import, and seldom needed
    from monai.bundle import download

    try:
        # Where the archive lies already, `download` only unpacks it.
        file = staged / f"{name}.zip"
        with _impatient():
            download_url(
                url=archive.url, filepath=file, hash_val=archive.digest, hash_type=archive.algorithm, progress=False
            )
        download(name=name, bundle_dir=str(staged), url=archive.url, progress=False)
    except Exception as error:
        raise ModelBroken(f"bundle {name!r} could not be fetched: {_why(error, archive.host)}") from error


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Sockets opened meanwhile do not wait for ever: MONAI's downloads set no limit themselves."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _why(error: BaseException, host: str) -> str:
    """In words for who named the bundle."""
    from monai.apps.utils import HashCheckError

    host = host or "the file"
    match error:
        case HTTPError():
            return f"{host} answers {error.code} {error.reason}"
        case ContentTooShortError():
            return f"{host} broke off in the middle of it"
        case URLError():
            return f"{host} cannot be reached ({error.reason})"
        case TimeoutError():
            return f"{host} sent nothing for {PATIENCE_S:g} s"
        case HashCheckError():
            return f"what {host} sent is another archive than its checksum says; nothing of it was used"
        case BadZipFile():
            return f"what {host} sent is no zip archive"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _sweep(folder: Path) -> None:
    """Remove what servers that were killed in the middle of a download left."""
    for left in folder.glob(f"{STAGED}*"):
        if time.time() - left.stat().st_mtime > STALE_S:
            shutil.rmtree(left, ignore_errors=True)
