"""DICOMweb (PS3.18) over the images of a studies folder, as far as viewers need it: QIDO-RS, and metadata and frames by
WADO-RS. Each image is a study with one series; nothing can be stored.
"""

from __future__ import annotations

import asyncio
import fnmatch
import secrets
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from deployments.access import AllSeries, AsUser
from deployments.problems import problems
from deployments.series import Series, SeriesStore
from rayapp.datastore.interfaces import ImageRecord
from rayapp.errors import BadRequest, NotFound
from rayapp.imaging.dicom_instances import instance_datasets, series_dataset, study_dataset, uid_of
from rayapp.protocol import Route

router = APIRouter(tags=["DICOMweb"], responses=problems(400, 404, 413, 422, 503))

MEDIA_TYPE = "application/dicom+json"
MOST = 1000
"""Studies per response."""
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_ID_KEYS = ("PatientName", "PatientID", "StudyDescription", "00100010", "00100020", "00081030")
_UID_KEYS = ("StudyInstanceUID", "0020000D")


class _DicomJson(JSONResponse):
    media_type = MEDIA_TYPE


@router.get(Route.STUDIES)
async def studies(request: Request, store: AllSeries, user: AsUser) -> Response:
    """Studies by `PatientName`, `PatientID` or `StudyDescription` (with `*` and `?`), or by UID: at most `limit`, from
    `offset` on. Each study is one image; all three attributes are the image's id."""
    query = request.query_params
    limit, offset = (_count(query.get(name), most) for name, most in (("limit", MOST), ("offset", 1 << 31)))
    ids = await store.ids()
    uids = {uid for key in _UID_KEYS for uid in query.get(key, "").replace("\\", ",").split(",") if uid}
    patterns = [query[key].lower() for key in _ID_KEYS if query.get(key)]
    if uids or patterns:
        ids = await asyncio.to_thread(_matching, ids, uids, patterns)
    start = offset or 0
    return _DicomJson([_study(image_id) for image_id in ids[start : start + (limit or MOST)]])


def _matching(ids: list[str], uids: set[str], patterns: list[str]) -> list[str]:
    if uids:
        ids = [image_id for image_id in ids if uid_of("study", image_id) in uids]
    return [
        image_id
        for image_id in ids
        if all(fnmatch.fnmatchcase(image_id.lower(), p.replace("[", "[[]")) for p in patterns)
    ]


def _count(value: str | None, most: int) -> int | None:
    if value is None or value == "":
        return None
    if not value.isdecimal():
        raise BadRequest("limit and offset must be whole numbers")
    return min(int(value), most)


def _study(image_id: str) -> dict[str, Any]:
    dataset = study_dataset(image_id)
    dataset.NumberOfStudyRelatedSeries = 1
    # Which of them, only the voxels tell, and a list does not decode them.
    dataset.ModalitiesInStudy = ["CT", "MR"]
    return dataset.to_json_dict()


@router.get(Route.SERIES)
async def series(study: str, request: Request, store: AllSeries, user: AsUser) -> Response:
    """The study's only series."""
    series = await _converted(store, study)
    dataset = series_dataset(series.stack)
    del dataset.SOPClassUID
    dataset.NumberOfSeriesRelatedInstances = series.stack.shape[2]
    asked = request.query_params.get("SeriesInstanceUID", "")
    return _DicomJson([dataset.to_json_dict()] if asked in ("", dataset.SeriesInstanceUID) else [])


@router.get(Route.STUDY_METADATA)
async def study_metadata(study: str, store: AllSeries, user: AsUser) -> Response:
    """Attributes of the study's slices, without pixel data."""
    return await _metadata(await _converted(store, study))


@router.get(Route.SERIES_METADATA)
async def series_metadata(study: str, series: str, store: AllSeries, user: AsUser) -> Response:
    """Attributes of the series' slices, without pixel data."""
    return await _metadata(await _converted(store, study, series))


@router.get(Route.INSTANCES)
async def instances(study: str, series: str, store: AllSeries, user: AsUser) -> Response:
    """Slices of the series."""
    return await _metadata(await _converted(store, study, series))


@router.get(Route.INSTANCE_METADATA)
async def instance_metadata(study: str, series: str, instance: str, store: AllSeries, user: AsUser) -> Response:
    """Attributes of a slice, without pixel data."""
    converted = await _converted(store, study, series)
    number = _number(converted, instance)
    return _DicomJson([instance_datasets(converted.stack)[number].to_json_dict()])


@router.get(Route.FRAMES, response_class=Response)
async def frames(study: str, series: str, instance: str, number: int, store: AllSeries, user: AsUser) -> Response:
    """Pixel data of a slice as `multipart/related`: 16 bits, little endian, uncompressed."""
    record = await _record(store, study, series)
    at = _number(await store.series(record), instance)
    if number != 1:
        raise NotFound("no such frame: each instance has one, number 1")
    pixels = await store.frame(record, at)
    boundary = secrets.token_hex(16)
    part = f"application/octet-stream; transfer-syntax={_EXPLICIT_LITTLE}"
    head = f"--{boundary}\r\nContent-Type: {part}\r\nContent-Length: {len(pixels)}\r\n\r\n".encode()
    media_type = f'multipart/related; type="application/octet-stream"; boundary={boundary}'
    return Response(b"".join((head, pixels, f"\r\n--{boundary}--\r\n".encode())), media_type=media_type)


async def _converted(store: SeriesStore, study: str, series: str | None = None) -> Series:
    return await store.series(await _record(store, study, series))


async def _record(store: SeriesStore, study: str, series: str | None) -> ImageRecord:
    """The image with that study and series UID."""
    record = await store.image_of(study)
    if uid_of("study", record.id) != study or series not in (None, uid_of("series", record.id)):
        raise NotFound("the study has no such series")
    return record


def _number(series: Series, instance: str) -> int:
    if instance not in series.numbers:
        raise NotFound("the series has no such instance")
    return series.numbers[instance]


async def _metadata(series: Series) -> Response:
    def encoded() -> list[dict[str, Any]]:
        return [dataset.to_json_dict() for dataset in instance_datasets(series.stack)]

    return _DicomJson(await asyncio.to_thread(encoded))
