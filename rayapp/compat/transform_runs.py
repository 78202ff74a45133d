"""Running an app's transforms; the served image is not read again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from monai.transforms import Compose, LoadImaged, Spacingd

from rayapp.compat.served_image import served
from rayapp.compat.volume_reader import VolumeReader
from rayapp.inference.network.cancellation import checkpoint
from rayapp.inference.network.monai_transforms import SOURCE_CLICKS_TRANSFORM

logger = logging.getLogger(__name__)


def run_transforms(
    data: dict[str, Any],
    callables: Any,
    inverse: bool = False,
    log_prefix: str = "POST",
    log_name: str = "Transform",
    use_compose: bool = False,  # noqa: ARG001
) -> dict[str, Any]:
    """Run transforms in order.

    Args:
        data: The dictionary.
        callables: Transforms, or a Compose.
        inverse: Run their inverses instead.
        log_prefix: Named in the log.
        log_name: Named in the log.
        use_compose: Not used.
    """
    transforms = transforms_of(callables)
    straight = any(type(each).__name__ == SOURCE_CLICKS_TRANSFORM for each in transforms)
    for transform in transforms:
        checkpoint()
        logger.debug("%s: %s %s", log_prefix, log_name, type(transform).__name__)
        if inverse:
            data = transform.inverse(data)
        elif isinstance(transform, LoadImaged):
            data = _load(transform, data, straight=straight)
        else:
            data = _run(transform, data)
    return data


def dump_data(data: dict[str, Any], level: int = logging.DEBUG) -> None:
    """Log the dictionary's keys."""
    logger.log(level, "keys: %s", ", ".join(map(str, data)))


def transforms_of(callables: Any) -> Sequence[Any]:
    """The transforms of a Compose, a list or a single one."""
    if isinstance(callables, Compose):
        return list(callables.transforms)
    return [callables] if callable(callables) else list(callables or ())


def _run(transform: Any, data: dict[str, Any]) -> dict[str, Any]:
    """Run one transform. MONAI's Spacingd takes every entry `image_…` for metadata, so others are kept from it."""
    if not isinstance(transform, Spacingd):
        changed: dict[str, Any] = transform(data)
        return changed
    prefixes = tuple(f"{key}_" for key in transform.keys)
    others = {key: v for key, v in data.items() if str(key).startswith(prefixes) and not isinstance(v, Mapping)}
    return {**transform({key: value for key, value in data.items() if key not in others}), **others}


def _load(transform: LoadImaged, data: dict[str, Any], *, straight: bool) -> dict[str, Any]:
    image = served()
    paths = [data.get(key) for key in transform.keys]
    if image is None or paths != [image.path]:
        loaded: dict[str, Any] = transform(data)
        return loaded
    return dict(transform(data, VolumeReader(image, straight=straight)))
