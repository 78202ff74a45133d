"""What annotators pointed at, from the request's `params` as 3D Slicer and OHIF send them.

Clicks come as one key per label name (also of other models' labels: those are left alone), or as `foreground` and
`background`; each holds a list of [i, j, k] voxel indices of the source image. A model without labels takes the key
that `label` names for its foreground. Keys that mean nothing here are ignored. Ours, and those of interactions:

    curves     closed curves: lists of points, or {label, points}
    extremes   by label name, the outermost points of a structure: six, or four on one slice
    marks      strokes: {label, packed}, where `packed` is `mask_codec`'s text of a mask, 1 background and 2 foreground
    start      the same of a mask to start from, with the model's own values
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rayapp.errors import BadRequest, TooLarge, Unreadable
from rayapp.imaging import mask_codec
from rayapp.inference.infer_task import Drawing, Point, Prompts, TaskInfo
from rayapp.protocol import RESERVED_LABEL_NAMES

BACKGROUND = "background"
FOREGROUND = "foreground"

MAX_CLICKS = 10_000
"""Clicks that one request may carry."""
STARTS = frozenset({"deepedit", "deepgrow"})
"""Types of models that can start from a mask."""


def parse_prompts(params: Mapping[str, Any], info: TaskInfo, shape: tuple[int, int, int]) -> Prompts:
    """The prompts in `params` for a model and an image of `shape` voxels.

    Raises:
        BadRequest: naming the key and the value that is not what it should be: a click outside the image or not of
            three whole numbers, a `roi` not of six, a `slice` outside the image.
    """
    label = params.get("label")
    if label is not None and not isinstance(label, str):
        raise BadRequest(f"label {_shown(label)} is not a name")
    active = own_names(info, label) if not info.labels else ()
    clicks = {
        name: parse_points(name, params[name], shape)
        for name in dict.fromkeys((*info.labels, *active, FOREGROUND, BACKGROUND))
        if params.get(name) is not None
    }
    clicks = {name: points for name, points in clicks.items() if points}
    if sum(len(points) for points in clicks.values()) > MAX_CLICKS:
        raise BadRequest(f"a request may carry at most {MAX_CLICKS} clicks")
    return Prompts(
        clicks=clicks,
        label=label or _selected(params.get("selected_label_name")),
        roi=_roi(params.get("roi"), shape),
        slice=_slice(params.get("slice"), shape),
        reset=_flag("reset_state", params.get("reset_state")),
        start=_start(params.get("start"), info, shape),
        extremes=_extremes(params.get("extremes"), (*info.structures, *active, FOREGROUND), shape),
        **_drawn(params, info, shape),
    )


def own_names(info: TaskInfo, label: str | None) -> tuple[str, ...]:
    """The structures that may be pointed at by name. A model of whatever is pointed at knows the one in `label`, unless
    that means something else in a request."""
    if info.structures:
        return tuple(info.structures)
    return (label,) if label and label not in RESERVED_LABEL_NAMES else ()


def _drawn(params: Mapping[str, Any], info: TaskInfo, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Strokes and curves: all of them are on the one structure, or each on the one that it names."""
    curves = _labelled("curves", params.get("curves"), "points")
    strokes = _labelled("marks", params.get("marks"), "packed")
    if not info.structures or info.draws:
        return {
            "marks": _marks([packed for _, packed in strokes], shape),
            "curves": _curves([points for _, points in curves], shape),
        }
    only = next(iter(info.structures)) if len(info.structures) == 1 else params.get("label")
    named = {name: name or only for name in dict.fromkeys(name for name, _ in (*curves, *strokes))}
    for name in named.values():
        if name not in info.structures:
            raise BadRequest(
                f"strokes and curves: name their structure in 'label', one of {', '.join(info.structures)}"
            )
    return {
        "drawings": {
            name: Drawing(
                marks=_marks([packed for whose, packed in strokes if named[whose] == name], shape),
                curves=_curves([points for whose, points in curves if named[whose] == name], shape),
            )
            for name in dict.fromkeys(named.values())
        }
    }


def _labelled(key: str, value: object, content: str) -> list[tuple[str | None, Any]]:
    """A list's items with the structure that each names: an item is its `content`, or holds it beside `label`."""
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise BadRequest(f"{key} must be a list, not {_shown(value)}")
    items = [item if isinstance(item, Mapping) else {content: item} for item in value]
    for item in items:
        if not isinstance(item.get("label"), str | None) or content not in item:
            raise BadRequest(f"each of {key} must hold {content!r} and may name a 'label', unlike {_shown(item)}")
    return [(item.get("label"), item[content]) for item in items]


def _marks(packed: Sequence[object], shape: tuple[int, int, int]) -> npt.NDArray[np.uint8] | None:
    """Strokes over each other, the last one on top."""
    marks: npt.NDArray[np.uint8] | None = None
    for text in packed:
        more = _mask("marks", text, shape)
        if more.max(initial=0) > 2:
            raise BadRequest("marks must be 1 for background and 2 for foreground")
        if marks is None:
            marks = more
        else:
            np.copyto(marks, more, where=more > 0)
    return marks


def _start(value: object, info: TaskInfo, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8] | None:
    if value is None:
        return None
    if info.type not in STARTS:
        raise BadRequest(f"models of type {info.type!r} do not start from a mask")
    start = _mask("start", value, shape)
    if info.structures and start.max(initial=0) > max(info.structures.values()):
        raise BadRequest(f"start must have the model's own values, up to {max(info.structures.values())}")
    return start


def _mask(key: str, text: object, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    if not isinstance(text, str):
        raise BadRequest(f"{key} must be a packed mask in base64, not {_shown(text)}")
    try:
        mask = mask_codec.from_text(text, shape)
    except (Unreadable, TooLarge) as error:
        raise BadRequest(f"{key}: {error.detail}") from None
    if mask.dtype != np.uint8:
        raise BadRequest(f"{key} must have values up to 255")
    return mask


def _extremes(value: object, known: Sequence[str], shape: tuple[int, int, int]) -> dict[str, tuple[Point, ...]]:
    """The outermost points by name; names that mean nothing here are left alone, as with clicks."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadRequest(f"extremes must be lists of points by label name, not {_shown(value)}")
    found = {name: parse_points(name, value[name], shape) for name in dict.fromkeys(known) if value.get(name)}
    for name, points in found.items():
        flat = any(len(set(along)) == 1 for along in zip(*points, strict=True))
        if len(points) != 6 and not (len(points) == 4 and flat):
            raise BadRequest(f"extremes of {name!r} must be six points, or four on one slice, not {len(points)}")
    return found


def _selected(value: object) -> str | None:
    """The segment that Slicer's annotator works on."""
    return value[:200] if isinstance(value, str) and value else None


def _curves(value: Sequence[object], shape: tuple[int, int, int]) -> tuple[tuple[Point, ...], ...]:
    """Closed curves, each a list of at least three points that share an i, a j or a k."""
    curves = tuple(parse_points("curves", item, shape) for item in value)
    if sum(len(points) for points in curves) > MAX_CLICKS:
        raise BadRequest(f"curves may have at most {MAX_CLICKS} points in all")
    for points in curves:
        if len(points) < 3 or all(len(set(along)) > 1 for along in zip(*points, strict=True)):
            raise BadRequest("each of curves must have at least three points, all of them on one slice")
    return curves


def parse_points(name: str, value: object, shape: tuple[int, int, int]) -> tuple[Point, ...]:
    """A list of [i, j, k] under the key `name`. Raises BadRequest if it is anything else or a point is outside."""
    if not isinstance(value, (list, tuple)):
        raise BadRequest(f"clicks of {name!r} must be a list of [i, j, k], not {_shown(value)}")
    return tuple(_point(name, item, shape) for item in value)


def _point(name: str, value: object, shape: tuple[int, int, int]) -> Point:
    whole = [_whole(item) for item in value] if isinstance(value, (list, tuple)) and len(value) == 3 else [None]
    if None in whole:
        raise BadRequest(f"click {_shown(value)} of {name!r} is not three whole numbers [i, j, k]")
    i, j, k = (int(n) for n in whole if n is not None)
    if not all(0 <= at < n for at, n in zip((i, j, k), shape, strict=True)):
        raise BadRequest(f"click {[i, j, k]} of {name!r} is outside the image of {'x'.join(map(str, shape))} voxels")
    return i, j, k


def _roi(value: object, shape: tuple[int, int, int]) -> tuple[Point, Point] | None:
    """Slicer's [i0, i1, j0, j1, k0, k1], both ends in it, each pair in either order, clipped to the image."""
    if value is None or value in ([], ()):
        return None
    whole = [_whole(item) for item in value] if isinstance(value, (list, tuple)) and len(value) == 6 else [None]
    ends = [n for n in whole if n is not None]
    if len(ends) != 6:
        raise BadRequest(f"roi {_shown(value)} is not six whole numbers [i0, i1, j0, j1, k0, k1]")
    pairs = [sorted(ends[at : at + 2]) for at in (0, 2, 4)]
    low = tuple(max(0, first) for first, _ in pairs)
    high = tuple(min(n, last + 1) for (_, last), n in zip(pairs, shape, strict=True))
    if any(first >= last for first, last in zip(low, high, strict=True)):
        raise BadRequest(f"roi {_shown(value)} is outside the image of {'x'.join(map(str, shape))} voxels")
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def _slice(value: object, shape: tuple[int, int, int]) -> int | None:
    if value is None:
        return None
    index = _whole(value)
    if index is None or not 0 <= index < shape[2]:
        raise BadRequest(f"slice {_shown(value)} is not one of the image's 0 to {shape[2] - 1}")
    return index


def _flag(name: str, value: object) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "false", ""):
        return value.strip().lower() == "true"
    raise BadRequest(f"{name} {_shown(value)} is not true or false")


def _whole(value: object) -> int | None:
    """The whole number that `value` is (12 or 12.0, never true), or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float) and not value.is_integer():
        return None
    return int(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
