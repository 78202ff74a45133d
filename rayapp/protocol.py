"""The HTTP API's paths, roles, headers and names, for the server and its clients alike.

Most paths are those of MONAI Label's clients (3D Slicer, OHIF, Python), which follow no redirect: closing slashes
matter. The JSON messages are in `rayapp.responses`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from urllib.parse import quote

from rayapp.errors import BadRequest


class Route(StrEnum):
    """Paths of the HTTP API as FastAPI's templates: `/infer/{model}`."""

    ROOT = "/"
    DOCS = "/docs"
    ICON = "/favicon.ico"
    HEALTH = "/healthz"
    READY = "/readyz"
    METRICS = "/metrics"
    INFO = "/info/"
    INFER = "/infer/{model}"
    INFER_SLIDE = "/infer/wsi/{model}"
    INFER_SLIDE_V2 = "/infer/wsi_v2/{model}"
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
    LABEL_REVISIONS = "/datastore/label/revisions"
    RESTORE_LABEL = "/datastore/label/restore"
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
    VIEWER_IMAGE = "/viewer/image"
    VIEWER_LABEL = "/viewer/label"
    VIEWER_DRAFT = "/viewer/draft"
    OHIF_ROOT = "/ohif/"
    OHIF = "/ohif/{path:path}"
    PROXY = "/proxy/dicom/{path:path}"
    PROXY_QIDO = "/proxy/dicom/qido"
    PROXY_WADO = "/proxy/dicom/wado"
    DICOMWEB = "/dicom-web"
    STUDIES = "/dicom-web/studies"
    STUDY_METADATA = "/dicom-web/studies/{study}/metadata"
    SERIES = "/dicom-web/studies/{study}/series"
    SERIES_METADATA = "/dicom-web/studies/{study}/series/{series}/metadata"
    INSTANCES = "/dicom-web/studies/{study}/series/{series}/instances"
    INSTANCE_METADATA = "/dicom-web/studies/{study}/series/{series}/instances/{instance}/metadata"
    FRAMES = "/dicom-web/studies/{study}/series/{series}/instances/{instance}/frames/{number}"

    def filled(self, **values: str) -> str:
        """The path with percent-encoded values in place of the template's names."""
        return self.format(**{name: quote(value, safe="") for name, value in values.items()})


class Role(StrEnum):
    """Roles of users, each with the rights of those before it."""

    USER = "user"
    ANNOTATOR = "annotator"
    REVIEWER = "reviewer"
    ADMIN = "admin"

    def reaches(self, other: Role) -> bool:
        """True if this role has the rights of `other`."""
        order = list(Role)
        return order.index(self) >= order.index(other)


class Output(StrEnum):
    """Values of the query parameter `output` of `/infer`; BOX, the changed box as a packed mask, is our own."""

    ALL = "all"
    IMAGE = "image"
    JSON = "json"
    DICOM_SEG = "dicom_seg"
    BOX = "box"


class JobKind(StrEnum):
    """Kinds of background jobs. Jobs of one kind run one at a time, in the order of submission."""

    TRAIN = "train"
    SCORING = "scoring"
    BATCH = "batch_infer"

    @property
    def monai_label(self) -> str:
        """The kind as MONAI Label's messages write it."""
        return self.value.capitalize()

    @property
    def display_name(self) -> str:
        """The kind in our own messages."""
        return {JobKind.TRAIN: "training", JobKind.SCORING: "scoring", JobKind.BATCH: "batch inference"}[self]


class StreamEvent(StrEnum):
    """Types of the server-sent events of an interaction (MASK, PROBLEM, END) and of a job (JOB)."""

    MASK = "mask"
    PROBLEM = "problem"
    END = "end"
    JOB = "job"


MASK_MEDIA_TYPE = "application/vnd.rayapp.mask"
"""Media type of masks packed by `rayapp.imaging.mask_codec`."""
PARAMS_HEADER = "X-Rayapp-Params"
"""Header with the result's params as JSON, beside a packed mask."""
FINAL = "final"
"""Tag of labels that an annotator finished; training uses these."""
ORIGINAL = "original"
"""Tag of labels that a model predicted."""

# 3D Slicer sends lists of clicks under label names, in one namespace with these parameters.
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
        "size",
        "slice",
        "start",
        "timeout",
    }
)

_NAME = re.compile(r"\w[\w.\-+ @(),=#&']{0,199}")
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def checked_name(value: str, what: str) -> str:
    """Check an image id, tag, model, strategy or session name, which becomes a file name.

    A name has 1 to 200 bytes of letters, digits, `_ - . + @ ( ) , = # & '` and spaces, starts with a letter, digit or
    underscore, and contains no `..`: it can never be a path. Every name from outside is checked here, once.

    Args:
        value: the name.
        what: the kind of name, for the error: "image", "tag".

    Returns:
        The name, unchanged.

    Raises:
        BadRequest: the name is not valid.
    """
    if (
        len(value.encode(errors="surrogatepass")) <= 200
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


_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "")


def parse_flag(value: object, what: str) -> bool:
    """Parse an option that is true or false.

    Args:
        value: a boolean, 0 or 1, or text such as "true" or "off", as forms send it; a list of such choices, of which
            the first counts; None, "" and an empty list are false.
        what: the option's name, for the error.

    Raises:
        BadRequest: it is anything else.
    """
    if isinstance(value, (list, tuple)) and (not value or isinstance(value[0], (bool, str))):
        value = value[0] if value else None
    text = "" if value is None else str(value).strip().lower()
    if text not in (*_TRUE, *_FALSE):
        raise BadRequest(f"{what} must be true or false, not {str(value)[:60]!r}")
    return text in _TRUE
