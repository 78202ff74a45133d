"""DicomwebDatastore: studies in a DICOMweb archive; an image is a series, its id the SeriesInstanceUID.

What an archive cannot hold (revisions, clicks, infos, leases, jobs) is kept in a `LocalDatastore` in the workspace,
whose images are the series that the archive lists; a series is retrieved when it is first needed. A final label is
durable there before it is acknowledged, and is then sent to the archive as DICOM SEG. The index records which revision
the archive has. A label that could not be sent (archive unavailable, server killed) is sent later; sending twice is
harmless, since the UIDs are derived from the revision and stay the same.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import UID

from rayapp.config import Settings
from rayapp.datastore.image_names import is_valid_name
from rayapp.datastore.index import update_label
from rayapp.datastore.interfaces import SERIES_EXT, Author, ImageRecord, Info, LabelRecord, Revision
from rayapp.datastore.local import LocalDatastore
from rayapp.datastore.pacs import PacsClient
from rayapp.datastore.pacs_labels import ArchivedLabels
from rayapp.datastore.series_cache import RETRIEVALS, SeriesCache
from rayapp.errors import ArchiveAway, Busy, Disabled, NotFound, RayappError
from rayapp.imaging.dicom_seg import Provenance, encode
from rayapp.imaging.label_names import entries_of, with_names
from rayapp.imaging.reader import read_grid, read_segmentation
from rayapp.imaging.writer import encode_segmentation
from rayapp.protocol import FINAL, ORIGINAL

FILTER = "qido."
"""Prefix of the `--conf` keys that filter the search: `--conf qido.Modality=MR --conf qido.StudyDate=20240101-`."""
ARCHIVED, PROBLEM = "archived", "archive_problem"
"""Keys of a label's info: the revision that the archive has or has refused, and the reason of a refusal."""
RETRIEVED = "retrieved"
"""Folder of the workspace with the retrieved series."""
LABEL_SEARCH_S = 2.0
"""Seconds that a request for labels waits for a search of the archive; after that it is answered without the newest."""
RETRY_S = 10.0
MAX_RETRY_S = 300.0
"""Seconds until labels are sent again after a failure: at first, and at most."""
MAX_FAILURES = 3
"""Failures after which a round of sending is given up."""
ARCHIVE = Author(user="archive")
"""Author of labels that were found in the archive."""

log = logging.getLogger(__name__)


class ArchiveSource:
    """The series that the archive lists, as a datastore's images; an `ImageSource`."""

    def __init__(self, pacs: PacsClient, cache: SeriesCache, filters: Mapping[str, str]) -> None:
        self._pacs = pacs
        self._cache = cache
        self._filters = dict(filters)
        self._infos: dict[str, Info] = {}

    def images(self, indexed: Mapping[str, str]) -> tuple[dict[str, str], dict[Path, str]]:
        """See `ImageSource`. While the archive is unavailable, the list stays as it was."""
        try:
            infos = self._pacs.series(self._filters)
        except RayappError as error:
            log.warning("the series of the archive could not be listed; keeping the last list: %s", error.detail)
            return dict(indexed), {}
        self._infos = {uid: info for uid, info in infos.items() if is_valid_name(uid, "image")}
        refused = {Path(uid): "its SeriesInstanceUID is not valid" for uid in infos.keys() - self._infos.keys()}
        return dict.fromkeys(self._infos, SERIES_EXT), refused

    def has(self, series: str) -> bool:
        """True if the archive lists the series now; False while the archive is unavailable."""
        if not UID(series, pydicom.config.IGNORE).is_valid:
            return False
        try:
            return series in self._pacs.series({**self._filters, "SeriesInstanceUID": series})
        except RayappError:
            return False

    def complete(self, new: Mapping[str, str], settle: float) -> set[str]:  # noqa: ARG002
        """See `ImageSource`."""
        return set(new)

    def exists(self, image_id: str, ext: str) -> bool:  # noqa: ARG002
        """See `ImageSource`."""
        return image_id in self._infos

    def path(self, image_id: str, ext: str) -> Path:  # noqa: ARG002
        """See `ImageSource`."""
        return self._cache.path(image_id)

    def info(self, image_id: str) -> Info:
        """See `ImageSource`."""
        return self._infos.get(image_id, {})


class DicomwebDatastore(LocalDatastore):
    """Implements `rayapp.datastore.interfaces.Datastore` on the archive in `settings.dicomweb`."""

    def __init__(self, settings: Settings, *, watch: bool = True, patience: float = 0.0) -> None:
        """Open the local part and list the archive's series; while it is unavailable, those of the last listing.

        Other arguments and errors as `LocalDatastore`.
        """
        archive = settings.dicomweb
        filters = {key.removeprefix(FILTER): v for key, v in settings.conf.items() if key.startswith(FILTER)}
        self._kind = archive.segmentation
        self._max_volume = settings.max_volume
        self._pacs = PacsClient(archive)
        self._series = SeriesCache(
            settings.workspace / RETRIEVED, self._pacs, max_bytes=archive.cache, max_volume=settings.max_volume
        )
        settings.studies.mkdir(parents=True, exist_ok=True)
        self._listed = ArchiveSource(self._pacs, self._series, filters)
        super().__init__(
            settings.studies, watch=watch, poll=archive.fresh or 1.0, patience=patience, source=self._listed
        )
        self._archived = ArchivedLabels(self._pacs, fresh=archive.fresh, max_bytes=settings.max_volume)
        self._searches = ThreadPoolExecutor(1, thread_name_prefix="datastore-label-search")
        self._due, self._stop = threading.Event(), threading.Event()
        self._due.set()  # an earlier server may have left labels unsent
        self._sender = threading.Thread(target=self._send_all, name="datastore-stow", daemon=True)
        self._sender.start()

    def close(self) -> None:
        """See `LocalDatastore`. Labels not sent yet are sent after the next opening."""
        self._stop.set()
        self._due.set()
        self._sender.join()
        self._searches.shutdown(cancel_futures=True)
        self._series.close()
        super().close()

    def image(self, image_id: str) -> ImageRecord:
        """See `Datastore`. Retrieves the series on first use, and so also raises ArchiveAway, Unreadable and Busy."""
        try:
            record = self._image(image_id)
        except NotFound:
            if not self._listed.has(image_id):
                raise
            self.refresh()  # it arrived after the last listing
            record = self._image(image_id)
        first = not record.path.exists()
        self._series.retrieve(str(record.info.get("StudyInstanceUID")), image_id)
        if first:
            self._search_labels(record).result()
        return record

    def labels(self, image_id: str) -> dict[str, LabelRecord]:
        """See `Datastore`. Also looks for labels that were stored in the archive since.

        They are included if the archive answers quickly, else from a later call on.
        """
        self._search_if_due(image_id)
        return super().labels(image_id)

    def label(self, image_id: str, tag: str) -> LabelRecord:
        """See `Datastore` and `labels`."""
        self._search_if_due(image_id)
        return super().label(image_id, tag)

    def _search_if_due(self, image_id: str) -> None:
        record = self._image(image_id)
        if record.path.exists() and self._archived.due(image_id):
            wait([self._search_labels(record)], LABEL_SEARCH_S)

    def _search_labels(self, image: ImageRecord) -> Future[None]:
        return self._searches.submit(self._import_labels, image)

    def _import_labels(self, image: ImageRecord) -> None:
        """Import the archive's labels of the image, except where an annotator's label exists under the tag."""
        if not self._archived.due(image.id):  # another thread has searched since
            return
        study, current = str(image.info.get("StudyInstanceUID")), super().labels(image.id)
        tags = [tag for tag in (FINAL, ORIGINAL) if tag not in current]
        if ORIGINAL in current and current[ORIGINAL].info.get("user") == ARCHIVE.user:
            tags.append(ORIGINAL)
        known = {
            str(revision.info.get("SeriesInstanceUID")) for tag in current for revision in self.revisions(image.id, tag)
        }
        try:
            grid = read_grid(image.path)
            for archived in self._archived.new(study, image.id, grid, tags=tags, known=known):
                staged = self.stage(".nii.gz")
                staged.write_bytes(encode_segmentation(archived.label, ".nii.gz"))
                sha = hashlib.sha256(staged.read_bytes()).hexdigest()  # the revision's id, which the archive has
                info = {**archived.info, ARCHIVED: sha}
                tag = archived.tag
                seen = current[tag].number if tag in current else 0  # a label saved since must not be overwritten
                super().save_label(image.id, tag, staged, ".nii.gz", info=info, author=ARCHIVE, expected=seen)
        except RayappError as error:
            log.warning("the labels in the archive could not be read: %s", error.detail)

    def instances(self, image_id: str) -> Path:
        """See `Datastore`. Raises the errors of `image`."""
        self.image(image_id)
        return self._series.instances(image_id)

    def add_image(
        self,
        image_id: str,  # noqa: ARG002
        staged: Path,
        ext: str,  # noqa: ARG002
        *,
        info: Mapping[str, Any],  # noqa: ARG002
        author: Author,  # noqa: ARG002
    ) -> ImageRecord:
        """Raises Disabled: images are added to the archive itself."""
        staged.unlink(missing_ok=True)
        raise Disabled("this server takes its images from a DICOM archive: store new images in the archive")

    def remove_image(self, image_id: str) -> None:  # noqa: ARG002
        """Raises Disabled: images are removed from the archive itself."""
        raise Disabled("this server takes its images from a DICOM archive: delete the series in the archive")

    def save_label(
        self,
        image_id: str,
        tag: str,
        staged: Path,
        ext: str,
        *,
        info: Mapping[str, Any],
        author: Author,
        model_version: str | None = None,
        expected: int | None = None,
    ) -> LabelRecord:
        """See `Datastore`. A final label is then sent to the archive in the background."""
        kept = {key: value for key, value in info.items() if key not in (ARCHIVED, PROBLEM)}
        saved = super().save_label(
            image_id, tag, staged, ext, info=kept, author=author, model_version=model_version, expected=expected
        )
        if tag == FINAL:
            self._due.set()
        return saved

    def datalist(self, *, tag: str = FINAL, immutable: bool = False) -> list[dict[str, str]]:
        """See `Datastore`. Retrieves the labelled series first; raises Busy while that is under way."""
        pairs = super().datalist(tag=tag, immutable=immutable)
        absent = [Path(pair["image"]).parent.name for pair in pairs if not Path(pair["image"]).exists()]
        with ThreadPoolExecutor(RETRIEVALS) as pool:
            list(pool.map(self.image, absent))
        return pairs

    def unsent(self) -> list[tuple[str, str]]:
        """(image id, revision) of the final labels that the archive has neither stored nor refused."""
        with self._index.reader() as db:
            rows = db.execute(
                "SELECT image_id, sha FROM label WHERE tag = ? AND json_extract(info, '$.archived') IS NOT sha"
                " ORDER BY rowid",
                (FINAL,),
            )
            return [(image_id, sha) for image_id, sha in rows]

    def _send_all(self) -> None:
        """Send unsent labels whenever there are any; back off exponentially while sending fails."""
        wait = 0.0
        while not self._stop.is_set():
            self._due.wait(wait or None)
            self._due.clear()
            try:
                failures = self._send_due()
            except Exception as error:
                failures = 1
                log.error("labels could not be sent to the archive and will be sent again: %s", type(error).__name__)
            wait = min(2 * wait or RETRY_S, MAX_RETRY_S) if failures else 0.0

    def _send_due(self) -> int:
        """Send the unsent labels; gives up after a few failures. Returns the number of failures."""
        failures = 0
        for image_id, sha in self.unsent():
            if self._stop.is_set() or failures == MAX_FAILURES:
                break
            try:
                self._send(image_id, sha)
            except (ArchiveAway, Busy) as error:
                failures += 1
                log.warning("a label could not be sent to the archive and will be sent again: %s", error.detail)
        return failures

    def _send(self, image_id: str, sha: str) -> None:
        """Send one label. Raises ArchiveAway and Busy; a label that cannot be stored at all is recorded as refused."""
        revision = next(r for r in reversed(self.revisions(image_id, FINAL)) if r.id == sha)
        try:
            instance = self._encoded(image_id, revision)
            self._pacs.store(instance)
        except (ArchiveAway, Busy):
            raise
        except RayappError as error:
            log.error("the archive refused a label; it is kept on this server only: %s", error.detail)
            self._note(image_id, sha, {PROBLEM: error.detail})
            return
        names = ("SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID", "Modality", "PatientID")
        self._note(image_id, sha, {name: str(instance.get(name, "")) for name in names})

    def _encoded(self, image_id: str, revision: Revision) -> pydicom.Dataset:
        """The revision as a DICOM SEG object on the series' frame of reference."""
        instances = self.instances(image_id)
        label = with_names(
            read_segmentation(revision.path, max_bytes=self._max_volume, ext=revision.ext), revision.info
        )
        model = str(revision.info.get("model") or "")
        provenance = Provenance(
            model=model,
            version=revision.model_version or "1",
            corrected=True,
            description=f"{FINAL} {revision.number}" + (f" {model}" if model else ""),
            identity=f"{image_id} {revision.number} {revision.id}",
            entries=entries_of(revision.info),
        )
        return pydicom.dcmread(BytesIO(encode(label, instances, kind=self._kind, provenance=provenance)))

    def _note(self, image_id: str, sha: str, info: Info) -> None:
        """Record the outcome for a revision in the label's info, if it is still the current label."""

        def apply(db: sqlite3.Connection) -> Info | None:
            row = db.execute("SELECT sha FROM label WHERE image_id = ? AND tag = ?", (image_id, FINAL)).fetchone()
            return update_label(db, image_id, FINAL, {ARCHIVED: sha, **info}) if row == (sha,) else None

        if self._commit.do(apply) is not None:
            self._document.touch()
