"""Names that tell left from right, in any spelling."""

from __future__ import annotations

import pytest

from rayapp.training.augmentation import has_sides


@pytest.mark.parametrize(
    "name",
    [
        *("left kidney", "kidney_left", "LeftKidney", "kidneyLeft", "kidney-L", "lungL", "LLung", "R_lung", "lobe_RUL"),
        *("RUL", "LV", "rca", "Lt. adrenal", "hippocampus_rh", "KIDNEY_RIGHT", "femurRight2"),
    ],
)
def test_a_name_with_a_side_keeps_images_from_being_mirrored(name: str) -> None:
    assert has_sides(["liver", name])


@pytest.mark.parametrize(
    "name",
    [
        "liver",
        "Lung",
        "vertebra L1",
        "vertebrae_L5",
        "rectum",
        "lesion",
        "Tumor",
        "bright",
        "gall bladder",
        "label 1",
        "larynx",
    ],
)
def test_a_name_without_a_side_does_not(name: str) -> None:
    assert not has_sides([name])
