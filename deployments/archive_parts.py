"""An archive's series that hold several volumes, as viewers see them: a series for each volume.

Each has its image's id in place of a SeriesInstanceUID (`1.2.3_echo-2`), which no series of the archive can have. The
proxy rewrites lists and metadata for it, and asks the archive for the series that the instances really belong to.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from deployments.services import Services
from rayapp.datastore.series_facts import SeriesFacts
from rayapp.datastore.series_parts import PARTS, SEPARATOR, part_of, recorded_images, series_of
from rayapp.errors import ArchiveAway, NotFound, Unreadable
from rayapp.protocol import checked_name

_SERIES, _INSTANCE, _DESCRIPTION, _COUNT = "0020000E", "00080018", "0008103E", "00201209"
_ASKED = re.compile(rb"(?<=SeriesInstanceUID=)[^&]+|(?<=0020000E=)[^&]+", re.IGNORECASE)
Json = dict[str, Any]


class Resource:
    """A DICOMweb path: what it asks for, and the archive's own path of it.

    Attributes:
        path: as the archive knows it.
        image_id: of the series or volume that it lies in; "" if it names none.
        is_part: True if the image id is that of a volume.
        lists_series: True for the list of a study's series.
        lists_instances: True for instances of a series, or their metadata.
    """

    def __init__(self, path: str) -> None:
        """Parse a path below `/proxy/dicom/`. Raises NotFound for what no volume has."""
        pieces = path.rstrip("/").split("/")
        below = pieces[1:] if pieces[0] in ("qido", "wado", "stow") else pieces
        of_series = len(below) > 3 and below[0] == "studies" and below[2] == "series"
        self.lists_series = below[:1] == ["studies"] and below[2:] == ["series"]
        self.image_id = below[3] if of_series else ""
        self.is_part = SEPARATOR in self.image_id
        self.lists_instances = of_series and below[4:] in (["instances"], ["metadata"])
        if self.is_part:
            if below[4:] == []:
                raise NotFound("one volume of a series is not retrieved as DICOM: retrieve the series")
            pieces[len(pieces) - len(below) + 3] = series_of(self.image_id)
            path = "/".join(pieces)
        self.path = path


def own_query(query: bytes) -> tuple[bytes, set[str]]:
    """A query as the archive understands it, and the ids of the volumes that it asks for."""
    asked = {uid for match in _ASKED.finditer(query) for uid in re.split(r",|%2C|\\|%5C", match[0].decode("latin-1"))}
    own = _ASKED.sub(lambda match: re.sub(rb"_[^,%\\]*", b"", match[0]), query)
    return own, {uid for uid in asked if SEPARATOR in uid}


async def shares_its_series(services: Services, image_id: str) -> bool:
    """True if the image is one of several volumes of its series."""
    folder = services.settings.studies / ".rayapp" / PARTS
    images = await asyncio.to_thread(recorded_images, folder, series_of(image_id))
    return image_id in images and len(images) > 1


async def with_parts(services: Services, listed: Sequence[Json], asked: Collection[str]) -> list[Json]:
    """The list of a study's series, with each volume in place of its series once that was opened.

    Args:
        services: the server's.
        listed: the archive's list, in DICOM JSON.
        asked: ids of the only volumes to list; all if empty.
    """
    return await asyncio.to_thread(lambda: list(_with_parts(services, listed, asked)))


def _with_parts(services: Services, listed: Iterable[Json], asked: Collection[str]) -> Iterable[Json]:
    folder = services.settings.studies / ".rayapp" / PARTS
    for item in listed:
        series = _text(item, _SERIES)
        for image_id in recorded_images(folder, series):
            if image_id == series and not asked:
                yield item
            elif image_id != series and (not asked or image_id in asked):
                kept = {tag: value for tag, value in item.items() if tag != _COUNT}
                yield kept | _named(image_id) | _description(item, image_id)


async def instances_of(services: Services, listed: Sequence[Json], image_id: str) -> list[Json]:
    """Those of a series' instances that are slices of one of its volumes, as instances of that volume's series.

    Raises:
        NotFound, ArchiveAway, Busy: of the datastore.
        Unreadable: if the volume is none.
    """
    record = await services.datastore.image(checked_name(image_id, "image"))
    facts = await asyncio.to_thread(SeriesFacts.beside, record.path)
    if facts is None or not facts.instances:
        raise Unreadable("the slices of this volume of the series are not known: open it again")
    held = set(facts.instances)
    return [item | _named(image_id) | _description(item, image_id) for item in listed if _text(item, _INSTANCE) in held]


def decoded(body: bytes) -> list[Json]:
    """The items of a DICOM JSON response. Raises ArchiveAway if it is none."""
    try:
        items = json.loads(body)
    except ValueError:
        items = None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ArchiveAway("the DICOM archive's answer is not valid DICOMweb (JSON): check the address")
    return items


def encoded(items: Sequence[Json]) -> bytes:
    """The body of a DICOM JSON response."""
    return json.dumps(items).encode()


def _named(image_id: str) -> Json:
    return {_SERIES: {"vr": "UI", "Value": [image_id]}}


def _description(item: Json, image_id: str) -> Json:
    return {_DESCRIPTION: {"vr": "LO", "Value": [f"{_text(item, _DESCRIPTION)} {part_of(image_id)}".strip()]}}


def _text(item: Json, tag: str) -> str:
    return str((item.get(tag, {}).get("Value") or [""])[0])
