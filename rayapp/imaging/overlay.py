"""Overlays: an image with a mask or heat map over it, as three orthogonal slices. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from rayapp.imaging.volume import Affine, Volume

Array = npt.NDArray[Any]
Rgb = tuple[int, int, int]
Tint = Callable[[Array, Array], Array]
"""Maps a slice's grey values, shape (…, 3), and the values of the overlay to the colours to show."""

COLOURS: tuple[Rgb, ...] = (
    (230, 75, 60),
    (80, 170, 240),
    (95, 205, 110),
    (245, 190, 60),
    (185, 115, 225),
    (70, 210, 205),
    (240, 130, 180),
    (170, 140, 100),
)
OPACITY = 0.45
HOT = 64
"""Level of a heat map from which a voxel counts when the intensity window is chosen."""
HEIGHT = 360
"""Height of a slice in pixels; its width follows from its size in mm."""
GAP = 8
LEGEND = 28


def mask_overlay(volume: Volume, labels: Array, names: Mapping[str, int]) -> Image.Image:
    """Axial, coronal and sagittal slice through the middle of the mask, in true proportions.

    Shown in radiological convention: the patient's right is on the left, anterior and superior are up. Shows the first
    channel.

    Args:
        volume: the image.
        labels: shape (I, J, K), on the volume's grid.
        names: value of each name, for the legend.
    """
    turn = nibabel.io_orientation(volume.affine)
    mask = nibabel.apply_orientation(labels, turn)
    grey = nibabel.apply_orientation(volume.array[0], turn)
    window = _window(grey, mask)
    sheet = _sheet(grey, mask, _centre(mask), _spacing(volume.affine, turn), window, _coloured)
    _legend(sheet, {name: value for name, value in names.items() if value and (mask == value).any()})
    return sheet


def heatmap(volume: Volume, levels: Array) -> Image.Image:
    """Axial, coronal and sagittal slice with the highest sum of a heat map, from black over red to yellow.

    Laid out like `mask_overlay`.

    Args:
        volume: the image.
        levels: shape (I, J, K), on the volume's grid, from 0 to 255.
    """
    turn = nibabel.io_orientation(volume.affine)
    grey = nibabel.apply_orientation(volume.array[0], turn)
    field = nibabel.apply_orientation(levels, turn)
    most = [int(field.sum(axis=others, dtype=np.int64).argmax()) for others in ((1, 2), (0, 2), (0, 1))]
    return _sheet(grey, field, most, _spacing(volume.affine, turn), _window(grey, field > HOT), _heated)


def _sheet(
    grey: Array, over: Array, at: list[int], spacing: Array, window: tuple[float, float], tint: Tint
) -> Image.Image:
    """Three slices side by side, with room for a legend below."""
    slices = [_slice(grey, over, axis, at[axis], spacing, window, tint) for axis in (2, 1, 0)]
    width = sum(image.width for image in slices) + GAP * (len(slices) - 1)
    sheet = Image.new("RGB", (width, HEIGHT + LEGEND))
    left = 0
    for image in slices:
        sheet.paste(image, (left, 0))
        left += image.width + GAP
    return sheet


def _spacing(affine: Affine, turn: Array) -> Array:
    """Millimetres between voxels along right-left, anterior-posterior and superior-inferior."""
    spacing = np.empty(3)
    spacing[turn[:, 0].astype(int)] = np.linalg.norm(affine[:3, :3], axis=0)
    return spacing


def _window(grey: Array, mask: Array) -> tuple[float, float]:
    """The intensities shown as black and white: the range within the mask, extended by its width on both sides."""
    low, high = (float(value) for value in np.percentile(grey[mask > 0] if mask.any() else grey, (1, 99)))
    return low - (high - low), max(high + (high - low), low + 1e-6)


def _centre(mask: Array) -> list[int]:
    """Along each axis, the slice that cuts the most structures and then voxels; without a mask, the middle one."""
    if not mask.any():
        return [size // 2 for size in mask.shape]
    centre = []
    for others in ((1, 2), (0, 2), (0, 1)):
        voxels = np.count_nonzero(mask, axis=others)
        structures = sum((mask == value).any(axis=others).astype(int) for value in np.unique(mask[mask > 0]))
        centre.append(int((structures + voxels / (voxels.max() + 1)).argmax()))
    return centre


def _slice(
    grey: Array, over: Array, axis: int, at: int, spacing: Array, window: tuple[float, float], tint: Tint
) -> Image.Image:
    """One slice as an image of `HEIGHT` pixels in radiological convention."""
    low, high = window
    plane = np.take(grey, at, axis).astype(np.float32)
    shade = (np.clip((plane - low) / (high - low), 0, 1) * 255)[..., None].repeat(3, -1)
    shade = tint(shade, np.take(over, at, axis))
    pixels = shade.astype(np.uint8).transpose(1, 0, 2)[::-1, ::-1]
    across, up = (spacing[n] for n in range(3) if n != axis)
    width = max(1, round(HEIGHT * (pixels.shape[1] * across) / (pixels.shape[0] * up)))
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((width, HEIGHT), Image.Resampling.BILINEAR)


def _coloured(shade: Array, mask: Array) -> Array:
    for value in np.unique(mask[mask > 0]):
        here = mask == value
        shade[here] = shade[here] * (1 - OPACITY) + np.array(_colour(int(value))) * OPACITY
    return shade


def _heated(shade: Array, levels: Array) -> Array:
    rise = (levels.astype(np.float32) / 255)[..., None]
    opacity = np.clip(2 * rise, 0, 0.9)
    colour = np.concatenate([np.full_like(rise, 255), 255 * rise, np.zeros_like(rise)], axis=-1)
    heated: Array = shade * (1 - opacity) + colour * opacity
    return heated


def _colour(value: int) -> Rgb:
    return COLOURS[(value - 1) % len(COLOURS)]


def _legend(sheet: Image.Image, names: Mapping[str, int]) -> None:
    draw = ImageDraw.Draw(sheet)
    left, top = GAP, HEIGHT + LEGEND // 2
    for name, value in names.items():
        draw.rectangle((left, top - 6, left + 12, top + 6), fill=_colour(value))
        draw.text((left + 18, top), name, fill=(225, 225, 225), anchor="lm", font_size=14)
        left += 18 + round(draw.textlength(name, font_size=14)) + 2 * GAP
