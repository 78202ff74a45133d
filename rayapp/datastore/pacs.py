"""PacsClient: search, retrieve and store in a DICOMweb archive (QIDO-RS, WADO-RS and STOW-RS of PS3.18).

Built on dicomweb-client. Every call blocks on the network; none may run on an event loop. Thread-safe. An archive that
does not answer, or not with DICOMweb, is reported as ArchiveAway without a retry: retrying is up to the caller.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset, FileDataset

from rayapp.config import Dicomweb
from rayapp.datastore.credentials import Credentials
from rayapp.datastore.interfaces import Info
from rayapp.errors import ArchiveAway, ArchiveSlow, NotFound, RayappError

PAGE = 500
"""Number of results requested per page."""
ATTEMPTS = 3
"""Number of times that a list is read if it keeps changing meanwhile."""
MAX_RESULTS = 1_000_000
"""Number of results from which a list counts as endless."""
CONFIRMATIONS, CONFIRM_S = 3, 0.5
"""Number of times that the archive is asked whether it has an instance, and seconds in between: some archives index
with a delay."""
MODALITIES = ("CT", "MR")
"""Modalities searched for if no filter names any."""
UNKNOWN = "UNK"
"""Placeholder for a missing attribute, as in MONAI Label."""
_CONNECT_S = 10.0
_FIELDS = {
    "SeriesInstanceUID": "0020000E",
    "StudyInstanceUID": "0020000D",
    "Modality": "00080060",
    "SeriesDescription": "0008103E",
    "StudyDate": "00080020",
    "StudyTime": "00080030",
    "PatientID": "00100020",
    "RetrieveURL": "00081190",
}
"""Attributes by which viewers and MONAI Label's clients identify a series."""
_COUNT = "00201209"  # NumberOfSeriesRelatedInstances
_FRAME = "00200052"  # FrameOfReferenceUID
_INSTANCES, _REFERENCED = "0008114A", "00081155"  # ReferencedInstanceSequence, ReferencedSOPInstanceUID
_CREATED = ("00080023", "00080033")  # ContentDate, ContentTime

logging.getLogger("dicomweb_client").setLevel(logging.ERROR)  # it logs UIDs


class StoreRefused(RayappError):
    """The archive rejected the instance for good: storing it again would fail too."""

    status = 502


@dataclass(frozen=True, kw_only=True)
class ListedSeries:
    """A series in a list of the archive: its identifying attributes and its present number of instances.

    `instances` is None if the archive does not give a number.
    """

    info: Info
    instances: int | None


@dataclass(frozen=True, kw_only=True)
class SegSeries:
    """A series that holds a segmentation.

    Attributes:
        series: its SeriesInstanceUID.
        of: SeriesInstanceUID of the segmented series; "" if the segmentation names none.
        instances: SOPInstanceUIDs of the segmented instances, as far as it names them.
        frame_of_reference: its FrameOfReferenceUID; "" if it has none.
        description: its SeriesDescription.
        manufacturer: its Manufacturer.
        created: content date and time, as a sortable string; "" if the object does not say.
    """

    series: str
    of: str
    instances: frozenset[str]
    frame_of_reference: str
    description: str
    manufacturer: str
    created: str


class PacsClient:
    """A client of one archive."""

    def __init__(self, archive: Dicomweb, *, connections: int = 16) -> None:
        session = requests.Session()
        session.trust_env = False  # a .netrc would override the settings
        session.max_redirects = 0  # the credentials must not be sent to another address
        session.auth = Credentials(archive)
        for scheme in ("http://", "https://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=connections))
        self._client = DICOMwebClient(
            archive.url.rstrip("/"),
            session=session,
            qido_url_prefix=archive.qido.strip("/") or None,
            wado_url_prefix=archive.wado.strip("/") or None,
            stow_url_prefix=archive.stow.strip("/") or None,
            timeout=(_CONNECT_S, archive.timeout),
        )
        self._client.set_http_retry_params(retry=False)

    def series(self, filters: Mapping[str, str]) -> dict[str, ListedSeries]:
        """The series that match the filters, by SeriesInstanceUID.

        A list that changes while it is read is read again, up to `ATTEMPTS` times; then everything seen is returned.

        Args:
            filters: attributes and values as in QIDO-RS, with wildcards and ranges; `Modality` may list several,
                separated by commas. Without it CT and MR are searched for. SEG is never returned.

        Raises:
            ArchiveAway: if the archive does not answer as it should.
        """
        kinds = [kind for kind in filters.get("Modality", ",".join(MODALITIES)).split(",") if kind and kind != "SEG"]
        series = {}
        for kind in kinds:
            narrowed = {**filters, "Modality": kind}
            items = _all_pages(
                _FIELDS["SeriesInstanceUID"],
                lambda limit, offset, narrowed=narrowed: self._client.search_for_series(  # type: ignore[misc]
                    search_filters=dict(narrowed), fields=[*_FIELDS, _COUNT], limit=limit, offset=offset
                ),
            )
            for uid, item in items.items():
                info = {name: _text(item, tag) for name, tag in _FIELDS.items()}
                if info["Modality"] == kind:  # an archive without support for filters returns others too
                    series[uid] = ListedSeries(info=info, instances=_count(item))
        return series

    def instances(self, study: str, series: str) -> set[str]:
        """SOPInstanceUIDs of the series. Raises NotFound, ArchiveAway."""
        items = _all_pages(
            "00080018",
            lambda limit, offset: self._client.search_for_instances(study, series, limit=limit, offset=offset),
        )
        if not items:
            raise NotFound("the DICOM archive no longer has this series: refresh the list of images")
        return set(items)

    def segmentations(self, study: str, *, known: Collection[str] = ()) -> list[SegSeries]:
        """The study's series with a segmentation, except those in `known`. Raises ArchiveAway."""
        items = _all_pages(
            _FIELDS["SeriesInstanceUID"],
            lambda limit, offset: self._client.search_for_series(
                study, search_filters={"Modality": "SEG"}, limit=limit, offset=offset
            ),
        )
        segmentations = []
        for uid in (uid for uid, item in items.items() if _text(item, _FIELDS["Modality"]) == "SEG"):
            if uid in known:
                continue
            with _asking():
                header = self._client.retrieve_series_metadata(study, uid)[0]
            referenced = _items(header, "00081115") or [{}]  # ReferencedSeriesSequence
            segmentations.append(
                SegSeries(
                    series=uid,
                    of=_text(referenced[0], _FIELDS["SeriesInstanceUID"], missing=""),
                    instances=frozenset(_text(item, _REFERENCED) for item in _items(referenced[0], _INSTANCES)),
                    frame_of_reference=_text(header, _FRAME, missing=""),
                    description=_text(header, _FIELDS["SeriesDescription"]),
                    manufacturer=_text(header, "00080070"),
                    created="".join(text for text in map(_text, (header, header), _CREATED) if text != UNKNOWN),
                )
            )
        return segmentations

    def retrieve(self, study: str, series: str) -> Iterator[tuple[FileDataset, bytes]]:
        """The instances of a series as they arrive: each parsed, and as the original file's bytes.

        A transfer that is cut short either raises ArchiveAway or just ends early: compare with `instances`.
        """
        with _asking():
            for instance in self._client.iter_series(study, series, media_types=(("application/dicom", "*"),)):
                yield instance, _file_of(instance)

    def store(self, instance: Dataset) -> None:
        """Store one instance; idempotent.

        Raises:
            ArchiveAway: if the archive is unavailable, or accepts the instance but does not have it afterwards.
            StoreRefused: if the archive rejects the instance.
        """
        with _asking(storing=True):
            answer = self._client.store_instances([instance])
        stored = {str(item.ReferencedSOPInstanceUID) for item in answer.get("ReferencedSOPSequence") or []}
        failed = answer.get("FailedSOPSequence") or []
        named = instance.SOPInstanceUID in stored
        if (named or not failed) and self._keeps(instance):
            return
        if named:
            raise ArchiveAway(
                "the DICOM archive accepted the segmentation but does not list it: it may have dropped it; see its log"
            )
        reason = f" (reason {int(failed[0].get('FailureReason') or 0):#06x})" if failed else ""
        raise StoreRefused(f"the DICOM archive refused to store the segmentation{reason}: see the archive's log")

    def _keeps(self, instance: Dataset) -> bool:
        """True if the archive lists the instance, immediately or after a short wait."""
        for attempt in range(CONFIRMATIONS):
            if attempt:
                time.sleep(CONFIRM_S)
            with suppress(NotFound):
                if instance.SOPInstanceUID in self.instances(instance.StudyInstanceUID, instance.SeriesInstanceUID):
                    return True
        return False


def _file_of(instance: Any) -> bytes:
    """The bytes of a parsed instance's file."""
    syntax = instance.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_deflated:
        data: bytes = instance.buffer.getvalue()
        return data
    with BytesIO() as file:  # in place of the file's own bytes, pydicom keeps what it inflated
        instance.save_as(file, enforce_file_format=True)
        return file.getvalue()


Search = Callable[[int, int], list[dict[str, Any]]]
"""A search of the archive, given a limit and an offset."""


def _all_pages(tag: str, search: Search) -> dict[str, dict[str, Any]]:
    """All results of a paged search.

    Args:
        tag: attribute that identifies a result.
        search: the search.

    Raises:
        ArchiveAway: if no complete list can be obtained.
    """
    results: dict[str, dict[str, Any]] = {}
    limit = PAGE
    for _ in range(ATTEMPTS):
        while (outcome := _read_pages(tag, search, results, limit)) is _Outcome.CAPPED:
            limit *= 2
        if outcome is _Outcome.COMPLETE:
            break
    return results


class _Outcome(enum.Enum):
    """Result of reading a list: complete; inconsistent, as the list changed meanwhile; or cut at the limit, as offsets
    are ignored.
    """

    COMPLETE = enum.auto()
    SHIFTED = enum.auto()
    CAPPED = enum.auto()


def _read_pages(tag: str, search: Search, results: dict[str, dict[str, Any]], limit: int) -> _Outcome:
    """Add all pages to the results, up to the first one without a new result; an archive may cap pages, so a short page
    need not be the last.

    Each page begins with the last result of the page before. If it does not, earlier results were added or removed
    meanwhile, or the archive ignores offsets. Raises ArchiveAway for a list without UIDs or without an end.
    """
    seen: set[str] = set()
    last = None
    while True:
        with _asking():
            page = {_text(item, tag): item for item in search(limit, max(0, len(seen) - 1))}
        if UNKNOWN in page:
            raise ArchiveAway("the DICOM archive lists objects without their UIDs: check its QIDO-RS service")
        new = page.keys() - seen
        results.update(page)
        if len(results) > MAX_RESULTS:
            raise ArchiveAway(f"the DICOM archive's list does not end after {MAX_RESULTS} results: narrow the search")
        if not new:
            without_offsets = len(page) == limit > 1 and next(iter(page)) != last
            return _Outcome.CAPPED if without_offsets else _Outcome.COMPLETE
        if last is not None and next(iter(page)) != last:
            return _Outcome.SHIFTED
        seen |= page.keys()
        *_, last = page


def _count(item: Mapping[str, Any]) -> int | None:
    text = _text(item, _COUNT)
    return int(text) if text.isdecimal() else None


def _items(item: Mapping[str, Any], tag: str) -> list[dict[str, Any]]:
    """The items of a sequence in the DICOM JSON model; none if it is missing."""
    items: list[dict[str, Any]] = item.get(tag, {}).get("Value") or []
    return items


def _text(item: Mapping[str, Any], tag: str, *, missing: str = UNKNOWN) -> str:
    """An attribute of the DICOM JSON model (PS3.18 annex F.2) as text."""
    values = item.get(tag, {}).get("Value") or [missing]
    return str(values[0])


_REFUSALS = frozenset({400, 404, 406, 409, 413, 415, 422})
"""HTTP statuses that mean that the instance itself is rejected."""


@contextmanager
def _asking(*, storing: bool = False) -> Iterator[None]:
    """Translate the client's exceptions into ours, without texts that could identify a patient."""
    try:
        yield
    except requests.HTTPError as error:
        status = 0 if error.response is None else error.response.status_code
        if status in (401, 403):
            raise ArchiveAway(
                f"the DICOM archive denies this server access ({status}): check the credentials in [dicomweb]"
            ) from None
        if storing and status in _REFUSALS:
            raise StoreRefused(
                f"the DICOM archive refused to store the segmentation (status {status}): see the archive's log"
            ) from None
        if status == 404:
            raise NotFound("the DICOM archive no longer has this object: refresh the list of images") from None
        raise ArchiveAway(f"the DICOM archive answers with status {status}") from None
    except requests.Timeout:
        raise ArchiveSlow("the DICOM archive did not answer in time: try again, or raise dicomweb.timeout") from None
    except requests.RequestException as error:
        if isinstance(error, requests.exceptions.ConnectionError) and "timed out" in str(error):
            raise ArchiveSlow(
                "the DICOM archive stopped sending in mid-transfer: try again, or raise dicomweb.timeout"
            ) from None
        raise ArchiveAway(
            f"no connection to the DICOM archive, or it broke off ({type(error).__name__}): try again later"
        ) from None
    except RayappError:
        raise
    except Exception as error:  # the client raises almost anything on an answer that is not DICOMweb
        raise ArchiveAway(
            f"the DICOM archive's answer is not valid DICOMweb ({type(error).__name__}): check the address"
        ) from None
