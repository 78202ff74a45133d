"""Parse prompts from a request's `params`, as 3D Slicer, OHIF and our own client send them.

Clicks come under one key per label name, or as `foreground` and `background`; each value is a list of [i, j, k] voxel
indices of the source image. Labels of other models are ignored if labels of this model have clicks too, unless they
resemble one of these; unknown keys are ignored. A model without labels takes the key that `label` names as its
foreground. Keys that only our clients and interactions send:

    curves     closed curves: lists of points, or {label, points}; points may be fractional, and share a whole index
    extremes   label name to the outermost points of the structure: six, or four in one slice
    marks      strokes: {label, packed, after}, where `packed` is a mask encoded by `mask_codec`, 1 background and 2
               foreground, and `after` gives for each name the number of clicks made before: the strokes take
               precedence over these clicks, and later clicks over the strokes
    start      a mask to correct, encoded likewise, with the model's own label values
    size       the alternative answer that is wanted, 1 for the next larger than the likeliest and -1 for the next
               smaller: a number for the answer to all prompts, or numbers by the count of clicks on the structure at
               the time
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayapp.errors import BadRequest, Unreadable
from rayapp.imaging import mask_codec
from rayapp.imaging.sparse_labels import SparseLabels
from rayapp.inference.arrays import Labels, Shape
from rayapp.inference.infer_task import CurvePoint, Drawing, Point, Prompts, TaskInfo
from rayapp.inference.prompts import scribble_map
from rayapp.inference.prompts.unknown_label import label_meant, unknown_label
from rayapp.protocol import RESERVED_LABEL_NAMES, parse_flag

BACKGROUND = "background"
"""Key of clicks off every structure."""
FOREGROUND = "foreground"
"""Key of clicks on the structure of a single-structure model."""

MAX_CLICKS = 10_000
"""Largest number of clicks in one request."""
START_MASK_TYPES = frozenset({"deepedit", "deepgrow"})
"""Types of models that can correct an existing mask."""


def parse_prompts(params: Mapping[str, Any], info: TaskInfo, shape: Shape) -> Prompts:
    """Parse a request's prompts.

    Args:
        params: The request's parameters.
        info: The model that the request addresses.
        shape: Voxels of the source image along i, j, k.

    Raises:
        BadRequest: For a click outside the image or not of three whole numbers, a `roi` not of six whole numbers, a
            `slice` outside the image, and the like; names the key and the value.
    """
    label = params.get("label")
    if label is not None and not isinstance(label, str):
        raise BadRequest(f"label must be a name, not {_abbreviated(label)}")
    active = structure_names(info, label) if not info.labels else ()
    clicks = {
        name: parse_points(name, params[name], shape)
        for name in dict.fromkeys((*info.labels, *active, FOREGROUND, BACKGROUND))
        if params.get(name) is not None
    }
    clicks = {name: points for name, points in clicks.items() if points}
    if info.structures:
        _check_unknown({name: points for name, points in params.items() if _is_points(points)}, info, clicks)
    if sum(len(points) for points in clicks.values()) > MAX_CLICKS:
        raise BadRequest(f"a request may contain at most {MAX_CLICKS} clicks")
    strokes = _parse_strokes(params.get("marks"), shape)
    return Prompts(
        clicks=_without_overdrawn(clicks, strokes),
        label=label or _parse_selected_segment(params.get("selected_label_name")),
        roi=_parse_roi(params.get("roi"), shape),
        slice=_parse_slice(params.get("slice"), shape),
        reset=parse_flag(params.get("reset_state"), "reset_state"),
        start=_parse_start(params.get("start"), info, shape),
        extremes=_parse_extremes(params.get("extremes"), info, (*info.structures, *active, FOREGROUND), shape),
        sizes=_parse_sizes(params.get("size"), sum(len(clicks[name]) for name in clicks if name != BACKGROUND)),
        **_parse_drawings(strokes, params, info, shape),
    )


def _check_unknown(sent: Mapping[str, object], info: TaskInfo, taken: Mapping[str, object]) -> None:
    """Refuse points under a name that the model has not, if they are meant for this model.

    3D Slicer sends the clicks of all its segments to each model, so those that resemble none of the model's labels are
    ignored, but only if others are left.

    Args:
        sent: Points by name; empty lists count as none.
        info: The model.
        taken: Those under names that the model has.

    Raises:
        BadRequest: Listing the model's labels, and the one that was probably meant.
    """
    known = {*info.labels, *RESERVED_LABEL_NAMES, FOREGROUND, BACKGROUND}
    for name, points in sent.items():
        if points and name not in known and (not taken or label_meant(name, info.structures)):
            raise unknown_label(name, info.structures)


def _is_points(value: object) -> bool:
    """True for a list of voxel indices that is not empty."""
    return isinstance(value, (list, tuple)) and bool(value) and all(_whole_numbers(item, 3) for item in value)


def structure_names(info: TaskInfo, label: str | None) -> tuple[str, ...]:
    """Names under which structures may be clicked.

    Args:
        info: The model.
        label: The request's `label`. For a model without labels it names the structure, unless it is a reserved
            parameter name.
    """
    if info.structures:
        return tuple(info.structures)
    return (label,) if label and label not in RESERVED_LABEL_NAMES else ()


@dataclass(frozen=True, kw_only=True)
class _Strokes:
    """Strokes of one prompt: the structure's label if given, the scribble map, and by name the clicks before them."""

    label: str | None
    marks: SparseLabels
    after: Mapping[str, int]


def _parse_strokes(value: object, shape: Shape) -> list[_Strokes]:
    """The items of `marks`, oldest first."""
    parsed = []
    for item in _labelled_items("marks", value, "packed"):
        marks, after = _parse_mask("marks", item["packed"], shape), item.get("after") or {}
        if marks.part.max(initial=0) > 2:
            raise BadRequest("marks must be 1 for background and 2 for foreground")
        if not isinstance(after, Mapping) or any(_whole_number(count) is None for count in after.values()):
            raise BadRequest(f"'after' of marks must be numbers of clicks by name, not {_abbreviated(after)}")
        parsed.append(_Strokes(label=item.get("label"), marks=marks, after=after))
    return parsed


def _without_overdrawn(
    clicks: Mapping[str, tuple[Point, ...]], strokes: Sequence[_Strokes]
) -> dict[str, tuple[Point, ...]]:
    """The clicks without those that later strokes contradict."""
    kept = {}
    for name, points in clicks.items():
        overdrawn = {
            point
            for drawn in strokes
            for point in points[: int(drawn.after.get(name, 0))]
            if drawn.marks[point] and _structure_at(drawn, point) != (name if name != FOREGROUND else drawn.label)
        }
        kept[name] = tuple(point for point in points if point not in overdrawn)
    return {name: points for name, points in kept.items() if points}


def _structure_at(strokes: _Strokes, point: Point) -> str | None:
    """The label that strokes give a voxel."""
    return strokes.label if strokes.marks[point] == scribble_map.FOREGROUND else BACKGROUND


def _parse_drawings(
    strokes: Sequence[_Strokes], params: Mapping[str, Any], info: TaskInfo, shape: Shape
) -> dict[str, Any]:
    """Strokes and curves as arguments for `Prompts`: `marks` and `curves`, or `drawings` by structure."""
    curves = [(item.get("label"), item["points"]) for item in _labelled_items("curves", params.get("curves"), "points")]
    if not info.structures or info.takes_drawings:
        return {
            "marks": _overlaid([drawn.marks for drawn in strokes]),
            "curves": _parse_curves([points for _, points in curves], shape),
        }
    default = next(iter(info.structures)) if len(info.structures) == 1 else params.get("label")
    labels = [*(name for name, _ in curves), *(drawn.label for drawn in strokes)]
    structure_of = {name: name or default for name in reversed(dict.fromkeys(reversed(labels)))}  # last drawn, last
    for name in structure_of.values():
        if name not in info.structures:
            if isinstance(name, str) and name:
                raise unknown_label(name, info.structures)
            raise BadRequest(
                f"strokes and curves belong to a structure: name it in 'label', one of {', '.join(info.structures)}"
            )
    return {
        "drawings": {
            name: Drawing(
                marks=_overlaid([drawn.marks for drawn in strokes if structure_of[drawn.label] == name]),
                curves=_parse_curves([points for label, points in curves if structure_of[label] == name], shape),
            )
            for name in dict.fromkeys(structure_of.values())
        }
    }


def _labelled_items(key: str, value: object, content: str) -> list[Mapping[str, Any]]:
    """The items of a list, each either the content itself or a mapping {"label": …, content: …}, as such mappings."""
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise BadRequest(f"{key} must be a list, not {_abbreviated(value)}")
    items = [item if isinstance(item, Mapping) else {content: item} for item in value]
    for item in items:
        if not isinstance(item.get("label"), str | None) or content not in item:
            raise BadRequest(f"each of {key} must have {content!r} and may have a 'label', unlike {_abbreviated(item)}")
    return items


def _overlaid(strokes: Sequence[SparseLabels]) -> SparseLabels | None:
    """Combine strokes in order, later ones on top."""
    return functools.reduce(lambda drawn, later: later.over(drawn), strokes) if strokes else None


def _parse_start(value: object, info: TaskInfo, shape: Shape) -> Labels | None:
    if value is None:
        return None
    if info.type not in START_MASK_TYPES:
        raise BadRequest(f"models of type {info.type!r} cannot start from a mask")
    start = np.asarray(_parse_mask("start", value, shape))
    if info.structures and start.max(initial=0) > max(info.structures.values()):
        raise BadRequest(f"start must have the model's label values, at most {max(info.structures.values())}")
    return start


def _parse_mask(key: str, text: object, shape: Shape) -> SparseLabels:
    if not isinstance(text, str):
        raise BadRequest(f"{key} must be a packed mask in base64, not {_abbreviated(text)}")
    try:
        return mask_codec.sparse_from_text(text, shape)
    except Unreadable as error:
        raise BadRequest(f"{key}: {error.detail}") from None


def _parse_extremes(value: object, info: TaskInfo, names: Sequence[str], shape: Shape) -> dict[str, tuple[Point, ...]]:
    """Extreme points by structure; other names than `names` are treated as with clicks."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadRequest(f"extremes must be lists of points by label name, not {_abbreviated(value)}")
    extremes = {name: parse_points(name, value[name], shape) for name in dict.fromkeys(names) if value.get(name)}
    if info.structures:
        _check_unknown(value, info, extremes)
    for name, points in extremes.items():
        in_one_slice = any(len(set(indices)) == 1 for indices in zip(*points, strict=True))
        if len(points) != 6 and not (len(points) == 4 and in_one_slice):
            raise BadRequest(f"extremes of {name!r} must be six points, or four in one slice, not {len(points)}")
    return extremes


def _parse_selected_segment(value: object) -> str | None:
    """The segment selected in 3D Slicer's segment editor."""
    return value[:200] if isinstance(value, str) and value else None


def _parse_curves(value: Sequence[object], shape: Shape) -> tuple[tuple[CurvePoint, ...], ...]:
    """Closed curves, each a list of at least three points that share a whole i, j or k."""
    if sum(len(item) for item in value if isinstance(item, (list, tuple))) > MAX_CLICKS:
        raise BadRequest(f"curves may have at most {MAX_CLICKS} points in all")
    return tuple(_parse_curve(item, shape) for item in value)


def _parse_curve(value: object, shape: Shape) -> tuple[CurvePoint, ...]:
    if not isinstance(value, (list, tuple)):
        raise BadRequest(f"each of curves must be a list of [i, j, k], not {_abbreviated(value)}")
    points = []
    for item in value:
        numbers = _numbers(item, 3)
        if numbers is None:
            raise BadRequest(f"point {_abbreviated(item)} of a curve is not three numbers [i, j, k]")
        i, j, k = numbers
        if not all(-0.5 <= at <= size - 0.5 for at, size in zip(numbers, shape, strict=True)):  # refuses NaN too
            size = "x".join(map(str, shape))
            raise BadRequest(f"point {_abbreviated(item)} of a curve is outside the image of {size} voxels")
        points.append((i, j, k))
    if len(points) < 3 or not any(len(set(at)) == 1 and float(at[0]).is_integer() for at in zip(*points, strict=True)):
        raise BadRequest("each of curves must have at least three points, all in one slice: they share a whole index")
    return tuple(points)


def parse_points(name: str, value: object, shape: Shape) -> tuple[Point, ...]:
    """Parse a list of [i, j, k].

    Args:
        name: The key it came under, for error messages.
        value: The list.
        shape: Voxels of the source image along i, j, k.

    Raises:
        BadRequest: If it is anything else, or a point is outside the image.
    """
    if not isinstance(value, (list, tuple)):
        raise BadRequest(f"clicks of {name!r} must be a list of [i, j, k], not {_abbreviated(value)}")
    return tuple(_parse_point(name, item, shape) for item in value)


def _parse_point(name: str, value: object, shape: Shape) -> Point:
    indices = _whole_numbers(value, 3)
    if indices is None:
        raise BadRequest(f"click {_abbreviated(value)} of {name!r} is not three whole numbers [i, j, k]")
    i, j, k = indices
    if not all(0 <= index < size for index, size in zip(indices, shape, strict=True)):
        raise BadRequest(f"click {indices} of {name!r} is outside the image of {'x'.join(map(str, shape))} voxels")
    return i, j, k


def _parse_roi(value: object, shape: Shape) -> tuple[Point, Point] | None:
    """Slicer's [i0, i1, j0, j1, k0, k1], both ends inclusive, each pair in either order, clipped to the image."""
    if value is None or value in ([], ()):
        return None
    ends = _whole_numbers(value, 6)
    if ends is None:
        raise BadRequest(f"roi {_abbreviated(value)} is not six whole numbers [i0, i1, j0, j1, k0, k1]")
    pairs = [sorted(ends[start : start + 2]) for start in (0, 2, 4)]
    lower = tuple(max(0, first) for first, _ in pairs)
    upper = tuple(min(size, last + 1) for (_, last), size in zip(pairs, shape, strict=True))
    if any(first >= last for first, last in zip(lower, upper, strict=True)):
        raise BadRequest(f"roi {_abbreviated(value)} is outside the image of {'x'.join(map(str, shape))} voxels")
    return (lower[0], lower[1], lower[2]), (upper[0], upper[1], upper[2])


def _parse_slice(value: object, shape: Shape) -> int | None:
    if value is None:
        return None
    index = _whole_number(value)
    if index is None or not 0 <= index < shape[2]:
        raise BadRequest(f"slice must be a whole number from 0 to {shape[2] - 1}, not {_abbreviated(value)}")
    return index


def _parse_sizes(value: object, clicks: int) -> dict[int, int]:
    if value is None:
        return {}
    given = value if isinstance(value, Mapping) else {clicks: value}
    sizes = {_number_in(key): _number_in(size) for key, size in given.items()}
    if None in sizes or None in sizes.values():
        raise BadRequest(
            f"size must be a whole number, such as 1 for larger or -1 for smaller, not {_abbreviated(value)}"
        )
    return {key: size for key, size in sizes.items() if key is not None and size}


def _number_in(value: object) -> int | None:
    """A whole number; text is accepted too, as in forms and JSON keys."""
    if isinstance(value, str) and len(value) < 10:
        try:
            return int(value)
        except ValueError:
            return None
    return _whole_number(value)


def _whole_numbers(value: object, count: int) -> list[int] | None:
    """A list of `count` whole numbers, or None if `value` is anything else."""
    if not isinstance(value, (list, tuple)) or len(value) != count:
        return None
    numbers = [_whole_number(item) for item in value]
    whole = [number for number in numbers if number is not None]
    return whole if len(whole) == count else None


def _numbers(value: object, count: int) -> list[float] | None:
    """A list of `count` numbers, or None if `value` is anything else."""
    if not isinstance(value, (list, tuple)) or len(value) != count:
        return None
    return None if any(isinstance(item, bool) or not isinstance(item, (int, float)) for item in value) else list(value)


def _whole_number(value: object) -> int | None:
    """`value` as int if it is a whole number (12 or 12.0, not a bool), else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float) and not value.is_integer():
        return None
    return int(value)


def _abbreviated(value: object) -> str:
    """`repr(value)`, cut to 80 characters, for error messages."""
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
