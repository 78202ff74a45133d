"""Phantoms: CT-like torsos with labelled organs, generated from a seed.

They train the shipped weights, fill the demo's studies and test geometry: left, front and top differ from right, back
and bottom, and the voxel grid is permuted, flipped, oblique and anisotropic, as scanners' grids are. Pure functions;
thread-safe.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rayapp.imaging.volume import Affine, Segmentation, Volume

Floats = npt.NDArray[np.float32]
Shape = tuple[int, int, int]
Vector = tuple[float, float, float]
Coordinates = tuple[Floats, Floats, Floats]
"""Body coordinates x, y, z in mm of every voxel."""

ORGANS: dict[str, int] = {"liver": 1, "spleen": 2, "right_kidney": 3, "left_kidney": 4, "stomach": 5}
"""The labelled structures and their values."""

MAX_OBLIQUE = 12.0
"""Maximum rotation of the grid against the body, in degrees."""

AIR, LUNG, FAT, MUSCLE, BONE = -1000.0, -820.0, -100.0, 50.0, 320.0


@dataclass(frozen=True)
class Ellipsoid:
    """A body part: centre and radii in mm, in the body's RAS frame with its origin in mid-torso."""

    centre: Vector
    radii: Vector


ANATOMY: dict[str, tuple[tuple[Ellipsoid, ...], tuple[float, float]]] = {
    # name: (ellipsoids whose union it is, range of its mean in HU); later ones are painted over earlier ones
    "stomach": ((Ellipsoid((-48, 45, 38), (34, 30, 42)), Ellipsoid((-14, 52, 8), (30, 20, 18))), (5, 35)),
    "liver": ((Ellipsoid((78, 12, 42), (60, 68, 58)), Ellipsoid((8, 42, 62), (56, 34, 30))), (95, 130)),
    "spleen": ((Ellipsoid((-102, -30, 50), (24, 40, 42)),), (120, 155)),
    "right_kidney": ((Ellipsoid((60, -46, -38), (26, 24, 50)),), (175, 220)),
    "left_kidney": ((Ellipsoid((-58, -46, -22), (26, 24, 52)),), (175, 220)),
}


def phantom(seed: int, *, shape: tuple[int, int, int] | None = None) -> tuple[Volume, Segmentation]:
    """A torso and its organs; deterministic for a seed and shape.

    Args:
        seed: seed of the random generator.
        shape: voxels (I, J, K); by default 128-160 in plane and 64-96 slices, drawn from the seed.

    Returns:
        The image, shape (1, I, J, K), int16, Hounsfield units, and its labels, uint8, with the values of `ORGANS`. Both
        lie on the same grid, whose axes are randomly permuted and flipped and up to `MAX_OBLIQUE` degrees oblique.
    """
    rng = np.random.default_rng(seed)
    if shape is None:
        plane = rng.integers(128, 161, 2)
        shape = (int(plane[0]), int(plane[1]), int(rng.integers(64, 97)))
    field_of_view = rng.uniform((320, 250, 225), (380, 340, 300))
    affine, body = _grid(rng, shape, field_of_view)
    x, y, z = _deformed(rng, shape, body)
    step = float(np.cbrt(np.abs(np.linalg.det(affine[:3, :3]))))
    hounsfield, labels = _paint(rng, (x, y, z), step)
    hounsfield = ndimage.gaussian_filter(hounsfield, 0.45, mode="nearest", truncate=3.0)
    hounsfield += rng.uniform(8, 20) * rng.standard_normal(shape, dtype=np.float32)
    image = np.clip(np.rint(hounsfield), -1024, 3071).astype(np.int16)
    return (
        Volume(array=image[None], affine=affine),
        Segmentation(array=labels, affine=affine.copy(), names=dict(ORGANS)),
    )


def _grid(rng: np.random.Generator, shape: Shape, extent: npt.NDArray[np.float64]) -> tuple[Affine, Affine]:
    """Affines of a grid that covers `extent` (mm along R, A, S): index to scanner mm, and index to the body's mm."""
    order = rng.permutation(3)
    axes = np.zeros((3, 3))
    axes[order, range(3)] = rng.choice((-1.0, 1.0), 3)
    spacing = extent[order] / shape
    turned = _rotation(rng, MAX_OBLIQUE) @ axes @ np.diag(spacing)
    body = np.eye(4)
    body[:3, :3] = turned
    body[:3, 3] = rng.uniform(-10, 10, 3) + np.array((0, 0, 8)) - turned @ ((np.array(shape) - 1) / 2)
    affine = body.copy()
    affine[:3, 3] += rng.uniform(-200, 200, 3)
    return affine, body


def _rotation(rng: np.random.Generator, degrees: float) -> npt.NDArray[np.float64]:
    """Rotation matrix of at most `degrees` about a random axis (Rodrigues' formula)."""
    axis = rng.standard_normal(3)
    axis /= np.linalg.norm(axis)
    angle = np.deg2rad(rng.uniform(0, degrees))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def _deformed(rng: np.random.Generator, shape: Shape, body: Affine) -> Coordinates:
    """Body coordinates (mm) of every voxel, scaled and bent by a few smooth waves, so that no two bodies are alike."""
    index = np.ogrid[tuple(slice(n) for n in shape)]
    straight = [sum(np.float32(body[r, c]) * index[c] for c in range(3)) + np.float32(body[r, 3]) for r in range(3)]
    straight = [np.asarray(s, dtype=np.float32) for s in straight]
    size = rng.uniform(0.9, 1.1)
    bent: list[Floats] = []
    for axis in range(3):
        moved = np.asarray(straight[axis] * np.float32(size * rng.uniform(0.95, 1.05)), dtype=np.float32)
        for other in range(3):
            wavelength, phase = rng.uniform(140, 280), rng.uniform(0, 2 * np.pi)
            amplitude = rng.uniform(1.5, 6)
            waves = straight[other] * np.float32(2 * np.pi / wavelength) + np.float32(phase)
            moved += np.float32(amplitude) * np.sin(waves)
        bent.append(moved)
    return bent[0], bent[1], bent[2]


def _inside(rng: np.random.Generator, at: Coordinates, part: Ellipsoid, jitter: float) -> Floats:
    """Approximate depth in mm below the surface of a randomly varied ellipsoid; negative outside."""
    centre = np.array(part.centre) + rng.uniform(-jitter, jitter, 3)
    radii = np.array(part.radii) * rng.uniform(0.88, 1.12, 3)
    tilt = _rotation(rng, 15)
    moved = [at[a] - np.float32(centre[a]) for a in range(3)]
    squares = np.zeros_like(at[0])
    for row, radius in zip(tilt, radii, strict=True):
        along = sum(np.float32(w / radius) * m for w, m in zip(row, moved, strict=True))
        squares += np.square(along)
    return np.asarray((1 - np.sqrt(squares)) * np.float32(radii.min()), dtype=np.float32)


def _paint(rng: np.random.Generator, at: Coordinates, step: float) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """Paint the tissues in order; voxels at a surface get a mixture (partial volume over `step` mm)."""
    x, y, _ = at
    still = np.random.default_rng(0)  # for parts whose shape varies only by the deformation
    hounsfield = np.full(x.shape, AIR, dtype=np.float32)
    labels = np.zeros(x.shape, dtype=np.uint8)

    def lay(depth: Floats, value: float) -> None:
        share = np.clip(depth / np.float32(step) + np.float32(0.5), 0, 1)
        hounsfield[...] += share * (np.float32(value) - hounsfield)

    wall = (1 - np.sqrt(np.square(x / 162) + np.square((y - 4) / 112))) * np.float32(112)
    lay(wall, FAT + rng.uniform(-10, 10))
    lay(wall - np.float32(rng.uniform(8, 20)), MUSCLE + rng.uniform(-10, 15))
    cavity = wall - np.float32(rng.uniform(26, 34))
    lay(np.minimum(cavity, y + 55), rng.uniform(-70, 10))
    for side in (70.0, -70.0):
        lay(np.minimum(_inside(still, at, Ellipsoid((side, -5, 150), (62, 80, 75)), 0), cavity + 12), LUNG)
    spine = (1 - np.sqrt(np.square(x / 22) + np.square((y + 62) / 19))) * np.float32(19)
    lay(spine, BONE + rng.uniform(-80, 80))
    lay((1 - np.sqrt(np.square(x / 9) + np.square((y + 92) / 14))) * np.float32(9), BONE + 80)
    lay((1 - np.sqrt(np.square(x + 12) + np.square(y + 34)) / 11) * np.float32(11), rng.uniform(120, 240))  # aorta
    for name, (parts, (low, high)) in ANATOMY.items():
        depth = np.maximum.reduce([_inside(rng, at, part, 6) for part in parts])
        if name.endswith("kidney"):
            hilum = Ellipsoid((parts[0].centre[0] * 0.55, -40, parts[0].centre[2]), (14, 9, 14))
            depth = np.minimum(depth, -_inside(still, at, hilum, 0))
        depth = np.minimum(depth, cavity + 14)
        lay(depth, rng.uniform(low, high))
        labels[depth > 0] = ORGANS[name]
    return hounsfield, labels
