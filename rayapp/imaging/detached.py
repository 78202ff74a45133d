"""Headers whose voxels lie in another file: `.mhd`, `.nhdr`, and the `.hdr` of a NIfTI pair.

The other file must lie in the same folder: a header never names one elsewhere on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rayapp.errors import Unreadable
from rayapp.imaging.volume import Grid

DETACHED = (".mhd", ".nhdr", ".hdr")
"""Extensions of such headers."""


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """The parts of a header that all image formats share.

    Attributes:
        grid: The grid of the image.
        data_files: File names that the voxels may be in, the likeliest first; empty if the header's own file holds
            them.
    """

    grid: Grid
    data_files: tuple[str, ...] = ()

    def data_file(self, path: Path) -> Path | None:
        """The file with the voxels of the header at `path`; None if it holds them itself. Raises Unreadable if the file
        is not there.
        """
        return _beside(path, self.data_files) if self.data_files else None


def _beside(header: Path, names: tuple[str, ...]) -> Path:
    """The file with the voxels of a header.

    Args:
        header: Path of the header. If it is a link, the file may lie beside the link or beside what it links to.
        names: File names it may have, the likeliest first.

    Raises:
        Unreadable: If it is not there, or a name is that of a file in another folder.
    """
    for name in names:
        if not name or Path(name).name != name or "\\" in name or "\0" in name:
            raise Unreadable("the header names a file in another folder: both must lie in one, or be saved as one file")
    for folder in dict.fromkeys((header.parent, header.resolve().parent)):
        for name in names:
            if (folder / name).exists():
                return folder / name
    raise Unreadable(f"the file with the voxels is not beside its header: copy {names[0][:100]!r} too")
