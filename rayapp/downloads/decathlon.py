"""The ten tasks of the Medical Segmentation Decathlon (Antonelli et al., Nature Communications 13, 2022).

Addresses and digests are those in MONAI. A data set appears under its name complete or not at all.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import aiohttp

from rayapp.errors import Conflict, NotFound, RayappError, TooLarge, Unreadable
from rayapp.files.archives import unpack

CHUNK = 1 << 20
Progress = Callable[[int, int | None], None]
"""Called with the number of bytes received, and the total if known."""


class DownloadFailed(RayappError):
    """The data set could not be downloaded: try again later."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One task of the Decathlon.

    Attributes:
        name: name of the task, such as `Task09_Spleen`.
        modality: modality and number of channels.
        structures: the labelled structures.
        images: number of training images, which have labels, and of test images.
        size: approximate size of the archive.
    """

    name: str
    modality: str
    structures: str
    images: tuple[int, int]
    size: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """Address of an archive and its MD5 digest."""

    url: str
    md5: str


DATASETS = {
    name: Dataset(name=name, modality=modality, structures=structures, images=images, size=size)
    for name, modality, structures, images, size in (
        ("Task01_BrainTumour", "MRI, 4 channels", "oedema, two kinds of tumour", (484, 266), "7.1 GB"),
        ("Task02_Heart", "MRI", "left atrium", (20, 10), "435 MB"),
        ("Task03_Liver", "CT", "liver, tumour", (131, 70), "27 GB"),
        ("Task04_Hippocampus", "MRI", "anterior and posterior hippocampus", (263, 131), "27 MB"),
        ("Task05_Prostate", "MRI, 2 channels", "peripheral and transition zone", (32, 16), "229 MB"),
        ("Task06_Lung", "CT", "tumour", (64, 32), "8.5 GB"),
        ("Task07_Pancreas", "CT", "pancreas, tumour", (282, 139), "11.5 GB"),
        ("Task08_HepaticVessel", "CT", "vessels, tumour", (303, 140), "8.8 GB"),
        ("Task09_Spleen", "CT", "spleen", (41, 20), "1.5 GB"),
        ("Task10_Colon", "CT", "tumour", (126, 64), "5.9 GB"),
    )
}


def find_dataset(name: str) -> Dataset:
    """The data set of that name, such as `Task09_Spleen` or `spleen`. Raises NotFound, listing the names."""
    for dataset in DATASETS.values():
        if name.lower() in (dataset.name.lower(), dataset.name.partition("_")[2].lower()):
            return dataset
    raise NotFound(f"no data set {name!r}: choose one of {', '.join(DATASETS)}")


def source(dataset: Dataset) -> Source:
    """Address and digest of the data set's archive, from MONAI. Takes seconds, since MONAI is imported."""
    from monai.apps.datasets import DecathlonDataset

    return Source(url=DecathlonDataset.resource[dataset.name], md5=DecathlonDataset.md5[dataset.name])


async def download(name: str, source: Source, folder: Path, progress: Progress) -> Path:
    """Download, verify and unpack a data set.

    Args:
        name: name of the folder to create.
        source: address and digest of the archive.
        folder: where to create it.
        progress: called as data arrive.

    Returns:
        The new folder, `folder/name`.

    Raises:
        Conflict: if it exists already.
        DownloadFailed: if the download fails or is incomplete.
        TooLarge: if the disk has too little space.
        Unreadable: if the digest is wrong, or the archive is not safe to unpack.
    """
    target = folder / name
    if await asyncio.to_thread(target.exists):
        raise Conflict(f"{target} exists already: remove it to download it again")
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    part = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=f".{name}-", suffix=".part", dir=folder))
    try:
        archive = part / "archive.tar"
        digest = await _download_file(source.url, archive, progress)
        if digest != source.md5:
            raise Unreadable(
                f"{name}: the archive's MD5 digest is {digest} instead of {source.md5}: it is damaged, or another file"
            )
        unpacked = part / "unpacked"
        # Its members cannot have more bytes than a tar that is not compressed.
        size = (await asyncio.to_thread(archive.stat)).st_size
        await asyncio.to_thread(unpack, archive, unpacked, max_bytes=size, place=_place)
        inner = unpacked / name
        await asyncio.to_thread((inner if inner.is_dir() else unpacked).rename, target)
    finally:
        await asyncio.to_thread(shutil.rmtree, part, ignore_errors=True)
    return target


async def _download_file(url: str, to: Path, progress: Progress) -> str:
    """Download `url` to a file. Returns the MD5 digest of the data."""
    digest = hashlib.md5(usedforsecurity=False)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, raise_for_status=True, trust_env=True) as session,
            session.get(url) as response,
        ):
            size = response.content_length
            free = (await asyncio.to_thread(shutil.disk_usage, to.parent)).free
            if size and 2 * size > free:
                raise TooLarge(
                    f"downloading and unpacking needs {2 * size >> 20} MiB, but the disk has {free >> 20} MiB free"
                )
            received = 0
            with await asyncio.to_thread(to.open, "wb") as file:
                async for chunk in response.content.iter_chunked(CHUNK):
                    await asyncio.to_thread(file.write, chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    progress(received, size)
    except (aiohttp.ClientError, OSError) as error:  # of the network or of the disk
        raise DownloadFailed(f"{url}: {str(error) or type(error).__name__}") from error
    return digest.hexdigest()


def _place(path: PurePosixPath) -> PurePosixPath | None:
    """Skip AppleDouble files, which macOS adds beside each file."""
    return None if path.name.startswith("._") else path
