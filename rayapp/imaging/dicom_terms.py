"""Terms: the coded category and type of a structure, from the name that an annotator gave it (DICOM PS3.3 C.8.20.4).

Names that the standard's own context groups know (PS3.16 CID 7192 anatomical structures, CID 7194 morphologically
abnormal structures) get their SNOMED CT code, with `left` or `right` as its modifier; any other gets a code of a
private scheme, which says what it is and is the same in every file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

from rayapp.errors import BadRequest

_PRIVATE = "99RAYAPP"
_SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}
_ABNORMAL = ("tumor", "tumour", "lesion", "cancer", "carcinoma", "metastasis", "cyst", "nodule", "mass", "edema")
_SYNONYMS = {"Tumor": "Neoplasm", "Tumour": "Neoplasm"}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a segment is."""

    category: CodedConcept
    type: CodedConcept
    side: CodedConcept | None = None


def terms_of(name: str, entry: Mapping[str, Any] | None = None) -> Terms:
    """The terms of a name; `entry` may bring them in DICOM's words, as an entry of `label_info` does:
    `SegmentedPropertyCategoryCodeSequence` and `SegmentedPropertyTypeCodeSequence` of `CodeValue`,
    `CodingSchemeDesignator` and `CodeMeaning`. Raises BadRequest if these are incomplete."""
    found = _looked_up(name)
    given = entry or {}
    return Terms(
        category=_given(given, "SegmentedPropertyCategoryCodeSequence") or found.category,
        type=_given(given, "SegmentedPropertyTypeCodeSequence") or found.type,
        side=None if "SegmentedPropertyTypeCodeSequence" in given else found.side,
    )


def _given(entry: Mapping[str, Any], keyword: str) -> CodedConcept | None:
    value = entry.get(keyword)
    if value is None:
        return None
    item = value[0] if isinstance(value, list) and value else value
    try:
        return CodedConcept(str(item["CodeValue"]), str(item["CodingSchemeDesignator"]), str(item["CodeMeaning"]))
    except (KeyError, TypeError, ValueError):
        raise BadRequest(f"{keyword} needs CodeValue, CodingSchemeDesignator and CodeMeaning") from None


def _looked_up(name: str) -> Terms:
    words = name.replace("_", " ").replace("-", " ").lower().split()
    sides = [word for word in words if word in _SIDES]
    keyword = "".join(word.capitalize() for word in words if word not in _SIDES)
    keyword = _SYNONYMS.get(keyword, keyword)
    side = CodedConcept.from_code(_SIDES[sides[0]]) if len(sides) == 1 else None
    for group, category in (
        (codes.cid7192, codes.SCT.AnatomicalStructure),
        (codes.cid7194, codes.SCT.MorphologicallyAbnormalStructure),
    ):
        if keyword in group.dir():
            kind = CodedConcept.from_code(getattr(group, keyword))
            return Terms(category=CodedConcept.from_code(category), type=kind, side=side)
    abnormal = any(word in _ABNORMAL for word in words)
    category = codes.SCT.MorphologicallyAbnormalStructure if abnormal else codes.SCT.AnatomicalStructure
    value = hashlib.sha256(name.encode()).hexdigest()[:12]
    return Terms(category=CodedConcept.from_code(category), type=CodedConcept(value, _PRIVATE, name[:64]))
