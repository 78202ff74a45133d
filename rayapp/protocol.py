"""The wire: every path, role, tag and reserved name, once; server and client both import it.

The routes are those of the MONAI Label clients (3D Slicer, OHIF, Python); slashes matter, since those clients follow
no redirect.
"""

from __future__ import annotations

import re
from enum import StrEnum

from rayapp.errors import BadRequest


class Path(StrEnum):
    """Route templates, as FastAPI writes them."""

    ROOT = "/"
    INFO = "/info/"
    INFER = "/infer/{model}"
    BATCH = "/batch/infer"
    BATCH_MODEL = "/batch/infer/{model}"
    TRAIN = "/train/"
    TRAIN_MODEL = "/train/{model}"
    SCORING = "/scoring/"
    SCORING_METHOD = "/scoring/{method}"
    UNCERTAINTY = "/scoring/{method}/uncertainty"
    UNCERTAIN_SLICES = "/scoring/{method}/slices"
    JOBS = "/jobs"
    JOB = "/jobs/{job_id}"
    JOB_EVENTS = "/jobs/{job_id}/events"
    JOB_FILE = "/jobs/{job_id}/files/{name}"
    NEXT = "/activelearning/{strategy}"
    DATASTORE = "/datastore/"
    IMAGE = "/datastore/image"
    IMAGE_INFO = "/datastore/image/info"
    LABEL = "/datastore/label"
    LABEL_INFO = "/datastore/label/info"
    UPDATE_LABEL_INFO = "/datastore/updatelabelinfo"
    DATASET = "/datastore/dataset"
    MODELS = "/models"
    PROMOTE = "/models/{model}/promote"
    ROLLBACK = "/models/{model}/rollback"
    MODEL = "/model/{model}"
    MODEL_INFO = "/model/info/{model}"
    SESSIONS = "/session/"
    SESSION = "/session/{session_id}"
    INTERACTIONS = "/interactions"
    INTERACTION = "/interactions/{interaction_id}"
    INTERACTION_MASK = "/interactions/{interaction_id}/mask"
    INTERACTION_PROMPTS = "/interactions/{interaction_id}/prompts"
    INTERACTION_STREAM = "/interactions/{interaction_id}/stream"
    INTERACTION_UNDO = "/interactions/{interaction_id}/undo"
    INTERACTION_UNDO_STREAM = "/interactions/{interaction_id}/undo/stream"
    INTERACTION_REDO = "/interactions/{interaction_id}/redo"
    INTERACTION_REDO_STREAM = "/interactions/{interaction_id}/redo/stream"
    LOGS = "/logs/"
    LOGS_GPU = "/logs/gpu"
    RELOAD = "/reload"
    AUTH = "/auth/"
    AUTH_TOKEN = "/auth/token"
    AUTH_VALID = "/auth/token/valid"
    OHIF = "/ohif/{path:path}"
    PROXY = "/proxy/dicom/{path:path}"


class Role(StrEnum):
    """What a user may do; each role holds those before it."""

    USER = "user"
    ANNOTATOR = "annotator"
    REVIEWER = "reviewer"
    ADMIN = "admin"

    def reaches(self, other: Role) -> bool:
        """True when this role holds `other`."""
        order = list(Role)
        return order.index(self) >= order.index(other)


class Output(StrEnum):
    """Values of `/infer`'s `output` query."""

    ALL = "all"
    IMAGE = "image"
    JSON = "json"
    DICOM_SEG = "dicom_seg"
    BOX = "box"  # ours: the changed box as packed bits (rayapp.imaging.mask_codec)


MASK_MEDIA_TYPE = "application/vnd.rayapp.mask"
PARAMS_HEADER = "X-Rayapp-Params"  # ours: the result's params (JSON) beside a packed mask
FINAL = "final"
ORIGINAL = "original"

# Slicer sends click lists under label names, in one namespace with these parameters.
RESERVED_LABEL_NAMES = frozenset(
    {
        "client_id",
        "curves",
        "device",
        "extremes",
        "foreground",
        "image",
        "label",
        "label_info",
        "label_prompt",
        "label_tag",
        "largest_cc",
        "logging",
        "marks",
        "model",
        "model_filename",
        "optimiser",
        "point_labels",
        "points",
        "refine",
        "reset_state",
        "restore_label_idx",
        "result_compress",
        "result_dtype",
        "result_extension",
        "roi",
        "save_label",
        "selected_label_name",
        "session",
        "slice",
        "start",
        "timeout",
    }
)

_NAME = re.compile(r"\w[\w.\-+ @(),=#&']{0,199}")
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def checked_name(value: str, what: str) -> str:
    """Return `value` if it can serve as an image id, tag, model, strategy or session name, and so as a file name.

    The one check at the edge: a name has 1 to 200 letters, digits, `_ - . + @ ( ) , = # & '` or spaces, starts with
    a letter, digit or underscore and holds no `..`: it can never name a path.

    Raises:
        BadRequest: if it is anything else.
    """
    if (
        len(value.encode()) <= 200
        and ".." not in value
        and _NAME.fullmatch(value)
        and value[-1] not in ". "
        and not _WINDOWS_DEVICE.fullmatch(value)
    ):
        return value
    shown = value if len(value) <= 60 else value[:60] + "…"
    raise BadRequest(
        f"{what} {shown!r} is not a valid name: use letters, digits and _ - . + ( ), no path, at most 200 bytes"
    )
