"""The bundle app: MONAI bundles as they are."""
