"""Voxel grids of every orientation, for the tests of geometry."""

import itertools

import numpy as np

from rayapp.imaging.volume import Volume

ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1.0, -1.0), repeat=3)))
"""The 48 ways a grid's axes can lie along the patient's."""


def affine_of(orientation, spacing=(1.0, 1.0, 1.0), oblique=0.0):
    """An affine whose axis n runs along patient axis order[n], turned by `oblique` degrees about an odd direction."""
    order, signs = orientation
    axes = np.zeros((3, 3))
    axes[list(order), range(3)] = signs
    u = np.array((0.48, 0.6, 0.64))
    angle = np.deg2rad(oblique)
    cross = np.array([[0, -u[2], u[1]], [u[2], 0, -u[0]], [-u[1], u[0], 0]])
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes @ np.diag(spacing)
    affine[:3, 3] = (-31.0, 12.5, 77.0)
    return affine


def turned(volume, order, flips):
    """The same patient on a grid whose axes are permuted by `order`, then flipped where `flips` is set."""
    array = volume.array[0].transpose(order)
    affine = volume.affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            array = np.flip(array, axis)
            affine[:, 3] += affine[:, axis] * (array.shape[axis] - 1)
            affine[:, axis] *= -1
    return Volume(array=np.ascontiguousarray(array)[None], affine=affine)


def turned_labels(labels, order, flips):
    """Labels on the grid of `turned`."""
    return np.flip(labels.transpose(order), [axis for axis, flip in enumerate(flips) if flip])


def turned_point(point, shape, order, flips):
    """A voxel's index on the grid of `turned`."""
    moved = [(point[a], shape[a]) for a in order]
    return tuple(n - 1 - at if flip else at for (at, n), flip in zip(moved, flips, strict=True))


def ellipsoid(shape, centre, radii):
    """A smooth asymmetric body: positive inside, about one unit a voxel at its surface."""
    at = np.ogrid[tuple(slice(n) for n in shape)]
    depth = 1 - np.sqrt(sum(((x - c) / r) ** 2 for x, c, r in zip(at, centre, radii, strict=True)))
    return (depth * min(radii)).astype(np.float32)
