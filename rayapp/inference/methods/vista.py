"""Prompts of VISTA-3D-like models: classes by label value, and points inside or outside of one of them.

OHIF sends `label_prompt` (values), `points` (voxel indices) and `point_labels` (1 inside, 0 outside); 3D Slicer sends
clicks by label name. Without any of these the model segments every class that it knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayapp.errors import BadRequest
from rayapp.inference.arrays import Shape
from rayapp.inference.infer_task import Point, Prompts
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND, parse_points


@dataclass(frozen=True, kw_only=True)
class VistaPrompts:
    """Prompts for a VISTA-3D-like model.

    Attributes:
        classes: Label values to segment; None for whatever structure the points are on.
        points: Points in source voxels.
        inside: For each point, 1 if it is inside the structure and 0 if it is outside.
    """

    classes: Sequence[int] | None
    points: Sequence[Point] = ()
    inside: Sequence[int] = ()


def vista_prompts(
    prompts: Prompts,
    params: Mapping[str, Any],
    labels: Mapping[str, int],
    shape: Shape,
    all_classes: Sequence[int],
) -> VistaPrompts:
    """Combine a request's prompts in the forms of both clients.

    Args:
        prompts: Prompts as 3D Slicer sends them.
        params: The request's parameters, with prompts as OHIF sends them.
        labels: The model's labels, name to value.
        shape: Voxels of the source image along i, j, k.
        all_classes: Label values to segment without prompts.

    Raises:
        BadRequest: For points outside the image, unknown classes, or points on several classes.
    """
    by_class = {labels[name]: tuple(points) for name, points in prompts.clicks.items() if labels.get(name)}
    outside = tuple(prompts.clicks.get(BACKGROUND, ()))
    foreground = tuple(prompts.clicks.get(FOREGROUND, ()))
    given = parse_points("points", params.get("points") or [], shape)
    given_inside = _whole_numbers("point_labels", params.get("point_labels") or [])
    if len(given) != len(given_inside) or not set(given_inside) <= {0, 1}:
        raise BadRequest("point_labels must hold 1 (inside) or 0 (outside) for each of points")
    classes = [value for value in _whole_numbers("label_prompt", params.get("label_prompt") or []) if value]
    unknown = set(classes) - set(labels.values())
    if unknown:
        raise BadRequest(f"label_prompt: this model has no label {min(unknown)}")
    if len(by_class) > 1 or (given and len(classes) > 1):
        raise BadRequest(
            "points on several labels: this model corrects one structure at a time, so send points on one label"
        )
    inside = [*(point for points in by_class.values() for point in points), *foreground]
    points = (*given, *inside, *outside)
    if not points:
        return VistaPrompts(classes=classes or list(all_classes))
    selected = labels.get(prompts.label or "")
    candidates = [*by_class, *classes, *([selected] if selected else [])]
    return VistaPrompts(
        classes=candidates[:1] or None,
        points=points,
        inside=(*given_inside, *[1] * len(inside), *[0] * len(outside)),
    )


def _whole_numbers(name: str, values: Any) -> list[int]:
    if not isinstance(values, (list, tuple)) or not all(type(value) is int for value in values):
        raise BadRequest(f"{name} must be a list of whole numbers")
    return list(values)
