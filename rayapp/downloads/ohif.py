"""Installing the OHIF viewer (https://ohif.org).

A pinned version is downloaded from npm, verified by its digest, stripped of parts that are not used here, and rebased
from `/` to `/ohif/`. The installation is atomic, and two at once do not disturb each other.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path, PurePosixPath

from rayapp.errors import NotFound, RayappError, Unreadable
from rayapp.files.archives import Progress, unpack
from rayapp.protocol import Route

PACKAGE, VERSION = "@ohif/app", "3.13.2"
SHA512 = "WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
"""Digest of the archive, in npm's notation."""

MARK = "rayapp.json"
"""File with package and version, in a build that was prepared here."""
NPM_SECONDS = 600

_UNNEEDED = ("ort/", "dicom-microscopy-viewer/", "sw.js", "app-config.js")
"""ONNX runtime and microscopy viewer (156 of 204 MB), a service worker that caches `/`, and demo settings."""
_MAX_UNPACKED = 1 << 30
_DIST = "package/dist"
_ROOT = b'__webpack_require__.p = "/";'
_HTML = re.compile(r'((?:href|src|content)="|PUBLIC_URL=")/')


class InstallFailed(RayappError):
    """The viewer could not be downloaded; the text says what is missing."""


def is_prepared(folder: Path) -> bool:
    """True if the folder holds this version, prepared by `install`."""
    try:
        return bool(json.loads((folder / MARK).read_text())["version"] == VERSION)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def fetch(folder: Path) -> Path:
    """Download the package's archive into `folder` with npm. Raises InstallFailed if npm is missing or fails."""
    npm = shutil.which("npm")
    if npm is None:
        raise InstallFailed(
            f"npm is needed to download {PACKAGE} {VERSION}: install Node.js, or download the archive elsewhere with "
            f"`npm pack {PACKAGE}@{VERSION}` and pass it with --archive"
        )
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(folder), "--fetch-retries=1", "--silent"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=NPM_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise InstallFailed(
            f"npm did not download {PACKAGE} within {NPM_SECONDS} s: check the network connection"
        ) from error
    archives = sorted(folder.glob("*.tgz"))
    if done.returncode or not archives:
        reason = " ".join((done.stderr or done.stdout).split())[-300:]
        raise InstallFailed(
            f"npm could not download {PACKAGE} {VERSION}; check the network connection: {reason or 'no reason given'}"
        )
    return archives[0]


def install(folder: Path, *, archive: Path | None = None, progress: Progress = lambda there, size: None) -> bool:  # noqa: ARG005
    """Install the prepared viewer into `folder`.

    Args:
        folder: where to install it.
        archive: the package's archive; by default it is downloaded with npm.
        progress: called while unpacking.

    Returns:
        False if this version was installed already.

    Raises:
        InstallFailed: if the archive cannot be downloaded.
        NotFound: if `archive` does not exist.
        Unreadable: if the archive is not the pinned version.
    """
    if is_prepared(folder):
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        source = fetch(Path(scratch)) if archive is None else archive
        _check(source)
        build = Path(scratch) / "build"
        unpack(source, build, max_bytes=_MAX_UNPACKED, place=_place, progress=progress)
        prepare(build)
        old = Path(scratch) / "old"  # another version, or a partial one
        with contextlib.suppress(FileNotFoundError):
            folder.rename(old)
        try:
            build.rename(folder)
        except OSError:
            if is_prepared(folder):  # a concurrent installation was faster
                return True
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
    return True


def _check(archive: Path) -> None:
    try:
        with archive.open("rb") as file:
            digest = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    except FileNotFoundError:
        raise NotFound(f"no archive {archive}: check the path") from None
    if digest != SHA512:
        raise Unreadable(f"{archive.name} is not {PACKAGE} {VERSION}: its SHA-512 digest is {digest}, not {SHA512}")


def _place(path: PurePosixPath) -> PurePosixPath | None:
    """Place the package's `dist` folder, without unused parts."""
    if not path.is_relative_to(_DIST):
        return None
    name = path.relative_to(_DIST)
    return None if str(name).startswith(_UNNEEDED) else name


def prepare(folder: Path) -> None:
    """Rebase a build from `/` to `/ohif/` and mark it as prepared. Raises Unreadable for an unexpected layout."""
    replaced = 0
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".js":
            text = path.read_bytes()
            replaced += text.count(_ROOT)
            path.write_bytes(text.replace(_ROOT, _ROOT.replace(b'"/"', f'"{Route.OHIF_ROOT}"'.encode())))
        elif path.suffix == ".css":
            path.write_bytes(path.read_bytes().replace(b"url(/", f"url({Route.OHIF_ROOT}".encode()))
        elif path.suffix == ".html":
            path.write_text(_HTML.sub(rf"\g<1>{Route.OHIF_ROOT}", path.read_text()))
        elif path.name in ("manifest.json", "browserconfig.xml"):
            path.write_text(path.read_text().replace('"/assets', f'"{Route.OHIF_ROOT}assets'))
    if not replaced or not (folder / "index.html").is_file():
        raise Unreadable(f"this build of {PACKAGE} has an unexpected layout and cannot be rebased to {Route.OHIF_ROOT}")
    (folder / MARK).write_text(json.dumps({"package": PACKAGE, "version": VERSION}))
