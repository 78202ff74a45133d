"""`monailabel.sam2.utils`."""


def is_sam2_module_available() -> bool:
    """False, since rayapp does not serve SAM 2; its shipped app has a promptable network for any structure."""
    return False
