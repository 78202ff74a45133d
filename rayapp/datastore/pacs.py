"""PacsClient: search, retrieve and store in a DICOMweb archive (QIDO-RS, WADO-RS and STOW-RS of PS3.18).

Built on dicomweb-client. Every call blocks on the network; none may run on an event loop. Thread-safe. An archive that
does not answer, or not with DICOMweb, is reported as ArchiveAway without a retry: retrying is up to the caller.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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

logging.getLogger("dicomweb_client").setLevel(logging.ERROR)  # it logs UIDs


class StoreRefused(RayappError):
    """The archive rejected the instance for good: storing it again would fail too."""

    status = 502


@dataclass(frozen=True, kw_only=True)
class SegSeries:
    """A series that holds a segmentation.

    Attributes:
        series: its SeriesInstanceUID.
        of: SeriesInstanceUID of the segmented series.
        description: its SeriesDescription.
        manufacturer: its Manufacturer.
        created: content date and time, as a sortable string.
    """

    series: str
    of: str
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

    def series(self, filters: Mapping[str, str]) -> dict[str, Info]:
        """The series that match the filters, by SeriesInstanceUID, with the attributes that identify each.

        Args:
            filters: attributes and values as in QIDO-RS, with wildcards and ranges; `Modality` may list several,
                separated by commas. Without it CT and MR are searched for. SEG is never returned.

        Raises:
            ArchiveAway: if the archive does not answer as it should.
        """
        kinds = [kind for kind in filters.get("Modality", ",".join(MODALITIES)).split(",") if kind and kind != "SEG"]
        return {
            info["SeriesInstanceUID"]: info for kind in kinds for info in self._pages({**filters, "Modality": kind})
        }

    def _pages(self, filters: Mapping[str, str]) -> Iterator[Info]:
        seen: set[str] = set()
        while True:
            with _asking():
                page = self._client.search_for_series(
                    search_filters=dict(filters), fields=list(_FIELDS), limit=PAGE, offset=len(seen)
                )
                infos = [{name: _text(item, tag) for name, tag in _FIELDS.items()} for item in page]
            if any(info["SeriesInstanceUID"] == UNKNOWN for info in infos):
                raise ArchiveAway("the DICOM archive lists series without SeriesInstanceUID: check its QIDO-RS service")
            new = [info for info in infos if info["SeriesInstanceUID"] not in seen]
            # An archive without support for filters or offsets returns more than was asked for.
            yield from (info for info in new if info["Modality"] == filters["Modality"])
            seen.update(info["SeriesInstanceUID"] for info in new)
            if len(page) < PAGE or not new:
                return

    def instances(self, study: str, series: str) -> set[str]:
        """SOPInstanceUIDs of the series. Raises NotFound, ArchiveAway."""
        seen: set[str] = set()
        while True:
            with _asking():
                page = self._client.search_for_instances(study, series, limit=PAGE, offset=len(seen))
                uids = {_text(item, "00080018") for item in page}
            if not uids - seen:
                break
            seen |= uids
            if len(page) < PAGE:
                break
        if not seen:
            raise NotFound("the DICOM archive no longer has this series: refresh the list of images")
        return seen

    def segmentations(self, study: str, *, known: Collection[str] = ()) -> list[SegSeries]:
        """The study's series with a segmentation, except those in `known`. Raises ArchiveAway."""
        segmentations = []
        with _asking():
            page = self._client.search_for_series(study, search_filters={"Modality": "SEG"})
            for uid in (_text(item, "0020000E") for item in page if _text(item, "00080060") == "SEG"):
                if uid in known:
                    continue
                header = self._client.retrieve_series_metadata(study, uid)[0]
                referenced = header.get("00081115", {}).get("Value") or [{}]  # ReferencedSeriesSequence
                segmentations.append(
                    SegSeries(
                        series=uid,
                        of=_text(referenced[0], "0020000E"),
                        description=_text(header, "0008103E"),
                        manufacturer=_text(header, "00080070"),
                        created=_text(header, "00080023") + _text(header, "00080033"),
                    )
                )
        return segmentations

    def retrieve(self, study: str, series: str) -> Iterator[tuple[FileDataset, bytes]]:
        """The instances of a series as they arrive: each parsed, and as the original file's bytes.

        A transfer that is cut short either raises ArchiveAway or just ends early: compare with `instances`.
        """
        with _asking():
            for instance in self._client.iter_series(study, series, media_types=(("application/dicom", "*"),)):
                yield instance, instance.buffer.getvalue()

    def store(self, instance: Dataset) -> None:
        """Store one instance; idempotent. Raises ArchiveAway, StoreRefused."""
        with _asking(storing=True):
            answer = self._client.store_instances([instance])
        stored = {str(item.ReferencedSOPInstanceUID) for item in answer.get("ReferencedSOPSequence") or []}
        if instance.SOPInstanceUID not in stored:
            failed = answer.get("FailedSOPSequence") or []
            reason = f" (reason {int(failed[0].get('FailureReason') or 0):#06x})" if failed else ""
            raise StoreRefused(f"the DICOM archive refused to store the segmentation{reason}: see the archive's log")


def _text(item: Mapping[str, Any], tag: str) -> str:
    """An attribute of the DICOM JSON model (PS3.18 annex F.2) as text; UNKNOWN if it is missing."""
    values = item.get(tag, {}).get("Value") or [UNKNOWN]
    return str(values[0])


_REFUSALS = frozenset({400, 404, 406, 409, 413, 415, 422})
"""HTTP statuses that mean that the instance itself is at fault."""


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
