"""What annotators pointed at, from the request's `params` as 3D Slicer and OHIF send them.

Clicks come as one key per label name (also of other models' labels: those are left alone), or as `foreground` and
`background`; each holds a list of [i, j, k] voxel indices of the source image. A model without labels takes the key
that `label` names for its foreground. `curves` is a list of such lists. Keys that mean nothing here are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayapp.errors import BadRequest
from rayapp.inference.task import Point, Prompts, TaskInfo

BACKGROUND = "background"
FOREGROUND = "foreground"

MAX_CLICKS = 10_000
"""Clicks that one request may carry."""


def parse_prompts(params: Mapping[str, Any], info: TaskInfo, shape: tuple[int, int, int]) -> Prompts:
    """The prompts in `params` for a model and an image of `shape` voxels.

    Raises:
        BadRequest: naming the key and the value that is not what it should be: a click outside the image or not of
            three whole numbers, a `roi` not of six, a `slice` outside the image.
    """
    label = params.get("label")
    if label is not None and not isinstance(label, str):
        raise BadRequest(f"label {_shown(label)} is not a name")
    active = (label,) if label and not info.labels and not params.get(FOREGROUND) else ()
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
        curves=_curves(params.get("curves"), shape),
    )


def _selected(value: object) -> str | None:
    """The segment that Slicer's annotator works on."""
    return value[:200] if isinstance(value, str) and value else None


def _curves(value: object, shape: tuple[int, int, int]) -> tuple[tuple[Point, ...], ...]:
    """Closed curves, each a list of at least three points that share an i, a j or a k."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise BadRequest(f"curves must be a list of lists of [i, j, k], not {_shown(value)}")
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
