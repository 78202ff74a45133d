"""Coded terms of a segment: category and type of a structure, from the name that an annotator gave it.

Names in the standard's context groups (DICOM PS3.16 CID 7192 anatomical structures, CID 7194 morphologically abnormal
structures) get their SNOMED CT code, with `left` or `right` as its modifier. Any other name gets a code of a private
scheme whose meaning is the name; the code is the same in every file. See DICOM PS3.3 C.8.20.4.
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
    """Coded description of a segment: property category, property type and laterality."""

    category: CodedConcept
    type: CodedConcept
    side: CodedConcept | None = None


def terms_of(name: str, entry: Mapping[str, Any] | None = None) -> Terms:
    """The terms of a structure.

    Args:
        name: the structure's name.
        entry: its entry of `label_info`, which may give the terms explicitly as `SegmentedPropertyCategoryCodeSequence`
            and `SegmentedPropertyTypeCodeSequence`, each with `CodeValue`, `CodingSchemeDesignator` and `CodeMeaning`.

    Raises:
        BadRequest: if a given code is incomplete.
    """
    default = _look_up(name)
    explicit = entry or {}
    return Terms(
        category=_explicit(explicit, "SegmentedPropertyCategoryCodeSequence") or default.category,
        type=_explicit(explicit, "SegmentedPropertyTypeCodeSequence") or default.type,
        side=None if "SegmentedPropertyTypeCodeSequence" in explicit else default.side,
    )


def _explicit(entry: Mapping[str, Any], keyword: str) -> CodedConcept | None:
    value = entry.get(keyword)
    if value is None:
        return None
    item = value[0] if isinstance(value, list) and value else value
    try:
        return CodedConcept(str(item["CodeValue"]), str(item["CodingSchemeDesignator"]), str(item["CodeMeaning"]))
    except (KeyError, TypeError, ValueError):
        raise BadRequest(f"{keyword} needs CodeValue, CodingSchemeDesignator and CodeMeaning") from None


def _look_up(name: str) -> Terms:
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
