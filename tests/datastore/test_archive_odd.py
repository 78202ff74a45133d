"""Archives and series as they lie about: what is kept only in name, segmentations of no series, labels of no frame."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from rayapp.datastore.archive_sender import LabelSender
from rayapp.datastore.interfaces import NOT_STORABLE, Author, ImageScore
from rayapp.errors import Unreadable
from rayapp.imaging.dicom_seg import read_masks
from rayapp.imaging.nrrd import encode_masks
from rayapp.imaging.reader import read_grid
from rayapp.imaging.volume import Masks
from tests.datastore.archive_twin import A, ArchiveTwin, B, Twins, mask, save, twins, value_of
from tests.imaging.grids import MAX
from tests.waiting import until

__all__ = ["twins"]


def _edited(data: bytes, **fields: Any) -> bytes:
    dataset = pydicom.dcmread(BytesIO(data))
    for keyword, value in fields.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    buffer = BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def test_a_label_that_the_archive_accepts_and_drops_is_not_archived(
    twins: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayapp.datastore.pacs.CONFIRM_S", 0.0)
    monkeypatch.setattr("rayapp.datastore.archive_sender.RETRY_S", 0.2)
    twins.archive.add(twins.folder / "files", A)
    drops = True
    put = ArchiveTwin.put
    monkeypatch.setattr(ArchiveTwin, "put", lambda archive, data: "" if drops else put(archive, data))
    store = twins.server()
    save(store, A, 5)
    until(lambda: "archive_waiting" in store.label(A, "final").info)
    assert "does not list it" in store.label(A, "final").info["archive_waiting"]
    assert store.unsent()
    drops = False
    until(lambda: not store.unsent())
    assert len(twins.archive.segs(A)) == 1
    assert "archived" in store.label(A, "final").info


@pytest.mark.parametrize("frame", ["shared", "other", "none"])
def test_a_segmentation_that_names_no_series_belongs_to_those_in_its_frame_of_reference(
    twins: Twins, frame: str
) -> None:
    twins.archive.add(twins.folder / "files", A)
    fields = {"shared": {}, "other": {"FrameOfReferenceUID": "1.2.3.4"}, "none": {"FrameOfReferenceUID": None}}[frame]
    twins.archive.put(_edited(twins.seg(A, mask(7)), ReferencedSeriesSequence=None, **fields))
    store = twins.server()
    store.image(A)
    if frame == "shared":
        assert value_of(store, A, "original") == 7
    else:
        assert "original" not in store.labels(A)


def test_a_segmentation_that_names_no_series_is_passed_over_where_it_fits_no_voxels_and_taken_where_it_does(
    twins: Twins,
) -> None:
    """Two series in one frame of reference and one study; the segmentation lies on the voxels of the second."""
    twins.archive.add(twins.folder / "files", A)
    twins.archive.add(twins.folder / "files", B)
    frame = str(pydicom.dcmread(BytesIO(twins.archive.held[B][0])).FrameOfReferenceUID)
    shifted = [
        _edited(
            file,
            FrameOfReferenceUID=frame,
            StudyInstanceUID=f"{B}.9",
            ImagePositionPatient=np.add(
                np.array(pydicom.dcmread(BytesIO(file)).ImagePositionPatient, float), (0.3, 0.4, 0.0)
            ).tolist(),
        )
        for file in twins.archive.held[A]
    ]
    twins.archive.held[A] = shifted
    twins.archive.put(_edited(twins.seg(B, mask(9)), ReferencedSeriesSequence=None))
    store = twins.server()
    for series in (A, B):
        store.image(series)
    assert "original" not in store.labels(A)
    assert value_of(store, B, "original") == 9


def test_an_empty_label_is_archived_and_comes_back_as_one(twins: Twins) -> None:
    twins.archive.add(twins.folder / "files", A)
    store = twins.server()
    save(store, A, 0)
    until(lambda: not store.unsent())
    assert len(twins.archive.segs(A)) == 1
    other = twins.server("b")
    other.image(A)
    assert value_of(other, A) == 0


@pytest.mark.parametrize("fields", [{"FrameOfReferenceUID": None}, {}], ids=["without frame", "sound"])
def test_that_no_label_can_be_stored_is_known_when_the_series_is_opened(twins: Twins, fields: dict[str, Any]) -> None:
    twins.archive.add(twins.folder / "files", A)
    twins.archive.held[A] = [_edited(file, **fields) for file in twins.archive.held[A]]
    store = twins.server()
    for _ in range(2):
        told = store.image(A).info.get(NOT_STORABLE)
        assert told == ("the series lacks FrameOfReferenceUID, which a DICOM SEG must copy from it" if fields else None)
    assert store.image(A).path.exists()


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_overlapping_segments_of_slicer_are_archived_whole(twins: Twins, kind: str) -> None:
    twins.archive.add(twins.folder / "files", A)
    store = twins.server(dicomweb={"segmentation": kind})
    grid = read_grid(store.image(A).path)
    large, small = np.zeros((2, *grid.shape), bool)
    large[:4], small[2:, 1] = True, True
    staged = store.stage(".seg.nrrd")
    staged.write_bytes(
        encode_masks(Masks(array=np.stack([small, large]), affine=grid.affine, names=("tumour", "liver")))
    )
    store.save_label(A, "final", staged, ".seg.nrrd", info={}, author=Author(user="anna"))
    until(lambda: not store.unsent())
    (stored,) = twins.archive.segs(A)
    path = twins.folder / "stored.dcm"
    stored.save_as(path)
    found = read_masks(path, grid, max_bytes=MAX)
    assert found.names == ("tumour", "liver")
    np.testing.assert_array_equal(found.array, [small, large])


def test_a_deflated_series_is_refused_for_that_reason_each_time_it_is_opened(twins: Twins) -> None:
    twins.archive.add(twins.folder / "files", A)
    twins.archive.held[A] = [_deflated(file) for file in twins.archive.held[A]]
    store = twins.server()
    for _ in range(2):
        with pytest.raises(Unreadable, match="TransferSyntaxUID: deflated"):
            store.image(A)
    assert twins.archive.asked("iter_series") == 1


def _deflated(data: bytes) -> bytes:
    dataset = pydicom.dcmread(BytesIO(data))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_a_patient_or_study_that_is_corrected_in_the_archive_is_followed(
    twins: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LabelSender, "start", lambda _: None)
    twins.archive.add(twins.folder / "files", A)
    store = twins.server()
    save(store, A, 5)
    store.save_scores([ImageScore(image_id=A, run="r", ts=1.0, values={"u": 1.0})])
    twins.archive.held[A] = [
        _edited(file, StudyInstanceUID="1.2.99", PatientID="the right one") for file in twins.archive.held[A]
    ]
    store.close()
    store = twins.server()  # also if it was corrected while the server was down
    record = store.image(A)
    assert (record.info["StudyInstanceUID"], record.info["PatientID"]) == ("1.2.99", "the right one")
    (instance, *_) = sorted(store.instances(A).iterdir())
    assert pydicom.dcmread(instance).PatientID == "the right one"
    assert value_of(store, A) == 5
    assert store.unscored("r", images="all") == []
    store._sender.send_due()
    (seg,) = twins.archive.segs(A)
    assert (seg.StudyInstanceUID, seg.PatientID) == ("1.2.99", "the right one")
    asked = twins.archive.asked("iter_series")
    store.refresh()
    store.image(A)
    assert twins.archive.asked("iter_series") == asked
