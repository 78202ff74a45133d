"""Volumes and label maps in files: NIfTI, NRRD, DICOM, DICOM SEG, packed masks."""
