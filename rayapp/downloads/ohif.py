"""The OHIF viewer (https://ohif.org): where its prepared build lies, and how it gets there.

The build comes from npm in one pinned version, is checked against its digest, slimmed by what nothing here needs, and
made to live under `/ohif/` in place of `/`. It appears whole or not at all; two installations at once do no harm.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from rayapp.errors import NotFound, RayappError, Unreadable

PACKAGE, VERSION = "@ohif/app", "3.13.2"
SHA512 = "WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
"""The archive's digest as npm writes it."""
BASE = "/ohif/"
MARK = "rayapp.json"
"""In a build that was prepared here: its package and version."""
NPM_SECONDS = 600

_UNNEEDED = ("ort/", "dicom-microscopy-viewer/", "sw.js", "app-config.js")
"""A network runtime and a microscopy viewer (156 MB of 204), a worker that caches `/`, and a demo's settings."""
_MAX_UNPACKED = 1 << 30
_ROOT = b'__webpack_require__.p = "/";'
_HTML = re.compile(r'((?:href|src|content)="|PUBLIC_URL=")/')

Progress = Callable[[int, int], None]
"""Told how many bytes of the archive are unpacked, and of how many."""


class InstallFailed(RayappError):
    """The viewer could not be fetched: the text says what is missing."""


def is_prepared(folder: Path) -> bool:
    """True when the folder holds this version, prepared by `install`."""
    try:
        return bool(json.loads((folder / MARK).read_text())["version"] == VERSION)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def fetch(folder: Path) -> Path:
    """The package's archive, fetched by npm into `folder`.

    Raises InstallFailed without npm, or with its words when it fails.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise InstallFailed(
            f"npm is needed to fetch {PACKAGE} {VERSION}: install Node.js, or fetch the archive elsewhere with "
            f"`npm pack {PACKAGE}@{VERSION}` and give it with --archive"
        )
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(folder), "--fetch-retries=1", "--silent"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=NPM_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise InstallFailed(f"npm did not fetch {PACKAGE} within {NPM_SECONDS} s: is there a network?") from error
    found = sorted(folder.glob("*.tgz"))
    if done.returncode or not found:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise InstallFailed(
            f"npm could not fetch {PACKAGE} {VERSION} (is there a network?): {said or 'no reason given'}"
        )
    return found[0]


def install(folder: Path, *, archive: Path | None = None, progress: Progress = lambda there, size: None) -> bool:  # noqa: ARG005
    """Put the prepared viewer into `folder`; False if it was there already. `archive` is the package, else npm's.

    Raises:
        InstallFailed: if it cannot be fetched.
        NotFound: if there is no such archive.
        Unreadable: if the archive is not the pinned one.
    """
    if is_prepared(folder):
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        source = fetch(Path(scratch)) if archive is None else archive
        _check(source)
        made = Path(scratch) / "made"
        _unpack(source, made, progress)
        prepare(made)
        if folder.exists():  # another version, or half of one
            folder.rename(Path(scratch) / "old")
        try:
            made.rename(folder)
        except OSError:
            if not is_prepared(folder):  # somebody else was faster
                raise
    return True


def _check(archive: Path) -> None:
    try:
        with archive.open("rb") as file:
            digest = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    except FileNotFoundError:
        raise NotFound(f"there is no archive {archive}") from None
    if digest != SHA512:
        raise Unreadable(f"{archive.name} is not {PACKAGE} {VERSION}: its SHA-512 digest is {digest}")


def _unpack(archive: Path, folder: Path, progress: Progress) -> None:
    """The `dist` part of the package without what is not needed."""
    size = archive.stat().st_size
    room = _MAX_UNPACKED
    with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r|gz") as tar:
        for member in tar:
            progress(raw.tell(), size)
            inside = PurePosixPath(member.name)
            if not member.isreg() or inside.parts[:2] != ("package", "dist"):
                continue
            name = inside.relative_to("package/dist")
            if str(name).startswith(_UNNEEDED):
                continue
            room -= member.size
            if room < 0:
                raise Unreadable(f"the archive unpacks to more than {_MAX_UNPACKED >> 20} MiB")
            tar.extract(member.replace(name=str(name), mode=0o644), folder, filter="data")
    progress(size, size)


def prepare(folder: Path) -> None:
    """Make a build for `/` one for `/ohif/`, and mark it. Raises Unreadable if it is built otherwise."""
    moved = 0
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".js":
            text = path.read_bytes()
            moved += text.count(_ROOT)
            path.write_bytes(text.replace(_ROOT, _ROOT.replace(b'"/"', f'"{BASE}"'.encode())))
        elif path.suffix == ".css":
            path.write_bytes(path.read_bytes().replace(b"url(/", f"url({BASE}".encode()))
        elif path.suffix == ".html":
            path.write_text(_HTML.sub(rf"\g<1>{BASE}", path.read_text()))
        elif path.name in ("manifest.json", "browserconfig.xml"):
            path.write_text(path.read_text().replace('"/assets', f'"{BASE}assets'))
    if not moved or not (folder / "index.html").is_file():
        raise Unreadable(f"this build of {PACKAGE} is laid out otherwise: it cannot be moved under {BASE}")
    (folder / MARK).write_text(json.dumps({"package": PACKAGE, "version": VERSION}))
