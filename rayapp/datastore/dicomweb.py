"""DicomwebDatastore: studies in a DICOMweb archive; an image is a series, its id the SeriesInstanceUID.

If a series turns out to hold several volumes when it is retrieved, such as echoes, each of them is an image, whose id
names the part (`rayapp.datastore.series_parts`).

An archive cannot hold revisions, clicks, infos, leases and jobs. These are kept in a `LocalDatastore` in the workspace,
whose images are the series that the archive lists; a series is retrieved when it is first needed. A final label is
durable there before it is acknowledged, and is then sent to the archive as DICOM SEG; the index records which revision
the archive has. A label that could not be sent (archive unavailable, server killed) is sent later. Sending twice is
harmless, since the UIDs are derived from the revision. By these UIDs our own segmentations are also recognised in the
archive, even those of labels deleted since.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.valuerep import DA, TM

from rayapp.config import Settings
from rayapp.datastore.archive_sender import ARCHIVED, KEYS, LabelSender
from rayapp.datastore.archive_source import ArchiveSource
from rayapp.datastore.bounded_wait import PATIENCE_S, BoundedWait
from rayapp.datastore.interfaces import NOT_STORABLE, SERIES_EXT, Author, ImageRecord, Info, LabelRecord, Revision
from rayapp.datastore.local import LocalDatastore
from rayapp.datastore.pacs import PacsClient
from rayapp.datastore.pacs_labels import CREATED, ArchivedLabel, ArchivedLabels
from rayapp.datastore.series_cache import RETRIEVALS, SeriesCache
from rayapp.datastore.series_parts import PARTS, SeriesImages, series_of
from rayapp.errors import Busy, Conflict, Disabled, NotFound, RayappError
from rayapp.imaging import nrrd
from rayapp.imaging.dicom_seg import Kind, Provenance, encode, series_uid
from rayapp.imaging.label_names import entries_of, with_names
from rayapp.imaging.reader import read_grid, read_segmentation
from rayapp.imaging.volume import Masks, Segmentation
from rayapp.imaging.writer import encode_segmentation
from rayapp.protocol import FINAL, ORIGINAL

FILTER = "qido."
"""Prefix of the `--conf` keys that filter the search: `--conf qido.Modality=MR --conf qido.StudyDate=20240101-`."""
RETRIEVED = "retrieved"
"""Folder of the workspace with the retrieved series."""
SEARCHES = 4
"""Maximum number of concurrent searches for labels, or for one series."""
LABEL_SEARCH_S, FIRST_SEARCH_S = 2.0, 10.0
"""Seconds that a request for labels, and the first opening of a series, wait for a search of the archive; after that
they are answered without its result."""
ARCHIVE = Author(user="archive")
"""Author of labels that were found in the archive."""

log = logging.getLogger(__name__)


class DicomwebDatastore(LocalDatastore):
    """Implements `rayapp.datastore.interfaces.Datastore` on the archive in `settings.dicomweb`."""

    def __init__(self, settings: Settings, *, watch: bool = True, settle: float = 1.0, patience: float = 0.0) -> None:
        """Open the local part and list the archive's series; if it is unavailable, those of the last list are used.

        Other arguments and errors as `LocalDatastore`.
        """
        archive = settings.dicomweb
        filters = {key.removeprefix(FILTER): v for key, v in settings.conf.items() if key.startswith(FILTER)}
        self._kind = archive.segmentation
        self._max_volume = settings.max_volume
        self._pacs = PacsClient(archive)
        self._waits = BoundedWait()
        self._series = SeriesCache(
            settings.workspace / RETRIEVED,
            self._pacs,
            SeriesImages(settings.studies / ".rayapp" / PARTS),
            max_bytes=archive.cache,
            max_volume=settings.max_volume,
            waits=self._waits,
        )
        settings.studies.mkdir(parents=True, exist_ok=True)
        self._listed = ArchiveSource(self._pacs, self._series, filters)
        super().__init__(
            settings.studies,
            watch=watch,
            poll=archive.fresh or 1.0,
            settle=settle,
            patience=patience,
            source=self._listed,
        )
        self._archived = ArchivedLabels(self._pacs, fresh=archive.fresh, max_bytes=settings.max_volume)
        self._searches = ThreadPoolExecutor(SEARCHES, thread_name_prefix="datastore-archive-search")
        self._scans = ThreadPoolExecutor(1, thread_name_prefix="datastore-archive-scan")
        self._lock = threading.Lock()
        self._searching: dict[str, Future[None]] = {}
        self._next_scan: Future[None] | None = None
        self._sender = LabelSender(
            index=self._index, commit=self._commit, send=self._send, touched=self._document.touch
        )
        self._sender.start()

    def close(self) -> None:
        """See `LocalDatastore`. Labels not sent yet are sent after the next start."""
        self._sender.close()
        for pool in (self._scans, self._searches):
            pool.shutdown(cancel_futures=True)
        self._series.close()
        super().close()

    def status(self) -> Info:
        """See `Datastore`. `archive` has the state of sending, and under `problem` the archive's last error."""
        problem = {"problem": self._listed.problem} if self._listed.problem else {}
        return {**super().status(), "archive": {**self._sender.status(), **problem}}

    def image(self, image_id: str) -> ImageRecord:
        """See `Datastore`. Retrieves the series on first use, and so also raises ArchiveAway, Unreadable and Busy.

        If no DICOM SEG can be stored for the image, its info gives the reason under `NOT_STORABLE`.
        """
        record = self._record(image_id)
        first = not record.path.exists()
        try:
            self._series.retrieve(_study(record), image_id)
        finally:
            if first and self._series.image_ids(series_of(image_id)) != (series_of(image_id),):
                self._scan()  # lists parts that were not known before
        if first:
            self._waits.briefly(lambda: self._search_labels(record), FIRST_SEARCH_S)
        obstacle = self._series.facts(image_id).obstacle
        return replace(record, info={**record.info, NOT_STORABLE: obstacle}) if obstacle else record

    def _record(self, image_id: str) -> ImageRecord:
        """The image's record, even if the series arrived after the last list."""
        try:
            return self._image(image_id)
        except NotFound:
            self._series.check_image(image_id)
            series = series_of(image_id)
            if image_id not in self._series.image_ids(series):
                raise
            has = self._waits.result(
                lambda: self._searches.submit(self._listed.has, series), "the series is still being looked for"
            )
            if not has:
                raise
        self.refresh()
        try:
            return self._image(image_id)
        except NotFound:
            raise Busy("the series is still arriving in the DICOM archive; try again in a second") from None

    def refresh(self) -> None:
        """See `Datastore`. Raises Busy while the archive takes long to answer; the listing continues."""
        self._waits.result(self._scan, "the list of series is still being read")

    def _scan(self) -> Future[None]:
        """A scan that begins after this call; concurrent callers share it (single flight)."""
        with self._lock:
            if self._next_scan is None or self._next_scan.running() or self._next_scan.done():
                self._next_scan = self._scans.submit(super().refresh)
            return self._next_scan

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
        # Also for a search that is under way: the opening of the image may have waited for it in vain.
        if record.path.exists() and (self._archived.due(image_id) or image_id in self._searching):
            self._waits.briefly(lambda: self._search_labels(record), LABEL_SEARCH_S)

    def _search_labels(self, image: ImageRecord) -> Future[None]:
        """The running search for the image's labels, or a new one."""
        with self._lock:
            if image.id not in self._searching:
                search = self._searching[image.id] = self._searches.submit(self._import_labels, image)
                search.add_done_callback(lambda _: self._searching.pop(image.id, None))
                return search
            return self._searching[image.id]

    def _import_labels(self, image: ImageRecord) -> None:
        """Import the archive's labels of the image where there is none, or an older one from the archive."""
        if not self._archived.due(image.id):  # another thread has searched since
            return
        try:
            # Read before the archive is asked: a label saved or removed since must not be overwritten or come back.
            current, known = super().labels(image.id), self._known_segmentations(image.id)
            if self._listed.count(image.id) is None and self._listed.recheck(_study(image), image.id):
                return
            grid = read_grid(image.path)
            found = self._archived.search(_study(image), image.id, self._series.facts(image.id), known=known)
            known = self._known_segmentations(image.id)  # some may be of labels that were saved and sent meanwhile
            found = [seg for seg in found if seg.series not in known]
            for tag in (FINAL, ORIGINAL):
                after = self._replaceable_after(current.get(tag), tag)
                if after is not None and (
                    label := self._archived.newest(_study(image), image.id, found, grid, tag=tag, after=after)
                ):
                    self._adopt(image.id, label, current[tag].number if tag in current else 0)
            self._consider(image.id, self._archived.readable(image.id, found))
        except RayappError as error:
            log.warning("the labels in the archive could not be read: %s", error.detail)
        except Exception as error:
            log.error("the labels in the archive could not be read: %s", type(error).__name__)

    def _known_segmentations(self, image_id: str) -> set[str]:
        """SeriesInstanceUIDs of the segmentations that are, were or will be this store's own, or were considered
        before.
        """
        with self._index.reader() as db:
            revisions = db.execute(
                "SELECT tag, number, sha, json_extract(info, '$.SeriesInstanceUID') FROM revision WHERE image_id = ?",
                (image_id,),
            ).fetchall()
            considered = db.execute("SELECT series FROM segmentation WHERE image_id = ?", (image_id,)).fetchall()
        own = {series_uid(_identity(image_id, number, sha)) for tag, number, sha, _ in revisions if tag == FINAL}
        return {*own, *(str(uid) for *_, uid in revisions), *(uid for (uid,) in considered)}

    def _consider(self, image_id: str, series: list[str]) -> None:
        """Record that these segmentations were considered, so that none of them comes back after its label is
        removed.
        """
        if series:
            rows = [(image_id, uid) for uid in series]
            self._commit.do(lambda db: db.executemany("INSERT OR IGNORE INTO segmentation VALUES(?, ?)", rows).rowcount)

    def _replaceable_after(self, label: LabelRecord | None, tag: str) -> str | None:
        """Content date and time after which a segmentation of the archive replaces the label; "" for any time.

        None for a label that was made here, which only a save here replaces.
        """
        if label is None:
            return ""
        revision = next(each for each in self.revisions(label.id, tag) if each.number == label.number)
        if revision.info.get(ARCHIVED) != revision.id:  # `save_label` accepts this key from nobody
            return None
        created = revision.info.get(CREATED)
        return str(created) if created else None if tag == FINAL else ""

    def _adopt(self, image_id: str, archived: ArchivedLabel, seen: int) -> None:
        """Save a label from the archive, unless the newest revision is another one than `seen`."""
        staged = self.stage(".nii.gz")
        staged.write_bytes(encode_segmentation(archived.label, ".nii.gz"))
        sha = hashlib.sha256(staged.read_bytes()).hexdigest()  # the revision's id, which the archive has
        info = {**archived.info, ARCHIVED: sha}
        try:
            super().save_label(image_id, archived.tag, staged, ".nii.gz", info=info, author=ARCHIVE, expected=seen)
        except Conflict:
            staged.unlink(missing_ok=True)
            log.info("skipped a label from the archive: the label was changed here meanwhile")

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
        kept = {key: value for key, value in info.items() if key not in KEYS}
        saved = super().save_label(
            image_id, tag, staged, ext, info=kept, author=author, model_version=model_version, expected=expected
        )
        if tag == FINAL:
            self._sender.notify()
        return saved

    def update_label_info(self, image_id: str, tag: str, info: Mapping[str, Any]) -> Info:
        """See `Datastore`. The keys about the archive are left as they are."""
        return super().update_label_info(image_id, tag, {key: info[key] for key in info.keys() - KEYS})

    def datalist(
        self, *, tag: str = FINAL, immutable: bool = False, images: Path | None = None
    ) -> list[dict[str, Any]]:
        """See `Datastore`. Retrieves the labelled series first; raises Busy while that is in progress."""
        pairs = super().datalist(tag=tag, immutable=immutable)
        ids = [Path(pair["image"]).parent.name for pair in pairs]
        if images is None:
            self._retrieve_all({image_id: self._series.path(image_id) for image_id in ids}, linked=False)
            return pairs
        images.mkdir(parents=True, exist_ok=True)
        links = {image_id: images / (image_id + SERIES_EXT) for image_id in ids}
        self._retrieve_all(links, linked=True)
        return [{**pair, "image": str(links[image_id])} for image_id, pair in zip(ids, pairs, strict=True)]

    def _retrieve_all(self, paths: Mapping[str, Path], *, linked: bool) -> None:
        """Retrieve the missing series; after `PATIENCE_S` raises Busy, and keeps what was retrieved.

        Args:
            paths: path of each volume by image id.
            linked: link the volumes to these paths.
        """

        def retrieve(image_id: str) -> None:
            record = self._image(image_id)
            if linked:
                self._series.link(_study(record), image_id, paths[image_id])
            else:
                self._series.retrieve(_study(record), image_id)

        absent = [image_id for image_id, path in paths.items() if not path.exists()]
        pool = ThreadPoolExecutor(RETRIEVALS, thread_name_prefix="datastore-datalist")
        try:
            done, left = wait([pool.submit(retrieve, image_id) for image_id in absent], PATIENCE_S)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        for retrieval in done:
            retrieval.result()
        if left:
            raise Busy(f"{len(left)} series are still to be retrieved from the DICOM archive; try again in a second")

    def unsent(self) -> list[tuple[str, str]]:
        """(image id, revision) of the final labels that the archive has neither stored nor refused."""
        return self._sender.unsent()

    def _send(self, image_id: str, sha: str) -> Info:
        """Send one label; see `LabelSender`. Returns the info to record."""
        revision = next(each for each in reversed(self.revisions(image_id, FINAL)) if each.id == sha)
        self._listed.recheck(_study(self._image(image_id)), image_id)
        instance = self._encoded(image_id, revision)
        self._pacs.store(instance)
        names = ("SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID", "Modality", "PatientID")
        return {name: str(instance.get(name, "")) for name in names}

    def _encoded(self, image_id: str, revision: Revision) -> pydicom.Dataset:
        """The revision as a DICOM SEG object on the series' frame of reference."""
        instances = self.instances(image_id)
        label, kind = self._label(revision)
        model = str(revision.info.get("model") or "")
        provenance = Provenance(
            model=model,
            version=revision.model_version or "1",
            corrected=True,
            description=f"{FINAL} {revision.number}" + (f" {model}" if model else ""),
            identity=_identity(image_id, revision.number, revision.id),
            entries=entries_of(revision.info),
        )
        dataset = pydicom.dcmread(BytesIO(encode(label, instances, kind=kind, provenance=provenance)))
        saved = datetime.fromtimestamp(revision.ts)  # not when it is sent: another server may have sent a newer one
        dataset.ContentDate, dataset.ContentTime = DA(saved.date()), TM(saved.time())
        return dataset

    def _label(self, revision: Revision) -> tuple[Segmentation | Masks, Kind]:
        """The revision's label map, or its masks where segments overlap, which only a BINARY segmentation can hold."""
        if revision.ext == ".seg.nrrd":
            masks = nrrd.read_masks(revision.path, max_bytes=self._max_volume)
            if masks is not None and masks.overlap:
                return masks, "BINARY"
        label = read_segmentation(revision.path, max_bytes=self._max_volume, ext=revision.ext)
        return with_names(label, revision.info), self._kind


def _study(image: ImageRecord) -> str:
    """The StudyInstanceUID."""
    return str(image.info.get("StudyInstanceUID"))


def _identity(image_id: str, number: int, sha: str) -> str:
    """The text from which the UIDs of a revision's DICOM SEG are derived."""
    return f"{image_id} {number} {sha}"
