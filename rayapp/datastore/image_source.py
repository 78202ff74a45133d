"""ImageSource: the interface of a datastore to the origin of its images, a studies folder or a DICOM archive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from rayapp.datastore import folder_scan
from rayapp.datastore.dicom_tree import DicomTree
from rayapp.datastore.image_names import label_name
from rayapp.datastore.interfaces import Info

IDENTIFYING = ("StudyInstanceUID", "PatientID")
"""Keys of an image's info that archives correct."""


class ImageSource(Protocol):
    """A source of images for the datastore's scans and readers. Thread-safe."""

    def images(self, indexed: Mapping[str, str]) -> tuple[dict[str, str], dict[Path, str]]:
        """The images available now.

        Args:
            indexed: {id: extension} of the images already indexed.

        Returns:
            ({id: extension}, {path: reason} of what is left out).
        """

    def complete(self, new: Mapping[str, str], settle: float) -> set[str]:
        """Ids of the `new` images ({id: extension}) that are complete; may sleep `settle` seconds to find out."""

    def why_incomplete(self, image_id: str, ext: str) -> str | None:
        """The reason why a new image that is not complete is left out; None if it may still be written or sent."""

    def exists(self, image_id: str, ext: str) -> bool:
        """True if the image still exists."""

    def path(self, image_id: str, ext: str) -> Path:
        """Path of the image's file or folder."""

    def info(self, image_id: str) -> Info:
        """Initial info of a new image."""

    def replaced(self) -> set[str]:
        """Ids of images whose voxels were found to have changed; each is returned once."""

    def follow(self, recorded: Iterable[tuple[str, Info]], record: Callable[[dict[str, Info]], None]) -> None:
        """Follow corrections of patient and study.

        Args:
            recorded: each image's id and its values of `IDENTIFYING`.
            record: called with the new values of corrected images, before their old files are dropped.
        """

    def keeps_ids(self) -> bool:
        """True if an id never names another image, so that the scores of a vanished image are valid if it comes
        back.
        """


class FolderSource:
    """The images at the top of a studies folder (`rayapp.datastore.folder_scan`), and the DICOM series nested at any
    depth below it (`rayapp.datastore.dicom_tree`).
    """

    def __init__(self, studies: Path, links: Path | None = None) -> None:
        """Prepare it; for `links` see `DicomTree`."""
        self._studies = studies
        self._tree = DicomTree(studies, links)
        self._stems: dict[str, str] = {}

    def images(self, indexed: Mapping[str, str]) -> tuple[dict[str, str], dict[Path, str]]:
        """See `ImageSource`."""
        at_top = {image_id: ext for image_id, ext in indexed.items() if ext or not self._tree.holds(image_id)}
        scan = folder_scan.images(self._studies, at_top)
        self._stems = scan.stems
        extensions = {
            image_id: ext
            for image_id, ext in scan.images.items()
            if ext or image_id in indexed or self._tree.is_one_series(self.path(image_id, "").name)
        }
        folders = {self.path(image_id, "").name for image_id, ext in extensions.items() if not ext}
        series = self._tree.scan(folders)
        return {**series, **extensions}, {**self._tree.problems, **scan.problems}

    def complete(self, new: Mapping[str, str], settle: float) -> set[str]:
        """See `ImageSource`."""
        return folder_scan.settled({image_id: self.path(image_id, ext) for image_id, ext in new.items()}, settle)

    def why_incomplete(self, image_id: str, ext: str) -> str | None:
        """See `ImageSource`."""
        return folder_scan.EMPTY if folder_scan.rests(self.path(image_id, ext)) else None

    def exists(self, image_id: str, ext: str) -> bool:
        """See `ImageSource`."""
        return self.path(image_id, ext).exists()

    def path(self, image_id: str, ext: str) -> Path:
        """See `ImageSource`."""
        if not ext and self._tree.holds(image_id):
            return self._tree.path(image_id)
        stem = self._stems.get(image_id)
        return self._studies / (label_name(image_id, ext) if stem is None else stem + ext)

    def info(self, image_id: str) -> Info:
        """See `ImageSource`."""
        return self._tree.info(image_id) if self._tree.holds(image_id) else {}

    def replaced(self) -> set[str]:
        """See `ImageSource`: always empty, since `ImageFiles` compares the files."""
        return set()

    def follow(self, recorded: Iterable[tuple[str, Info]], record: Callable[[dict[str, Info]], None]) -> None:
        """See `ImageSource`: files are corrected by replacing them."""

    def keeps_ids(self) -> bool:
        """See `ImageSource`: False, since a file name may be reused for another image."""
        return False
