"""Ids of images whose file names cannot be ids, and the way back.

Most names are ids themselves. Any other name (brackets, combining marks, emoji, a leading dash) gets an id derived from
it: `_=`, then the name, in which each byte of UTF-8 that belongs to no letter, digit, `_`, `-` or single `.` is written
as `=` and two hexadecimal digits: `T1w[1]` becomes `_=T1w=5B1=5D`. No two names share an id, and the id alone gives the
name back. A name whose id would be too long gets a digest instead (`__=…`), and only the folder gives it back.
"""

from __future__ import annotations

import hashlib
import re

from rayapp.errors import BadRequest
from rayapp.protocol import checked_name

_DERIVED, _DIGEST = "_=", "__="
_MAX_BYTES = 200
_UNSAFE = re.compile(r"[^\w.\-]|\.(?=\.|$)")
_ESCAPED = re.compile(r"(?:=[0-9A-F]{2})+")
_HEAD = 40


def is_valid_name(name: str, what: str) -> bool:
    """True if the name can serve as an id or tag as it stands."""
    try:
        checked_name(name, what)
    except BadRequest:
        return False
    return True


def is_unicode(name: str) -> bool:
    """False for a file name whose bytes are not UTF-8, which Python holds as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(name: str) -> str:
    """A file name as it can be printed and sent: bytes that are not UTF-8 appear as `\\xfc`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def id_of(stem: str) -> str:
    """The id of an image whose file name, without its extension, is this. The name must be Unicode."""
    if not stem.startswith((_DERIVED, _DIGEST)) and is_valid_name(stem, "image"):
        return stem
    derived = _DERIVED + _UNSAFE.sub(lambda match: "".join(f"={byte:02X}" for byte in match[0].encode()), stem)
    if len(derived.encode()) <= _MAX_BYTES:
        return derived
    digest = hashlib.sha256(stem.encode()).hexdigest()[:32]
    return f"{_DIGEST}{digest}_{re.sub(r'[^A-Za-z0-9]+', '-', stem)[:_HEAD].strip('-')}".rstrip("_")


def stem_of(image_id: str) -> str | None:
    """The file name, without its extension, of the image with this id; None if only the folder knows it."""
    if image_id.startswith(_DIGEST):
        return None
    if not image_id.startswith(_DERIVED):
        return image_id
    try:
        return _ESCAPED.sub(
            lambda match: bytes.fromhex(match[0].replace("=", "")).decode(), image_id.removeprefix(_DERIVED)
        )
    except ValueError:
        return None


def label_name(image_id: str, ext: str) -> str:
    """The name of the file of an image's label: the image's own name where its id gives it back, else the id."""
    return (stem_of(image_id) or image_id) + ext
