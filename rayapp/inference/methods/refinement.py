"""RefinementTask: what a network proposes for one structure, corrected by scribbles.

The network runs once per image. Its log-odds take the place of a learnt appearance; strokes hold where they are drawn
and speak for the tissue like theirs around them, and the graph cut or random walk draws the border along edges of the
image itself, at its own resolution. Voxels far from strokes stay as the network sees them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from rayapp.errors import BadRequest
from rayapp.imaging.volume import Volume
from rayapp.inference.arrays import Floats, Spacing
from rayapp.inference.energy.click_refinement import network_log_odds
from rayapp.inference.energy.likelihood import MAX_LOG_ODDS
from rayapp.inference.energy.region import Region
from rayapp.inference.energy.scan import Scan, extent
from rayapp.inference.infer_task import Prediction, Prompts, TaskInfo
from rayapp.inference.methods.scribbles import MARGIN_MM, OPTIMISERS, answer, import_libraries, optimiser_of, painted
from rayapp.inference.methods.segmentation import PreparedImage, SegmentationTask
from rayapp.inference.network.network_grid import NetworkGrid
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, Marks, build_marks
from rayapp.inference.stage_clock import StageClock

SAY = 2 * MAX_LOG_ODDS
"""Log-odds that a stroke adds right beside it, where the tissue is the same: enough to turn the network's."""
STROKE_MM = 20.0
"""Distance over which that fades to a third."""
ALIKE = 0.3
"""Difference in normalised intensity (most of the body spans 2) at which it has faded to 0.6."""
UNLIKELY = -2.0
"""Log-odds below which the network is not asked any further."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A scan, the same image as the network takes it, and what the network said, once it was asked."""

    scan: Scan
    image: PreparedImage
    structures: int
    said: list[Floats]
    asking: threading.Lock

    @property
    def nbytes(self) -> int:
        """Bytes of the images and of what the network says."""
        return self.scan.nbytes + self.image.nbytes + self.image.image[0].nbytes * self.structures


class RefinementTask:
    """Scribbles on a network's proposal; `network` is the task that proposes."""

    def __init__(self, *, network: SegmentationTask, description: str) -> None:
        self._network = network
        self._description = description

    @property
    def info(self) -> TaskInfo:
        """What `/info/` shows: the network's structures, one of which a request names."""
        labels = {name: value for name, value in self._network.info.labels.items() if value}
        config = {"optimiser": list(OPTIMISERS)}
        return TaskInfo(
            type="scribbles",
            labels=labels,
            dimension=3,
            description=self._description,
            config=config,
            version=self.version,
        )

    @property
    def version(self) -> str:
        """The network's."""
        return self._network.version

    def load(self) -> None:
        """Load the network, and import what takes long."""
        import_libraries()
        self._network.load()

    def needs_network(self, prepared: Proposal) -> bool:
        """Once per image."""
        return not prepared.said

    def prepare(self, volume: Volume) -> Proposal:
        """Prepare the image for the network. Raises BadRequest if it has too few channels."""
        return Proposal(
            scan=Scan.of(volume),
            image=self._network.prepare(volume),
            structures=len(self.info.labels),
            said=[],
            asking=threading.Lock(),
        )

    def predict(self, prepared: Proposal, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """The structure that `prompts.label` names, as label 1.

        Raises:
            BadRequest: if the network does not know the structure, or for an optimiser that is not there.
        """
        clock, optimise = StageClock(), optimiser_of(config)
        value = self.info.labels.get(prompts.label or "")
        if value is None:
            raise BadRequest(f"name the structure in selected_label_name: {', '.join(self.info.labels)}")
        marks = build_marks(prepared.scan.shape, prompts, require_foreground=False)
        clock.stage("pre")
        with prepared.asking:
            if not prepared.said:
                prepared.said.append(self._network.margins(prepared.image))
        margin, grid = prepared.said[0][value - 1], prepared.image.grid
        region = _region(margin, grid, marks, prompts, prepared.scan)
        seen, spacing = region.marks(marks), prepared.scan.spacing * region.steps
        image = prepared.scan.view(region)
        # Outside the box is background for certain, but that says nothing of what is inside.
        drawn = (
            build_marks(prepared.scan.shape, replace(prompts, roi=None), require_foreground=False)
            if prompts.roi
            else marks
        )
        strokes = region.marks(drawn)
        logits = np.clip(network_log_odds(margin, grid, region), -MAX_LOG_ODDS, MAX_LOG_ODDS) + _nearby(
            strokes, image, spacing
        )
        mask = optimise(logits, image, seen, spacing)
        clock.stage("infer")
        labels = painted(mask, region, marks)
        clock.stage("invert")
        return answer(labels, prompts, clock)


def _region(margin: Floats, grid: NetworkGrid, marks: Marks, prompts: Prompts, scan: Scan) -> Region:
    """A box around the network's structure and the marks, or the annotator's."""
    grown = np.ceil(MARGIN_MM / scan.spacing)
    if prompts.roi is not None:
        low, high = np.array(prompts.roi)
        return Region.around(low - grown, high + grown, scan.shape, scan.spacing)
    corners = [np.array(extent(marks))] if marks.any() else []
    likely = grid.to_source_axes(margin).transpose(2, 1, 0) > UNLIKELY
    if likely.any():
        corners.append(np.array(extent(likely)) * (np.array(grid.source) / grid.resampled))
    if not corners:
        raise BadRequest("the network sees nothing of this structure here: scribble on it")
    low, high = np.min([low for low, _ in corners], axis=0), np.max([high for _, high in corners], axis=0)
    return Region.around(np.floor(low - grown), np.ceil(high + grown), scan.shape, scan.spacing)


def _nearby(marks: Marks, image: Floats, spacing: Spacing) -> Floats:
    """What strokes say of the voxels around them, in log-odds: the more, the nearer and the more alike they are."""
    total = np.zeros(marks.shape, dtype=np.float32)
    for mark, sign in ((FOREGROUND, 1), (BACKGROUND, -1)):
        if (marks == mark).any():
            distance, nearest = ndimage.distance_transform_edt(marks != mark, sampling=spacing, return_indices=True)
            apart = np.square(image - image[(slice(None), *nearest)]).sum(axis=0) / (2 * ALIKE * ALIKE)
            total += np.float32(sign * SAY) * np.exp(-distance / STROKE_MM - apart).astype(np.float32)
    return total
