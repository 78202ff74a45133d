"""Scores and uncertainty of bundles."""

import nibabel
import numpy as np
import pytest

from rayapp.active_learning.scoring_methods import (
    Case,
    MonteCarloDropout,
    TestTimeAugmentation,
    options_of,
    scoring_models,
)
from rayapp.datastore.interfaces import ImageRecord
from rayapp.errors import BadRequest
from rayapp.imaging.volume import Volume
from tests.inference import zoo
from tests.inference.grids import affine_of
from tests.inference.methods.bundles import AT, SOME, SPACING, UNET, brats, deepedit, task_of, volumes


def case_of(volume, tmp_path):
    path = tmp_path / "ct.nii.gz"
    nibabel.Nifti1Image(np.moveaxis(volume.array, 0, -1).squeeze(), volume.affine).to_filename(path)
    image = ImageRecord(id="ct", path=path, ext=".nii.gz")
    return Case(image=image, labels={}, max_bytes=1 << 24)


def test_what_a_bundle_is_unsure_of_lies_on_the_voxels_it_is_unsure_of(tmp_path):
    crop = [{"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "select_fn": "$lambda x: x > -9"}]
    root = zoo.bundle(
        tmp_path / "b",
        network=zoo.BRIGHTER,
        pre=zoo.compose(zoo.LOAD, zoo.ORIENT, crop),
        post=zoo.compose(zoo.SOFTMAX, zoo.INVERT, zoo.ARGMAX),
        weights=zoo.threshold(AT),
    )
    task = task_of(root)
    for volume in volumes():
        volume.array[:, :2], volume.array[:, :, -3:] = -9, -9  # cropped off
        levels = TestTimeAugmentation().score(
            case_of(volume, tmp_path), {"samples": 1, "spatial": "mirror", "batch": 1}, task
        )
        p = 1 / (1 + np.exp(-(volume.array[0].astype(float) - AT)))
        entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) * (volume.array[0] > -9)
        assert np.abs(levels.uncertainty.array - 255 * entropy).max() <= 1
        ml = abs(np.linalg.det(volume.affine[:3, :3])) / 1000
        assert levels.values["foreground"] == pytest.approx((volume.array[0] > AT).sum() * ml, rel=1e-5)


@pytest.mark.parametrize("method", [TestTimeAugmentation(), MonteCarloDropout()], ids=lambda method: method.name)
@pytest.mark.parametrize("made", ["unet", "brats", "deepedit"])
def test_bundles_are_scored(tmp_path, made, method):
    if made == "unet":
        pre = zoo.compose(zoo.LOAD, zoo.ORIENT, [{"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 2, 2]}])
        post = zoo.compose(zoo.SOFTMAX, zoo.INVERT, zoo.ARGMAX)
        root = zoo.bundle(tmp_path / made, network=UNET, pre=pre, post=post)
    else:
        root = {"brats": brats, "deepedit": deepedit}[made](tmp_path / made)
    task = task_of(root)
    case = case_of(Volume(array=zoo.speckled((19, 24, 14)), affine=affine_of(SOME[2], SPACING, 9.0)), tmp_path)
    options = {**options_of(method, {}), "samples": 3}
    if method.name == "epistemic" and made != "unet":
        with pytest.raises(BadRequest, match="neither dropout nor convolutions"):
            method.score(case, options, task)  # a convolution of one voxel is none
        return
    once, again = (method.score(case, options, task) for _ in range(2))
    assert once.values == again.values
    assert once.values[method.name] > 0
    assert once.uncertainty.array.shape == (19, 24, 14)
    assert [part["name"] for part in once.columns["structures"]] == list(task.labels)
    assert scoring_models({made: task}) == [made]
