"""PacsClient: the DICOMweb archive (PS3.18): search, retrieve and store, by dicomweb-client.

Every call waits for the network: none belongs on an event loop. Any thread may call. An archive that does not answer,
or answers with what is no DICOMweb, is ArchiveAway; it is asked once, and whoever calls decides about trying again.
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
"""Series asked for at a time."""
MODALITIES = ("CT", "MR")
"""Searched for unless a filter says otherwise."""
UNKNOWN = "UNK"
"""MONAI Label's word for what is not said."""
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
"""What viewers and MONAI Label's clients know a series by."""

logging.getLogger("dicomweb_client").setLevel(logging.ERROR)  # it logs UIDs


class StoreRefused(RayappError):
    """The archive does not take the instance, and would not take it later."""

    status = 502


@dataclass(frozen=True, kw_only=True)
class SegSeries:
    """A series with a segmentation, and the series that it is `of`; `made` sorts by date and time."""

    series: str
    of: str
    description: str
    manufacturer: str
    made: str


class PacsClient:
    """One archive."""

    def __init__(self, archive: Dicomweb, *, connections: int = 16) -> None:
        session = requests.Session()
        session.trust_env = False  # a .netrc would overrule what the settings say
        session.max_redirects = 0  # the key is for this address alone
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
        """The series that the filters find, by SeriesInstanceUID, with what viewers want to know of each.

        `filters` are attributes as QIDO-RS has them, wildcards and ranges included; of `Modality` several may be given
        with commas. Without one, CT and MR are searched for. SEG never counts as an image. Raises ArchiveAway.
        """
        kinds = [kind for kind in filters.get("Modality", ",".join(MODALITIES)).split(",") if kind and kind != "SEG"]
        found: dict[str, Info] = {}
        for kind in kinds:
            for info in self._pages({**filters, "Modality": kind}):
                found[info["SeriesInstanceUID"]] = info
        return found

    def _pages(self, filters: Mapping[str, str]) -> Iterator[Info]:
        seen: set[str] = set()
        while True:
            with _asking():
                page = self._client.search_for_series(
                    search_filters=dict(filters), fields=list(_FIELDS), limit=PAGE, offset=len(seen)
                )
                infos = [{name: _text(item, tag) for name, tag in _FIELDS.items()} for item in page]
            if any(info["SeriesInstanceUID"] == UNKNOWN for info in infos):
                raise ArchiveAway("the DICOM archive lists series without their UIDs")
            new = [info for info in infos if info["SeriesInstanceUID"] not in seen]
            # An archive that knows no filter or no offset answers too much.
            yield from (info for info in new if info["Modality"] == filters["Modality"])
            seen.update(info["SeriesInstanceUID"] for info in new)
            if len(page) < PAGE or not new:
                return

    def instances(self, study: str, series: str) -> set[str]:
        """SOPInstanceUIDs of a series. Raises NotFound, ArchiveAway."""
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
            raise NotFound("the DICOM archive does not have this series any more")
        return seen

    def segmentations(self, study: str, *, known: Collection[str] = ()) -> list[SegSeries]:
        """The series of the study that hold a segmentation, but those `known` already. Raises ArchiveAway."""
        found = []
        with _asking():
            page = self._client.search_for_series(study, search_filters={"Modality": "SEG"})
            for uid in (_text(item, "0020000E") for item in page if _text(item, "00080060") == "SEG"):
                if uid in known:
                    continue
                header = self._client.retrieve_series_metadata(study, uid)[0]
                made_of = header.get("00081115", {}).get("Value") or [{}]
                found.append(
                    SegSeries(
                        series=uid,
                        of=_text(made_of[0], "0020000E"),
                        description=_text(header, "0008103E"),
                        manufacturer=_text(header, "00080070"),
                        made=_text(header, "00080023") + _text(header, "00080033"),
                    )
                )
        return found

    def retrieve(self, study: str, series: str) -> Iterator[tuple[FileDataset, bytes]]:
        """The instances of a series, as they come, each parsed and as the file that the archive has.

        One that breaks off ends with ArchiveAway, or too early: see that all of `instances` came.
        """
        with _asking():
            for instance in self._client.iter_series(study, series, media_types=(("application/dicom", "*"),)):
                yield instance, instance.buffer.getvalue()

    def store(self, instance: Dataset) -> None:
        """Store one instance; sent again, it is stored once. Raises ArchiveAway, StoreRefused."""
        with _asking(storing=True):
            answer = self._client.store_instances([instance])
        taken = {str(item.ReferencedSOPInstanceUID) for item in answer.get("ReferencedSOPSequence") or []}
        if instance.SOPInstanceUID not in taken:
            failed = answer.get("FailedSOPSequence") or []
            reason = f" (reason {int(failed[0].get('FailureReason') or 0):#06x})" if failed else ""
            raise StoreRefused(f"the DICOM archive does not take the segmentation{reason}")


def _text(item: Mapping[str, Any], tag: str) -> str:
    """An attribute of DICOM JSON (PS3.18 F.2) as text; UNKNOWN where there is none."""
    values = item.get(tag, {}).get("Value") or [UNKNOWN]
    return str(values[0])


_FINAL = frozenset({400, 404, 406, 409, 413, 415, 422})
"""Statuses that say that the very instance is the trouble."""


@contextmanager
def _asking(*, storing: bool = False) -> Iterator[None]:
    """Turn what a client meets on the network into errors of ours; never with a text that names a patient."""
    try:
        yield
    except requests.HTTPError as error:
        status = 0 if error.response is None else error.response.status_code
        if status in (401, 403):
            raise ArchiveAway(f"the DICOM archive does not let this server in ({status})") from None
        if storing and status in _FINAL:
            raise StoreRefused(f"the DICOM archive does not take the segmentation (status {status})") from None
        if status == 404:
            raise NotFound("the DICOM archive does not have this any more") from None
        raise ArchiveAway(f"the DICOM archive answers with status {status}") from None
    except requests.Timeout:
        raise ArchiveSlow("the DICOM archive did not answer in time") from None
    except requests.RequestException as error:
        if isinstance(error, requests.exceptions.ConnectionError) and "timed out" in str(error):
            raise ArchiveSlow("the DICOM archive stopped answering on the way") from None
        raise ArchiveAway(f"the DICOM archive does not answer, or broke off ({type(error).__name__})") from None
    except RayappError:
        raise
    except Exception as error:  # what is no DICOMweb makes the client raise almost anything
        raise ArchiveAway(f"the DICOM archive answers with what is no DICOMweb ({type(error).__name__})") from None
