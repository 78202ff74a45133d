"""Calls to the datastore: images, labels, and what is recorded about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from rayapp.client.caller import Caller, Params
from rayapp.client.transport import Call, read_json
from rayapp.protocol import FINAL, Route
from rayapp.responses import DatastoreStatus, LabelRevision, SavedLabel


class DatastoreCalls(Caller):
    """Images and labels that the server stores."""

    async def datastore(self) -> DatastoreStatus:
        """Counts of images, of finished images, and of labels by tag."""
        return cast(DatastoreStatus, await self._get(Route.DATASTORE))

    async def datalist(self) -> list[dict[str, str]]:
        """The training list: each image with a `final` label, as the server's paths of `image` and `label`."""
        return cast("list[dict[str, str]]", await self._get(Route.DATASTORE, output="train"))

    async def document(self) -> dict[str, Any]:
        """All images and labels with their info, laid out as MONAI Label's `datastore_v2.json`."""
        return cast("dict[str, Any]", await self._get(Route.DATASTORE, output="all"))

    async def dataset(self, to: Path, *, limit: int | None = None) -> Path:
        """Download a zip of the images that have a `final` label, with these labels.

        Args:
            to: File or folder to write to.
            limit: Number of images at most; all by default.

        Returns:
            The file written.
        """
        query = {} if limit is None else {"limit_cases": str(limit)}
        return await self._download(Route.DATASET, to, **query)

    async def upload_image(self, file: Path, *, image: str | None = None, params: Params | None = None) -> str:
        """Store an image.

        Args:
            file: A NIfTI or NRRD file.
            image: The image's id; by default the file's name without its extension.
            params: The image's info.

        Returns:
            The image's id.

        Raises:
            Unreadable: If the file is damaged; nothing is stored then.
        """
        call = Call(
            method="PUT",
            path=Route.IMAGE,
            query={"image": image} if image else {},
            form={"params": json.dumps(self._with_client_id(params))},
            files=[("file", file)],
        )
        return str((await self._transport.send(call, read_json))["image"])

    async def delete_image(self, image: str) -> None:
        """Delete an image and its labels. Needs the role of an administrator."""
        await self._send("DELETE", Route.IMAGE, id=image)

    async def has_image(self, image: str) -> bool:
        """True when the server has an image with this id."""
        return await self._exists(Route.IMAGE, image=image)

    async def download_image(self, image: str, to: Path) -> Path:
        """Download an image's file; a DICOM series is converted to NIfTI.

        Args:
            image: The image's id.
            to: File or folder to write to.

        Returns:
            The file written.
        """
        return await self._download(Route.IMAGE, to, image=image)

    async def image_info(self, image: str) -> dict[str, Any]:
        """The info recorded with an image; empty for an unknown image."""
        return cast("dict[str, Any]", await self._get(Route.IMAGE_INFO, image=image))

    async def update_image_info(self, image: str, info: Params) -> None:
        """Merge `info` into the image's info."""
        await self._send("PUT", Route.IMAGE_INFO, form={"info": json.dumps(dict(info))}, image=image)

    async def save_label(
        self, image: str, file: Path, *, tag: str = FINAL, params: Params | None = None, onto: int | None = None
    ) -> SavedLabel:
        """Save a label map of an image; once this returns, it is durable. Earlier ones are kept as revisions.

        Args:
            image: The image's id.
            file: The label map, on the image's voxel grid.
            tag: Tag to save it under; `final` marks the image as finished.
            params: The label's info, such as `label_info`.
            onto: Number of the revision that the label map was made from, 0 if there was none: the save is refused if
                another one is the newest by now. By default the newest one is replaced, whichever it is.

        Raises:
            NotFound: If there is no such image.
            Conflict: If somebody else saved since the revision `onto`; the text says who and when.
            GridMismatch: If the label map lies on another voxel grid; nothing is stored then.
            Unreadable: If the file is damaged; nothing is stored then.
        """
        call = Call(
            method="PUT",
            path=Route.LABEL,
            query={"image": image, "tag": tag},
            form={"params": json.dumps(self._with_client_id(params))},
            files=[("label", file)],
            onto=onto,
        )
        return cast(SavedLabel, await self._transport.send(call, read_json))

    async def delete_label(self, image: str, tag: str = FINAL) -> None:
        """Delete the label under a tag, if there is one; its revisions are kept. Needs the role of an administrator."""
        await self._send("DELETE", Route.LABEL, id=image, tag=tag)

    async def has_label(self, image: str, tag: str = FINAL) -> bool:
        """True when the image has a label under the tag."""
        return await self._exists(Route.LABEL, image=image, tag=tag)

    async def download_label(self, image: str, to: Path, *, tag: str = FINAL, revision: int | None = None) -> Path:
        """Download a label.

        Args:
            image: The image's id.
            to: File or folder to write to.
            tag: The label's tag.
            revision: Number of an earlier revision; the newest one by default.

        Returns:
            The file written.

        Raises:
            NotFound: If there is no such label, or no such revision of it.
        """
        query = {} if revision is None else {"revision": str(revision)}
        return await self._download(Route.LABEL, to, label=image, tag=tag, **query)

    async def label_revisions(self, image: str, tag: str = FINAL) -> list[LabelRevision]:
        """Every saved state of a label, oldest first, also after the label was deleted."""
        return cast("list[LabelRevision]", await self._get(Route.LABEL_REVISIONS, label=image, tag=tag))

    async def restore_label(
        self, image: str, revision: int, *, tag: str = FINAL, onto: int | None = None
    ) -> SavedLabel:
        """Save an earlier revision of a label again, as the newest one; those between are kept.

        Args:
            image: The image's id.
            revision: Number of the revision to restore.
            tag: The label's tag.
            onto: Number of the revision that must still be the newest one; any by default.

        Raises:
            NotFound: If there is no such revision.
            Conflict: If somebody else saved since the revision `onto`; the text says who and when.
        """
        query = {"label": image, "tag": tag, "revision": str(revision)}
        call = Call(method="POST", path=Route.RESTORE_LABEL, query=query, onto=onto)
        return cast(SavedLabel, await self._transport.send(call, read_json))

    async def label_info(self, image: str, tag: str = FINAL) -> dict[str, Any]:
        """The info recorded with a label; empty for an unknown label."""
        return cast("dict[str, Any]", await self._get(Route.LABEL_INFO, label=image, tag=tag))

    async def update_label_info(self, image: str, info: Params, *, tag: str = FINAL) -> None:
        """Merge `info` into the label's info."""
        await self._send("PUT", Route.LABEL_INFO, form={"info": json.dumps(dict(info))}, label=image, tag=tag)
