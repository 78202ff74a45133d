"""Prompts of VISTA-3D-like models: classes by their label value, points in or out of one of them.

Requests say `label_prompt` (values), `points` (voxel indices) and `point_labels` (1 in, 0 out) as OHIF does, or clicks
by label name as 3D Slicer does; without any the model finds every class it knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayapp.errors import BadRequest
from rayapp.inference.infer_task import Point, Prompts
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND, parse_points


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be found: classes by value (None: whatever the points are on), and points with 1 or 0 each."""

    classes: Sequence[int] | None
    points: Sequence[Point] = ()
    inside: Sequence[int] = ()


def asked(
    prompts: Prompts,
    params: Mapping[str, Any],
    labels: Mapping[str, int],
    shape: tuple[int, int, int],
    everything: Sequence[int],
) -> Asked:
    """Raises BadRequest for points outside the image, unknown classes, or points of several classes at once."""
    named = {labels[name]: tuple(points) for name, points in prompts.clicks.items() if labels.get(name)}
    out = tuple(prompts.clicks.get(BACKGROUND, ()))
    loose = tuple(prompts.clicks.get(FOREGROUND, ()))
    given = parse_points("points", params.get("points") or [], shape)
    signs = _whole("point_labels", params.get("point_labels") or [])
    if len(given) != len(signs) or not set(signs) <= {0, 1}:
        raise BadRequest("point_labels must hold 1 (in) or 0 (out) for each of points")
    classes = [value for value in _whole("label_prompt", params.get("label_prompt") or []) if value]
    unknown = set(classes) - set(labels.values())
    if unknown:
        raise BadRequest(f"label_prompt: this model has no label {min(unknown)}")
    if len(named) > 1 or (given and len(classes) > 1):
        raise BadRequest("points of one label at a time: this model corrects one structure by clicks")
    inside = [*(point for points in named.values() for point in points), *loose]
    points = (*given, *inside, *out)
    if not points:
        return Asked(classes=classes or list(everything))
    selected = labels.get(prompts.label or "")
    one = [*named, *classes, *([selected] if selected else [])]
    return Asked(classes=one[:1] or None, points=points, inside=(*signs, *[1] * len(inside), *[0] * len(out)))


def _whole(name: str, values: Any) -> list[int]:
    if not isinstance(values, (list, tuple)) or not all(type(value) is int for value in values):
        raise BadRequest(f"{name} must be a list of whole numbers")
    return list(values)
