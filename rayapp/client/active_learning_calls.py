"""Calls for active learning: the next image to label, and where a model is uncertain."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from rayapp.client.caller import Caller, Params
from rayapp.protocol import Route
from rayapp.responses import Sample


class ActiveLearningCalls(Caller):
    """Strategies and uncertainty maps."""

    async def next_sample(self, strategy: str, *, params: Params | None = None) -> Sample | None:
        """The image to label next, leased to this client.

        Args:
            strategy: A strategy's name, as `info()` lists it, such as `first` or `random`.
            params: Options of the strategy.

        Returns:
            The image, or None when no image is left to label.
        """
        sample = await self._send("POST", Route.NEXT.filled(strategy=strategy), json=self._with_client_id(params))
        return cast(Sample, sample) if sample else None

    async def uncertainty(self, method: str, image: str, to: Path, *, ext: str = ".nii.gz") -> Path:
        """Download an image's newest uncertainty map: uint8 on the image's voxel grid, 255 where all classes are
        equally likely.

        Args:
            method: Name of an uncertainty scoring method that has scored the image.
            image: Id of a stored image.
            to: File or folder to write to.
            ext: `.nii.gz` or `.nrrd`.

        Returns:
            The file written.

        Raises:
            NotFound: If the method has not scored the image yet.
        """
        return await self._download(Route.UNCERTAINTY.filled(method=method), to, image=image, ext=ext)

    async def uncertain_slices(self, method: str, image: str) -> dict[str, list[int]]:
        """The most uncertain slices across each voxel axis, most uncertain first.

        Args:
            method: Name of an uncertainty scoring method that has scored the image.
            image: Id of a stored image.

        Returns:
            Slice indices, from 0, by axis: `i`, `j` and `k`.

        Raises:
            NotFound: If the method has not scored the image yet.
        """
        path = Route.UNCERTAIN_SLICES.filled(method=method)
        return cast("dict[str, list[int]]", await self._get(path, image=image))
