"""RefinementTask: a network's segmentation of one structure, corrected by scribbles.

The network runs once per image. Its log-odds take the place of a learnt appearance model. Strokes hold where they are
drawn and add evidence for similar tissue around them; the graph cut or random walk draws the border along edges of the
image at its own resolution. Far from strokes the network's answer stays.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from rayapp.errors import BadRequest
from rayapp.imaging.sparse_labels import SparseLabels
from rayapp.imaging.volume import Volume
from rayapp.inference.arrays import Floats, Spacing
from rayapp.inference.energy.click_refinement import network_log_odds
from rayapp.inference.energy.likelihood import MAX_LOG_ODDS
from rayapp.inference.energy.region import Region
from rayapp.inference.energy.scan import Scan, extent
from rayapp.inference.infer_task import Prediction, Prompts, TaskInfo, label_params
from rayapp.inference.methods.scribbles import (
    MARGIN_MM,
    OPTIMISERS,
    import_libraries,
    optimiser_of,
    region_of_box,
    restored_labels,
)
from rayapp.inference.methods.segmentation import PreparedImage, SegmentationTask
from rayapp.inference.network import restoration
from rayapp.inference.network.network_grid import NetworkGrid
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, Marks, build_marks
from rayapp.inference.stage_clock import StageClock

STROKE_LOG_ODDS = 2 * MAX_LOG_ODDS
"""Log-odds that a stroke adds next to itself in tissue of its own intensity: enough to overrule the network."""
STROKE_RANGE_MM = 20.0
"""Distance over which a stroke's log-odds fade to a third."""
INTENSITY_SCALE = 0.3
"""Difference in normalised intensity (most of the body spans 2) at which a stroke's log-odds have faded to 0.6."""
UNLIKELY = -2.0
"""Log-odds below which the network's answer does not extend the region."""


@dataclass(frozen=True, kw_only=True)
class PreparedProposal:
    """An image prepared for refinement.

    Attributes:
        scan: The source image.
        image: The image as the network takes it.
        structures: Number of structures.
        log_odds: The network's log-odds over background, (L, *image.grid.padded), once it has run; empty before.
        lock: Held while the network runs.
    """

    scan: Scan
    image: PreparedImage
    structures: int
    log_odds: list[Floats]
    lock: threading.Lock

    @property
    def nbytes(self) -> int:
        """Memory of the images and the log-odds in bytes."""
        return self.scan.nbytes + self.image.nbytes + self.image.image[0].nbytes * self.structures


class RefinementTask:
    """Scribbles on a network's segmentation.

    Args:
        network: The task whose segmentation is corrected.
        description: One sentence for the annotator.
    """

    def __init__(self, *, network: SegmentationTask, description: str) -> None:
        self._network = network
        self._description = description

    @property
    def info(self) -> TaskInfo:
        """The method's entry in `/info/`, with the network's structures, one of which a request names."""
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
        """The network's version."""
        return self._network.version

    def load(self) -> None:
        """Load the network's weights and import slow libraries."""
        import_libraries()
        self._network.load()

    def needs_network(self, prepared: PreparedProposal) -> bool:
        """True until the network has run on the image."""
        return not prepared.log_odds

    def prepare(self, volume: Volume) -> PreparedProposal:
        """Prepare an image for the network.

        Raises:
            BadRequest: If the image has fewer channels than the network needs.
        """
        return PreparedProposal(
            scan=Scan.of(volume),
            image=self._network.prepare(volume),
            structures=len(self.info.labels),
            log_odds=[],
            lock=threading.Lock(),
        )

    def predict(self, prepared: PreparedProposal, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Segment the structure that `prompts.label` names, as label 1.

        Raises:
            BadRequest: For a structure that the network does not know, or an unknown optimiser.
        """
        clock, optimise = StageClock(), optimiser_of(config)
        value = self.info.labels.get(prompts.label or "")
        if value is None:
            raise BadRequest(f"name the structure in selected_label_name: {', '.join(self.info.labels)}")
        shape = prepared.scan.shape
        marks = build_marks(shape, prompts, require_foreground=False)
        clock.stage("pre")
        with prepared.lock:
            if not prepared.log_odds:
                prepared.log_odds.append(self._network.log_odds(prepared.image))
        fields, grid = prepared.log_odds[0], prepared.image.grid
        region = _region(restoration.lead(fields, value), grid, marks, prompts, prepared.scan)
        fixed, spacing = region.marks(marks), prepared.scan.spacing * region.steps
        image = prepared.scan.view(region)
        # Outside the box is background for certain, but that is no evidence of what is inside.
        drawn = build_marks(shape, replace(prompts, roi=None), require_foreground=False) if prompts.roi else marks
        strokes = region.marks(drawn)
        logits = np.clip(network_log_odds(fields, value, grid, region), -MAX_LOG_ODDS, MAX_LOG_ODDS)
        mask = optimise(logits + _stroke_evidence(strokes, image, spacing), image, fixed, spacing)
        clock.stage("infer")
        labels = restored_labels(mask, region, marks, prompts)
        clock.stage("invert")
        return Prediction(labels=labels, params=label_params(prompts), seconds=clock.seconds)


def _region(lead: Floats, grid: NetworkGrid, marks: SparseLabels, prompts: Prompts, scan: Scan) -> Region:
    """The region around the annotator's box, or else around the marks and the structure found by the network."""
    if prompts.roi is not None:
        return region_of_box(prompts.roi, scan)
    margin_voxels = np.ceil(MARGIN_MM / scan.spacing)
    corners = [np.array(extent(marks.part)) + marks.lower] if marks.part.any() else []
    likely = grid.to_source_axes(lead).transpose(2, 1, 0) > UNLIKELY
    if likely.any():
        corners.append(np.array(extent(likely)) * (np.array(grid.source) / grid.resampled))
    if not corners:
        raise BadRequest("the network finds nothing of this structure in the image: scribble on it")
    low, high = np.min([low for low, _ in corners], axis=0), np.max([high for _, high in corners], axis=0)
    return Region.around(np.floor(low - margin_voxels), np.ceil(high + margin_voxels), scan.shape, scan.spacing)


def _stroke_evidence(marks: Marks, image: Floats, spacing: Spacing) -> Floats:
    """Log-odds that strokes add to the voxels around them, fading with distance and difference in intensity."""
    evidence = np.zeros(marks.shape, dtype=np.float32)
    for mark, sign in ((FOREGROUND, 1), (BACKGROUND, -1)):
        if (marks == mark).any():
            distance, nearest = ndimage.distance_transform_edt(marks != mark, sampling=spacing, return_indices=True)
            squared = np.square(image - image[(slice(None), *nearest)]).mean(axis=0)
            difference = squared / (2 * INTENSITY_SCALE * INTENSITY_SCALE)
            fading = np.exp(-distance / STROKE_RANGE_MM - difference).astype(np.float32)
            evidence += np.float32(sign * STROKE_LOG_ODDS) * fading
    return evidence
