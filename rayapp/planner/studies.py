"""Studies: the images and label maps of a studies folder as a server finds them, without a server and read-only."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rayapp.datastore import folder_scan
from rayapp.datastore.image_names import id_of, shown
from rayapp.datastore.image_source import FolderSource
from rayapp.errors import NotFound
from rayapp.protocol import FINAL, ORIGINAL


@dataclass(frozen=True, kw_only=True)
class Studies:
    """Contents of a studies folder.

    Attributes:
        root: the folder.
        images: path of each image, a file or a folder of DICOM slices, by its id.
        labels: path of each labelled image's label map, by the image's path.
        left_out: the reason why an entry is left out, by its path.
    """

    root: Path
    images: Mapping[str, Path]
    labels: Mapping[Path, Path]
    left_out: Mapping[Path, str]

    def named(self, problems: Mapping[Path, str]) -> dict[str, str]:
        """These problems and those of the entries left out, by the name in the folder, or the id of a series in it."""
        series = {path: image_id for image_id, path in self.images.items() if not path.is_relative_to(self.root)}
        names = {
            path: series.get(path) or str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)
            for path in {**self.left_out, **problems}
        }
        found = {**self.left_out, **problems}
        return {shown(names[path]): found[path] for path in sorted(found, key=names.__getitem__)}


@contextmanager
def opened(root: Path) -> Iterator[Studies]:
    """Read a studies folder, which may be in use. Final labels take precedence over original ones.

    The paths of DICOM series in subfolders are valid within the context only.

    Raises:
        NotFound: if the folder does not exist.
    """
    if not root.is_dir():
        raise NotFound("the studies folder does not exist: check the path")
    root = root.absolute()
    with tempfile.TemporaryDirectory(prefix="rayapp-studies-") as folder:
        links = Path(folder) / "series"
        if (known := root / ".rayapp" / "series").is_dir():
            shutil.copytree(known, links, symlinks=True)
        source = FolderSource(root, links)
        extensions, left_out = source.images({})
        images = {image_id: source.path(image_id, ext) for image_id, ext in sorted(extensions.items())}
        labels = {}
        for tag in (ORIGINAL, FINAL):
            files, problems = folder_scan.files(root / folder_scan.LABELS / tag)
            left_out |= problems
            for name in sorted(files):
                split = folder_scan.split_name(name)
                if split is not None and (image_id := id_of(split[0])) in images:
                    labels[images[image_id]] = root / folder_scan.LABELS / tag / name
        yield Studies(root=root, images=images, labels=labels, left_out=left_out)
