"""Headers whose voxels lie in another file: `.mhd`, `.nhdr`, and the `.hdr` of a NIfTI pair.

The other file must lie in the same folder: a header never names one elsewhere on this machine.
"""

from __future__ import annotations

from pathlib import Path

from rayapp.errors import Unreadable

DETACHED = (".mhd", ".nhdr", ".hdr")
"""Extensions of such headers."""


def beside(header: Path, names: tuple[str, ...]) -> Path:
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
