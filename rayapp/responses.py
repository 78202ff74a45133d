"""JSON responses of the HTTP API, as the gateway sends them and the Python client returns them.

The gateway's routes name them as response models, so the OpenAPI description has the same types.
"""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic does not take typing's own before Python 3.12

from rayapp.protocol import Role


class ArchiveStatus(TypedDict):
    """Numbers of final labels that are still to be stored in the DICOM archive and that it has refused.

    `problem` is the archive's error, or the reason why the last label could not be stored; absent if there is none.
    """

    unsent: int
    refused: int
    problem: NotRequired[str]


class DatastoreStatus(TypedDict):
    """Numbers of images, of images with a `final` label, and of labels by tag.

    `problems` gives the reason why an entry of the studies folder is left out, by its path there, or says that it was
    replaced after labels of it had been saved; absent without any.
    `archive` is there if the studies are in a DICOM archive.
    """

    total: int
    completed: int
    label_tags: dict[str, int]
    problems: NotRequired[dict[str, str]]
    archive: NotRequired[ArchiveStatus]


class ModelInfo(TypedDict):
    """A served model. `labels` maps names to values in the mask; `config` has the options with their defaults."""

    type: str
    labels: dict[str, int]
    dimension: int
    description: str
    config: dict[str, Any]
    version: str


class Info(TypedDict):
    """Everything the server offers. `broken_models` gives, by name, the reason why a model is not served."""

    name: str
    description: str
    version: str
    labels: list[str]
    models: dict[str, ModelInfo]
    trainers: dict[str, dict[str, Any]]
    strategies: dict[str, dict[str, Any]]
    scoring: dict[str, dict[str, Any]]
    train_stats: dict[str, dict[str, Any]]
    broken_models: dict[str, str]
    datastore: DatastoreStatus


class Sample(TypedDict):
    """The next image to label. `path` is on the server; `name` is the file's name, `ts` and `strategy` its info."""

    id: str
    path: str
    name: str
    ts: NotRequired[int]
    weight: NotRequired[int]
    strategy: NotRequired[dict[str, Any]]


class StoredImage(TypedDict):
    """The id of an image that was stored durably."""

    image: str


class SavedLabel(TypedDict):
    """A label that was stored durably; both fields are the image's id. An app may add keys."""

    image: str
    label: str


class SessionInfo(TypedDict):
    """An image that a client uploaded for a limited time, without storing it. Times are in Unix seconds, `expiry` in
    seconds without use.
    """

    name: str
    path: str
    image: str
    meta: dict[str, Any]
    create_ts: int
    last_access_ts: int
    expiry: int


class Session(TypedDict):
    """A new session."""

    session_id: str
    session_info: SessionInfo


class Job(TypedDict):
    """A background job. `status` is SUBMITTED, RUNNING, DONE, ERROR or STOPPED; `end_ts` appears once it is over.

    `progress` has epoch, epochs, iteration, iterations, loss, metric, best and seconds_left; `result` is the
    job's result; `files` are the names of its pictures.
    """

    id: str
    status: str
    request: dict[str, Any]
    start_ts: str
    details: NotRequired[list[str]]
    end_ts: NotRequired[str]
    kind: NotRequired[str]
    name: NotRequired[str]
    progress: NotRequired[dict[str, Any] | None]
    result: NotRequired[dict[str, Any]]
    files: NotRequired[list[str]]


class SubmittedJob(TypedDict):
    """Outcome for one of several jobs: the job, or the reason why it was refused."""

    result: Job | None
    detail: str | None


class Versions(TypedDict):
    """A model's versions, oldest first. `production` is the served one, if any. Each version has `version` and, from
    its card, `parent`, `created`, `metrics`, `verdict` and more."""

    production: str | None
    versions: list[dict[str, Any]]


class ServedVersion(TypedDict):
    """The version of a model that is now served."""

    model: str
    version: str


class ModelFile(TypedDict):
    """A model's weights. `checksum` is `SHA256:<hex>`; the time is in Unix seconds."""

    checksum: str
    modified_time: int


class OpenedInteraction(TypedDict):
    """A new interaction."""

    id: str


class InteractionEvent(TypedDict):
    """An entry of an interaction's log; `ts` is in Unix seconds."""

    step: int
    kind: str
    prompt: dict[str, Any]
    model_version: str | None
    ts: float


class InteractionState(TypedDict):
    """An interaction: `prompts` are those in force, `events` its whole log; `step` is the last entry's number."""

    id: str
    image: str
    model: str
    user: str
    step: int
    prompts: list[dict[str, Any]]
    can_undo: bool
    can_redo: bool
    events: list[InteractionEvent]


class ViewerImage(TypedDict):
    """An image, its DICOM UIDs and its voxel grid. `affine` maps voxel indices to RAS millimetres; `labels` are the
    tags of its labels; `not_storable` says why no label of it can be stored in the archive, "" if one can."""

    image: str
    study: str
    series: str
    shape: tuple[int, int, int]
    affine: list[list[float]]
    labels: list[str]
    not_storable: str


class ViewerDraft(TypedDict):
    """The caller's unsaved label of an image. `base` is the number of the revision that it was made from, 0 for none;
    `names` are structures by value from 1; `start` is the label that it began with, a packed mask in base64; `done` are
    the edits since and `undone` those that a redo restores, the next one last; `ts` is when it changed (Unix seconds).
    """

    draft: str
    base: int
    names: list[str]
    start: str
    done: list[dict[str, Any]]
    undone: list[dict[str, Any]]
    ts: float


class LabelRevision(TypedDict):
    """A saved state of a label: its number from 1, when (Unix seconds) and by whom it was saved, its info."""

    number: int
    ts: float
    user: str
    client_id: str | None
    info: dict[str, Any]


class SignIn(TypedDict):
    """The sign-in method, in the fields that MONAI Label's clients read."""

    enabled: bool
    client_id: str
    realm: str


class Token(TypedDict):
    """The key, to be sent as `Authorization: <token_type> <access_token>`."""

    access_token: str
    token_type: str


class UserInfo(TypedDict):
    """The user that a key belongs to, with all roles."""

    username: str
    email: str
    name: str
    roles: list[Role]
