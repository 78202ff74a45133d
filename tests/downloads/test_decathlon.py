"""Fetching data sets, from a small server here."""

from __future__ import annotations

import errno
import hashlib
import io
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from rayapp.downloads.decathlon import DATASETS, DownloadFailed, Source, download, find_dataset, source
from rayapp.errors import Conflict, NotFound, RayappError, TooLarge, Unreadable

NAME = "Task99_Nose"
IMAGE = bytes(range(256)) * 8192


def archive(*entries: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    """A tar of files and of odd entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
                continue
            name, content = entry
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


WHOLE = archive((f"{NAME}/imagesTr/nose_1.nii.gz", IMAGE), (f"{NAME}/imagesTr/._nose_1.nii.gz", b"mac"))


@asynccontextmanager
async def serving(body: bytes, *, declared: int | None = None) -> AsyncIterator[Source]:
    """A source that answers `body`; with `declared` it promises that many bytes."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(declared or len(body))})
        await response.prepare(request)
        await response.write(body)
        if declared:
            assert request.transport is not None
            request.transport.close()
        return response

    app = web.Application()
    app.router.add_get("/it.tar", handler)
    async with TestServer(app) as server:
        yield Source(url=str(server.make_url("/it.tar")), md5=hashlib.md5(body).hexdigest())


async def test_a_data_set_is_fetched_checked_and_unpacked(tmp_path: Path):
    seen: list[tuple[int, int | None]] = []
    async with serving(WHOLE) as there:
        path = await download(NAME, there, tmp_path / "new", lambda *progress: seen.append(progress))
    assert path == tmp_path / "new" / NAME
    assert files(path) == ["imagesTr", "imagesTr/nose_1.nii.gz"]
    assert (path / "imagesTr/nose_1.nii.gz").read_bytes() == IMAGE
    assert seen[-1] == (len(WHOLE), len(WHOLE))
    assert files(tmp_path / "new")[0] == NAME


async def test_what_is_there_is_not_fetched_again(tmp_path: Path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(Conflict, match="exists already"):
        await download(NAME, Source(url="http://127.0.0.1:9/", md5=""), tmp_path, print)


@pytest.mark.parametrize(
    ("body", "declared", "digest", "error"),
    [
        (WHOLE, None, "0" * 32, Unreadable),
        (WHOLE[:50_000], len(WHOLE), None, DownloadFailed),
        (WHOLE, 1 << 60, None, TooLarge),
        (b"no tar", None, None, Unreadable),
        (archive(("../evil", b"x")), None, None, Unreadable),
        (archive(("/etc/evil", b"x"), (f"{NAME}/../../evil", b"x")), None, None, Unreadable),
    ],
    ids=["another digest", "broken off", "no room", "no tar", "leads outside", "leads outside from within"],
)
async def test_nothing_is_left_of_a_data_set_that_cannot_be_had(
    tmp_path: Path, body: bytes, declared: int | None, digest: str | None, error: type[RayappError]
):
    folder = tmp_path / "deep" / "folder"
    async with serving(body, declared=declared) as there:
        with pytest.raises(error):
            await download(NAME, Source(url=there.url, md5=digest or there.md5), folder, lambda *_: None)
    assert files(tmp_path) == ["deep", "deep/folder"]


async def test_a_missing_server_is_told(tmp_path: Path):
    with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1:9"):
        await download(NAME, Source(url="http://127.0.0.1:9/it.tar", md5=""), tmp_path, lambda *_: None)


async def test_a_disk_that_fails_in_mid_download_is_told(tmp_path: Path):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with serving(WHOLE) as there:
        with pytest.raises(DownloadFailed, match="No space left"):
            await download(NAME, there, tmp_path, full)
    assert files(tmp_path) == []


def test_every_task_has_an_address_and_a_digest():
    for dataset in DATASETS.values():
        found = source(dataset)
        assert found.url.endswith(f"/{dataset.name}.tar")
        assert len(found.md5) == 32


def test_a_data_set_goes_by_its_full_or_its_short_name():
    assert find_dataset("Task09_Spleen") is find_dataset("spleen") is DATASETS["Task09_Spleen"]
    with pytest.raises(NotFound, match="Task01_BrainTumour"):
        find_dataset("nose")


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
