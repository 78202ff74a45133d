"""Zoo: fetching MONAI bundles, by `monai.bundle.download`. A bundle appears under its name whole or not at all.

With an address and a digest the archive is checked before it is opened; by name, MONAI decides where it is fetched
from and what is checked.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from rayapp.errors import BadRequest, ModelBroken

SOURCES = ("monaihosting", "github", "ngc", "huggingface_hub")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch(
    name: str,
    folder: Path,
    *,
    source: str = "monaihosting",
    version: str | None = None,
    url: str | None = None,
    sha256: str | None = None,
) -> Path:
    """The bundle in `folder`, fetched if it is not there yet: from the zoo, or as a zip archive from `url`.

    Raises:
        BadRequest: for an unknown source, or an address without the archive's SHA-256.
        ModelBroken: if it cannot be fetched, is another archive than `sha256` says, or holds no bundle of that name.
    """
    target = folder / name
    if (target / "configs").is_dir():
        return target
    if source not in SOURCES:
        raise BadRequest(f"source {source!r} is none of {', '.join(SOURCES)}")
    if url is not None and not _SHA256.fullmatch(sha256 or ""):
        raise BadRequest(f"the address of bundle {name!r} needs its archive's sha256 beside it, 64 hex digits")
    folder.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".fetched-", dir=folder))
    try:
        _download(name, staged, source=source, version=version, url=url, sha256=sha256)
        if not (staged / name / "configs").is_dir():
            raise ModelBroken(f"what was fetched for bundle {name!r} holds no {name}/configs")
        (staged / name).replace(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


def _download(
    name: str, staged: Path, *, source: str, version: str | None, url: str | None, sha256: str | None
) -> None:
    from monai.apps.utils import download_url  # slow to import, and seldom needed
    from monai.bundle import download

    try:
        if url is not None:  # where the archive lies already, `download` only unpacks it
            download_url(url=url, filepath=staged / f"{name}.zip", hash_val=sha256, hash_type="sha256", progress=False)
        download(name=name, version=version, bundle_dir=str(staged), source=source, url=url, progress=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelBroken(f"bundle {name!r} could not be fetched: {type(error).__name__}: {reason}") from error
