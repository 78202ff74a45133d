"""The radiology app: automatic segmentation, DeepEdit, DeepGrow and scribbles."""
