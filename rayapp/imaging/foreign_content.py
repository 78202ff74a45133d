"""Foreign content: what a file holds instead of the image that its name promises, told by its first bytes."""

from __future__ import annotations

START = 348
"""Number of bytes by which content is told."""
_BEGINNINGS = {
    b"NRRD": "an NRRD file: name it .nrrd",
    b"ObjectType": "a MetaImage file: name it .mha",
    b"NDims": "a MetaImage file: name it .mha",
    b"PK\3\4": "a zip archive: unpack it",
    b"BZh": "compressed by bzip2: unpack it",
    b"\xfd7zXZ\0": "compressed by xz: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard: unpack it",
    b"\x89HDF": "an HDF5 file: save it as .nii.gz or .nrrd",
    b"\x93NUMPY": "a NumPy file: save it as .nii.gz or .nrrd",
    b"%PDF": "a PDF",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"II*\0": "a TIFF picture: save it as .nii.gz or .nrrd",
    b"MM\0*": "a TIFF picture: save it as .nii.gz or .nrrd",
    **dict.fromkeys((b"<!", b"<html", b"<HTML", b"<?xml", b'{"'), "an answer of a web server: download it again"),
}


def foreign_content(start: bytes) -> str | None:
    """What a file is that begins like this, and what to do; None if its beginning does not tell."""
    if start[128:132] == b"DICM":
        return "DICOM: put the files of a series in a folder, without this extension"
    if start and not start.strip(b"\0"):
        return "zeros: the copy or download did not finish, so copy it again"
    text = start.lstrip()
    return next((what for mark, what in _BEGINNINGS.items() if start.startswith(mark) or text.startswith(mark)), None)
