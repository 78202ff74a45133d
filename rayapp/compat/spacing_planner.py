"""`HeuristicPlanner`: the spacing and size that an app reads from the data before it makes its models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rayapp.geometry import spacing
from rayapp.imaging.reader import read_grid


class HeuristicPlanner:
    """Median spacing and size of some images.

    Attributes:
        target_spacing: In mm.
        spatial_size: In voxels, each a power of two of at most 256.
    """

    def __init__(
        self,
        target_spacing: Sequence[float] = (1.0, 1.0, 1.0),
        spatial_size: Sequence[int] = (128, 128, 64),
        max_samples: int = 10,
    ) -> None:
        self.target_spacing: Sequence[float] = target_spacing
        self.spatial_size: Sequence[int] = spatial_size
        self.max_samples = max_samples

    def run(self, datastore: Any) -> None:
        """Look at the first images of the datastore; without one, nothing changes."""
        ids = datastore.list_images()[: self.max_samples]
        grids = [read_grid(Path(datastore.get_image_uri(image_id))) for image_id in ids]
        if grids:
            self.target_spacing = tuple(np.around(np.median([spacing(grid.affine) for grid in grids], axis=0), 2))
            sizes = np.clip(np.median([grid.shape for grid in grids], axis=0), 32, 256)
            self.spatial_size = [int(2 ** np.floor(np.log2(size))) for size in sizes]
