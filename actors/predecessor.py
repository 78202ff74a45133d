"""Predecessor: actors of a server for the same studies and workspace that are on the cluster when one starts."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray._private.state import actors, jobs
from ray.actor import ActorHandle

from actors import NAMESPACE, name_of
from actors import datastore as datastores
from actors import jobs as queues
from actors import models as catalogues
from actors.ray_errors import unwrapped_errors
from rayapp.config import Settings
from rayapp.errors import RayappError

OWN = {"host", "port", "ray_address"}
"""Settings in which two starts of one server may differ."""
ANSWER_S = 30.0
"""Seconds for the actor that was found to say with which settings it was started."""
ENDING_S = 30.0
"""Seconds for actors that were killed to give their names back."""


def taken_over(settings: Settings) -> list[str]:
    """Look for actors of an earlier start, which the server takes over, if they have its settings.

    Those of a server that crashed are ended if it had other settings, or if they do not answer.

    Returns:
        Names of the actors that were ended, for people to read.

    Raises:
        RayappError: a server for these studies runs with other settings; names them.
    """
    found = {kind: handle for kind in _KINDS if (handle := _found(kind, settings)) is not None}
    if not found:
        return []
    differing = _differing(settings, found)
    if differing == "":
        return []
    if not all(_orphaned(handle) for handle in found.values()):
        raise RayappError(
            f"a server for these studies runs on this cluster with other settings ({differing}): stop it, or start "
            "with its settings"
        )
    for handle in found.values():
        ray.kill(handle)
    deadline = time.monotonic() + ENDING_S
    while any(_found(kind, settings) for kind in found) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [name_of(kind, settings) for kind in found]


_KINDS = (queues.NAME, catalogues.NAME, datastores.NAME)
"""Kinds of actors, in the order in which they are ended."""


def _found(kind: str, settings: Settings) -> ActorHandle | None:
    try:
        return ray.get_actor(name_of(kind, settings), namespace=NAMESPACE)
    except ValueError:
        return None


def _differing(settings: Settings, found: dict[str, ActorHandle]) -> str:
    """The settings that differ, for people to read; empty if none does."""
    if datastores.NAME not in found:
        return "only a part of it is left"
    try:
        with unwrapped_errors():
            running = ray.get(found[datastores.NAME].settings.remote(), timeout=ANSWER_S)
    except (ray.exceptions.RayError, RayappError) as error:
        return f"its datastore does not answer: {type(error).__name__}"
    return differences(settings, running)


def differences(settings: Settings, running: Settings) -> str:
    """The settings of a running server that a new one does not share, for people to read; empty if they are the same.

    Args:
        settings: of the server that starts.
        running: of the one that was found.
    """
    ours, theirs = settings.model_dump(mode="json", exclude=OWN), running.model_dump(mode="json", exclude=OWN)
    others = {name: value for name, value in theirs.items() if value != ours[name]}
    return ", ".join(f"{name} {value!r} and not {ours[name]!r}" for name, value in others.items())


def _orphaned(handle: ActorHandle) -> bool:
    """True if the server that started the actor has ended without it."""
    job: Any = actors(handle._actor_id.hex()).get("JobID")
    return any(each["IsDead"] for each in jobs() if each["JobID"] == job)
