"""The datastore as MONAI Label's apps see it, over rayapp's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from rayapp.active_learning.scoring_methods import Case
from rayapp.datastore import interfaces
from rayapp.errors import AppBroken
from rayapp.protocol import FINAL
from rayapp.training.train_task import Pair

EVERY = 1_000_000


class DefaultLabelTag(StrEnum):
    """Tags of labels."""

    ORIGINAL = "original"
    FINAL = "final"


class Datastore:
    """Images and labels, for an app's strategies, scoring methods and trainers.

    Args:
        store: rayapp's datastore; None where there is none, as while an app is made.
        holder: The client that asks, to which images leased to others are not offered.
    """

    def __init__(self, store: interfaces.Datastore | None = None, *, holder: str | None = None) -> None:
        self._bound, self._holder = store, holder

    @property
    def _store(self) -> interfaces.Datastore:
        if self._bound is None:
            raise AppBroken("the datastore can be used by strategies, scoring, training and on_save_label only")
        return self._bound

    def bind(self, store: interfaces.Datastore | None) -> None:
        """Use this datastore from now on."""
        self._bound = store

    def name(self) -> str:
        """The datastore's name."""
        return "rayapp"

    def description(self) -> str:
        """One line for people."""
        return "rayapp's datastore"

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:  # noqa: ARG002
        """Labelled images, as `[{"image": path, "label": path}]`."""
        return [
            {**entry, "image": str(entry["image"]), "label": str(entry["label"])} for entry in self._store.datalist()
        ]

    def list_images(self) -> list[str]:
        """Ids of all images; none where there is no datastore yet."""
        return [] if self._bound is None else self._store.image_ids()

    def get_unlabeled_images(self, label_tag: Any = None, labels: Any = None) -> list[str]:  # noqa: ARG002
        """Ids of images without a label under the tag that are not leased to others."""
        return self._store.unlabeled(tag=str(label_tag or FINAL), limit=EVERY, holder=self._holder)

    def get_labeled_images(self, label_tag: Any = None, labels: Any = None) -> list[str]:  # noqa: ARG002
        """Ids of images with a label under the tag."""
        tag = str(label_tag or FINAL)
        return [image_id for image_id in self.list_images() if tag in self._store.labels(image_id)]

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """The image's info."""
        return dict(self._store.image(image_id).info)

    def get_image_uri(self, image_id: str) -> str:
        """The image's file, or folder of DICOM files."""
        return str(self._store.image(image_id).path)

    def get_image(self, image_id: str, params: Any = None) -> Any:  # noqa: ARG002
        """The image's file, open for reading."""
        return Path(self.get_image_uri(image_id)).open("rb")

    def get_label_by_image_id(self, image_id: str, tag: Any = FINAL) -> str:
        """The label's id, which is the image's; empty if there is none under the tag."""
        return image_id if str(tag) in self._store.labels(image_id) else ""

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Ids of the image's labels by tag."""
        return dict.fromkeys(self._store.labels(image_id), image_id)

    def get_label_uri(self, label_id: str, label_tag: Any = FINAL, image_id: str = "") -> str:
        """The label's file."""
        return str(self._store.label(image_id or label_id, str(label_tag)).path)

    def get_label_info(self, label_id: str, label_tag: Any = FINAL, params: Any = None) -> dict[str, Any]:  # noqa: ARG002
        """The label's info."""
        return dict(self._store.label(label_id, str(label_tag)).info)

    def update_image_info(self, image_id: str, info: Mapping[str, Any]) -> None:
        """Merge keys into the image's info."""
        self._store.update_image_info(image_id, info)

    def update_label_info(self, label_id: str, label_tag: Any, info: Mapping[str, Any]) -> None:
        """Merge keys into the label's info."""
        self._store.update_label_info(label_id, str(label_tag), info)

    def refresh(self) -> None:
        """Find new images."""
        self._store.refresh()

    def status(self) -> dict[str, Any]:
        """Numbers of images and labels."""
        return self._store.status()

    def json(self) -> dict[str, Any]:
        """The whole datastore as JSON."""
        return self._store.document()


class TrainingData(Datastore):
    """The labelled images of one training.

    Args:
        pairs: The images and labels.
        labels: A label file to be read in place of another, by path.
    """

    def __init__(self, pairs: Sequence[Pair], labels: Mapping[Path, Path]) -> None:
        super().__init__()
        self._pairs, self._labels = pairs, labels

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:  # noqa: ARG002
        """See `Datastore.datalist`."""
        return [
            {"image": str(pair.image), "label": str(self._labels.get(pair.label, pair.label))} for pair in self._pairs
        ]


class OneImage(Datastore):
    """The image that is being scored; what is recorded is collected instead of stored.

    Attributes:
        image_infos: Recorded about the image.
        label_infos: Recorded about its labels, by tag.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._case = case
        self.image_infos: dict[str, Any] = {}
        self.label_infos: dict[str, dict[str, Any]] = {}

    def list_images(self) -> list[str]:
        """See `Datastore.list_images`."""
        return [self._case.image.id]

    def get_unlabeled_images(self, label_tag: Any = None, labels: Any = None) -> list[str]:  # noqa: ARG002
        """See `Datastore.get_unlabeled_images`."""
        return [] if str(label_tag or FINAL) in self._case.labels else self.list_images()

    def get_labeled_images(self, label_tag: Any = None, labels: Any = None) -> list[str]:  # noqa: ARG002
        """See `Datastore.get_labeled_images`."""
        return self.list_images() if str(label_tag or FINAL) in self._case.labels else []

    def get_image_info(self, image_id: str) -> dict[str, Any]:  # noqa: ARG002
        """See `Datastore.get_image_info`."""
        return {**self._case.image.info, **self.image_infos}

    def get_image_uri(self, image_id: str) -> str:  # noqa: ARG002
        """See `Datastore.get_image_uri`."""
        return str(self._case.image.path)

    def get_label_by_image_id(self, image_id: str, tag: Any = FINAL) -> str:
        """See `Datastore.get_label_by_image_id`."""
        return image_id if str(tag) in self._case.labels else ""

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """See `Datastore.get_labels_by_image_id`."""
        return dict.fromkeys(self._case.labels, image_id)

    def get_label_uri(self, label_id: str, label_tag: Any = FINAL, image_id: str = "") -> str:  # noqa: ARG002
        """See `Datastore.get_label_uri`."""
        return str(self._case.labels[str(label_tag)].path)

    def get_label_info(self, label_id: str, label_tag: Any = FINAL, params: Any = None) -> dict[str, Any]:  # noqa: ARG002
        """See `Datastore.get_label_info`."""
        return {**self._case.labels[str(label_tag)].info, **self.label_infos.get(str(label_tag), {})}

    def update_image_info(self, image_id: str, info: Mapping[str, Any]) -> None:  # noqa: ARG002
        """See `Datastore.update_image_info`."""
        self.image_infos.update(info)

    def update_label_info(self, label_id: str, label_tag: Any, info: Mapping[str, Any]) -> None:  # noqa: ARG002
        """See `Datastore.update_label_info`."""
        self.label_infos.setdefault(str(label_tag), {}).update(info)
