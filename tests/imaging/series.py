"""DICOM series made of arrays: whole enough for archives, validators and viewers, and named in no useful order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from tests.imaging.grids import Affine

SERIES, STUDY = generate_uid(), generate_uid()
PATIENT = "Phantom^Asymmetric"


def write_series(
    folder: Path,
    array: npt.NDArray[Any],
    affine: Affine,
    *,
    slope: float = 1,
    intercept: float = 0,
    series: str = SERIES,
    study: str = STUDY,
    modality: str = "CT",
    description: str = "phantom",
) -> list[Path]:
    """One file for each slice of (I, J, K), named and numbered in an order that says nothing; returns them by
    position. `affine` maps index to RAS mm."""
    folder.mkdir(parents=True)
    names = np.random.default_rng(5).permutation(array.shape[2])
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    kind = MRImageStorage if modality == "MR" else CTImageStorage
    frame = generate_uid(entropy_srcs=[series, "frame of reference"])
    files = []
    for k in range(array.shape[2]):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = kind
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = PATIENT, "P1", "", "O"
        dataset.StudyInstanceUID, dataset.StudyID, dataset.AccessionNumber = study, "1", ""
        dataset.StudyDate, dataset.StudyTime, dataset.ReferringPhysicianName = "20240229", "123456", ""
        dataset.SeriesInstanceUID, dataset.SeriesNumber, dataset.SeriesDescription = series, 7, description
        dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = frame, ""
        dataset.Modality, dataset.InstanceNumber = modality, int(names[k]) + 1
        dataset.Manufacturer, dataset.ImageType = "", ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.Columns, dataset.Rows = array.shape[0], array.shape[1]
        dataset.PixelSpacing = [float(f"{spacing[1]:.10g}"), float(f"{spacing[0]:.10g}")]
        dataset.ImageOrientationPatient = [f"{n:.12f}" for n in (lps[:3, :2] / spacing[:2]).T.ravel()]
        dataset.ImagePositionPatient = [f"{n:.9f}" for n in lps[:3, 3] + k * lps[:3, 2]]
        dataset.SliceThickness = float(f"{spacing[2]:.10g}")
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        dataset.PixelData = array[:, :, k].astype("<i2").tobytes(order="F")
        files.append(folder / f"{names[k]}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    return files


def edit(file: Path, **fields: Any) -> None:
    """Set fields of a DICOM file; None removes one."""
    dataset = pydicom.dcmread(file)
    for key, value in fields.items():
        if value is None:
            del dataset[key]
        else:
            setattr(dataset, key, value)
    dataset.save_as(file)


def compress(files: list[Path], syntax: str) -> None:
    """Store the files' pixels in another transfer syntax."""
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(file)


def tilt(files: list[Path]) -> None:
    """Shift each slice a little further along the patient's y than the one before, as a tilted gantry does."""
    for number, file in enumerate(files):
        x, y, z = pydicom.dcmread(file).ImagePositionPatient
        edit(file, ImagePositionPatient=[x, y + 2 * number, z])


def enhanced(folder: Path, classic: list[Path]) -> Path:
    """The slices of a series as the frames of one enhanced object, its geometry half shared, half per frame."""
    slices = [pydicom.dcmread(file) for file in classic]
    dataset = slices[0].copy()
    position = [Dataset() for _ in slices]
    for frame, piece in zip(position, slices, strict=True):
        plane, values = Dataset(), Dataset()
        plane.ImagePositionPatient = piece.ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept = piece.RescaleSlope, piece.RescaleIntercept
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [plane], [values]
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = dataset.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, dataset.SliceThickness
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        del dataset[keyword]
    del dataset.RescaleIntercept
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    dataset.NumberOfFrames = len(slices)
    dataset.PerFrameFunctionalGroupsSequence, dataset.SharedFunctionalGroupsSequence = position, [shared]
    dataset.PixelData = b"".join(piece.PixelData for piece in slices)
    folder.mkdir()
    dataset.save_as(folder / "enhanced.dcm", enforce_file_format=True)
    return folder
