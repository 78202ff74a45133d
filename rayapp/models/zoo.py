"""Downloading MONAI bundles with `monai.bundle.download`. A bundle appears under its name complete or not at all.

For a bundle of the zoo, the zoo's index (`models/model_info.json` of its repository, or of a mirror) gives the address
and the SHA-1 of each version's archive; an archive from elsewhere is given by address and SHA-256. The digest is
checked before the archive is opened. Two servers that fetch the same bundle do not disturb each other; the first to
finish wins.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Mapping
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
"""Maximum size of the index."""
PATIENCE_S = 30.0
"""Timeout in seconds without receiving any data."""
PIECE = 1 << 20
STAGED = ".fetched-"
STALE_S = 24 * 3600.0
"""Age in seconds after which the remains of an aborted download are deleted."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")


class WrongDigest(Exception):
    """The downloaded archive is damaged, or another file."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A bundle's zip archive: its address, and its digest with the given algorithm."""

    url: str
    digest: str
    algorithm: str

    @property
    def host(self) -> str:
        """The server that it is downloaded from; "" for a local file."""
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
    """The bundle's folder in `folder`, downloaded if it is not there yet.

    Args:
        name: name of the bundle.
        folder: where bundles are kept.
        index: address of the zoo's index.
        version: version in the zoo; by default the newest.
        url: address of a zip archive to download instead of one from the zoo.
        sha256: its digest; required with `url`.

    Raises:
        BadRequest: if `url` is given without a valid `sha256`.
        ModelBroken: if it cannot be downloaded, its digest is wrong, or it has no bundle of that name.
    """
    target = folder / name
    if (target / "configs").is_dir():
        return target
    if url is not None and not _SHA256.fullmatch(sha256 or ""):
        raise BadRequest(f"bundle {name!r} has an address but no valid sha256: give its archive's, 64 hex digits")
    if url is not None:
        archive = Archive(url=url, digest=str(sha256), algorithm="sha256")
    else:
        archive = find_archive(name, version, index)
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    staged = Path(tempfile.mkdtemp(prefix=STAGED, dir=folder))
    try:
        _download(name, staged, archive)
        if not (staged / name / "configs").is_dir():
            raise ModelBroken(f"the archive of bundle {name!r} has no {name}/configs")
        try:
            (staged / name).replace(target)
        except OSError:
            if not (target / "configs").is_dir():  # else another server was faster
                raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


def find_archive(name: str, version: str | None, index: str) -> Archive:
    """The archive of a version, by default the newest, from the index at the given address.

    Raises ModelBroken if the index cannot be read, or lacks the bundle, the version or its digest.
    """
    entries = _index(name, index)
    versions = {key.removeprefix(f"{name}_v"): key for key in entries if key.startswith(f"{name}_v")}
    if not versions:
        names = {key.rpartition("_v")[0] for key in entries}
        near = difflib.get_close_matches(name, sorted(names), n=1)
        raise ModelBroken(f"the zoo has no bundle {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    newest = max(versions, key=_order)
    entry = entries.get(versions.get(version or newest, ""))
    if entry is None:
        raise ModelBroken(f"the zoo has no version {version} of bundle {name!r}; the newest is {newest}")
    digest, source = str(entry.get("checksum", "")), str(entry.get("source", ""))
    if not _SHA1.fullmatch(digest) or not source:
        raise ModelBroken(f"the zoo's index lacks address or checksum of bundle {name!r} {version or newest}")
    return Archive(url=source, digest=digest, algorithm="sha1")


def _index(name: str, address: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE_S) as answer:
            index = json.loads(answer.read(INDEX_BYTES))
    except (OSError, ValueError, HTTPException) as error:
        reason = _reason(error, urlparse(address).netloc)
        raise ModelBroken(f"bundle {name!r} could not be downloaded: the zoo's index: {reason}") from error
    if not isinstance(index, dict) or not all(isinstance(entry, dict) for entry in index.values()):
        raise ModelBroken(f"bundle {name!r} could not be downloaded: {address} is not the index of a model zoo")
    return index


def _order(version: str) -> tuple[bool, Version]:
    """Sort key of versions; strings that are not versions come first."""
    try:
        return True, Version(version)
    except InvalidVersion:
        return False, Version("0")


def _download(name: str, staged: Path, archive: Archive) -> None:
    from monai.bundle import download  # slow to import and rarely needed

    try:
        # `download` only unpacks an archive that is there already; by itself it would wait for ever.
        _download_file(archive, staged / f"{name}.zip")
        download(name=name, bundle_dir=str(staged), url=archive.url, progress=False)
    except Exception as error:
        raise ModelBroken(f"bundle {name!r} could not be downloaded: {_reason(error, archive.host)}") from error


def _download_file(archive: Archive, to: Path) -> None:
    """Download an archive to a file.

    Raises:
        OSError, HTTPException: If it cannot be downloaded.
        WrongDigest: If the file does not have the archive's digest.
    """
    digest = hashlib.new(archive.algorithm, usedforsecurity=False)
    with urllib.request.urlopen(archive.url, timeout=PATIENCE_S) as answer, to.open("wb") as file:
        announced = answer.headers.get("Content-Length")
        while piece := answer.read(PIECE):
            file.write(piece)
            digest.update(piece)
        if announced is not None and file.tell() < int(announced):
            raise ContentTooShortError("", (str(to), answer.headers))
    if digest.hexdigest() != archive.digest:
        raise WrongDigest


def _reason(error: BaseException, host: str) -> str:
    """The cause of a failed download, in one line."""
    host = host or "the file"
    match error:
        case HTTPError():
            return f"{host} answers {error.code} {error.reason}"
        case ContentTooShortError():
            return f"{host} broke off the transfer"
        case URLError():
            return f"{host} cannot be reached ({error.reason})"
        case TimeoutError():
            return f"{host} sent nothing for {PATIENCE_S:g} s"
        case WrongDigest():
            return f"the archive from {host} does not match its checksum; it was discarded"
        case BadZipFile():
            return f"the file from {host} is not a zip archive"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _sweep(folder: Path) -> None:
    """Delete the remains of downloads that were killed."""
    for leftover in folder.glob(f"{STAGED}*"):
        if time.time() - leftover.stat().st_mtime > STALE_S:
            shutil.rmtree(leftover, ignore_errors=True)
