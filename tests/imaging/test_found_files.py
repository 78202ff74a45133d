"""Image files as they were found lying about: each lies where SimpleITK puts it, and has its values in the viewer."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from rayapp.errors import Unreadable
from rayapp.imaging import dicom_instances
from rayapp.imaging.reader import read_segmentation, read_volume
from tests.imaging.grids import MAX
from tests.real_data import case

FILES = (
    *(
        "06-qfac-zero/qfac0.nii.gz",
        "08-sform-against-pixdim/vinci.nii.gz",
        "08-sform-against-pixdim/zero_pixdim.nii.gz",
    ),
    *(
        "09-small-volume-500/small.nii.gz",
        "12-names-not-served/plain.nii.gz",
        "15-label-scaled-by-nibabel/image.nii.gz",
    ),
    *("16-nrrd-headers/axismins.nrrd", "16-nrrd-headers/latin1.nrrd"),
)
ODD = ("oneinf", "naninf", "allnan")


@pytest.mark.parametrize("name", FILES)
def test_an_image_lies_where_simpleitk_puts_it(name: str) -> None:
    path = case(*name.split("/"))
    volume, image = read_volume(path, max_bytes=MAX), sitk.ReadImage(str(path))
    for index in ((0, 0, 0), tuple(n - 1 for n in image.GetSize()), (1, 5, 3)):
        place = volume.affine @ (*index, 1)
        np.testing.assert_allclose(place[:3] * (-1, -1, 1), image.TransformIndexToPhysicalPoint(index), atol=1e-3)
    np.testing.assert_allclose(volume.array[0], sitk.GetArrayFromImage(image).transpose(2, 1, 0))


@pytest.mark.parametrize("name", ODD)
def test_one_infinite_voxel_does_not_blacken_the_others_in_the_viewer(tmp_path: Path, name: str) -> None:
    path = case("13-infinity-in-ohif", f"{name}.nii.gz")
    volume = read_volume(path, max_bytes=MAX)
    true = nibabel.load(path).get_fdata(dtype=np.float32)  # ITK reads 0 where there is no number
    stack, voxels = dicom_instances.stack_of(volume, name)
    dicom_instances.write(tmp_path, stack, voxels)
    shown = []
    for number, dataset in enumerate(dicom_instances.instance_datasets(stack)):
        kind = "<i2" if dataset.PixelRepresentation else "<u2"
        stored = np.frombuffer(dicom_instances.frame(tmp_path, stack, number), kind).reshape(dataset.Rows, -1).T
        shown.append(stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept))
    found, finite = np.stack(shown, axis=-1), np.isfinite(true)
    if finite.any():
        step = np.ptp(true[finite]) / 65535
        np.testing.assert_allclose(found[finite], true[finite], atol=step)
        assert ((found >= true[finite].min() - step) & (found <= true[finite].max() + step)).all()
    else:
        assert (found == 0).all()


def test_micrometres_that_viewers_take_for_millimetres_are_refused_by_name() -> None:
    with pytest.raises(Unreadable, match="lengths in um"):
        read_volume(case("10-micrometre-spacing", "um.nrrd"), max_bytes=MAX)


def test_a_label_map_that_nibabel_scaled_is_read() -> None:
    label = read_segmentation(case("15-label-scaled-by-nibabel", "label.nii.gz"), max_bytes=MAX)
    assert set(np.unique(label.array)) <= set(range(10))
    assert label.array.any()
