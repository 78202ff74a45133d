"""The bundle app: serves MONAI bundles unchanged."""
