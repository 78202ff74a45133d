"""The gateway's client of the replicas, when these die in the middle of an answer."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import RayActorError

from deployments.inference import ATTEMPTS, RoutedInference, inference_deployment
from rayapp.config import Settings
from rayapp.datastore.interfaces import ClickEvent
from rayapp.errors import Busy
from rayapp.serving.interaction import Interaction, opening_event
from rayapp.serving.messages import InferCall, InferReply, Turn


class Replicas:
    """A deployment's handle. Each attempt gets the next list of answers; None among them is the replica's death."""

    def __init__(self, *attempts: list[bytes | None]) -> None:
        self._attempts = list(attempts)
        self.calls: list[InferCall] = []
        self.stream = self

    def options(self, **_: Any) -> Replicas:
        return self

    async def remote(self, call: InferCall) -> Any:
        self.calls.append(call)
        for body in self._attempts.pop(0):
            if body is None:
                raise RayActorError
            yield InferReply(body=body, ext="", params={})


@pytest.fixture
def call() -> InferCall:
    opened = opening_event(image_id="ct_a", model="deepedit", user="ann", client_id=None, ts=0.0)
    event = ClickEvent(**{**vars(opened), "seq": 7})
    interaction = Interaction.of(event)
    prompt = interaction.event("prompt", {"clicks": {}}, request="r1", client_id=None, ts=1.0)
    return InferCall(model="deepedit", key="ct_a", turn=Turn(interaction=interaction, event=prompt, onto="held"))


async def bodies(replicas: Replicas, call: InferCall) -> list[bytes | None]:
    return [reply.body async for reply in RoutedInference(replicas).stream(call)]  # type: ignore[arg-type]


async def test_a_stream_whose_replica_dies_goes_on_elsewhere_with_whole_masks_and_the_same_prompt(call: InferCall):
    replicas = Replicas([b"coarse", None], [b"coarse again", b"fine"])
    assert await bodies(replicas, call) == [b"coarse", b"coarse again", b"fine"]
    first, second = (each.turn for each in replicas.calls)
    assert first is not None
    assert second is not None
    assert (first.onto, second.onto) == ("held", "")
    assert first.event == second.event, "it is logged once, by the id of its request"


async def test_a_stream_whose_replica_dies_before_its_first_answer_loses_nothing(call: InferCall):
    replicas = Replicas([None], [b"coarse", b"fine"])
    assert await bodies(replicas, call) == [b"coarse", b"fine"]
    assert replicas.calls[0] == replicas.calls[1]


async def test_a_stream_whose_replicas_keep_dying_is_told_to_retry(call: InferCall):
    replicas = Replicas(*[[b"coarse", None]] * ATTEMPTS)
    with pytest.raises(Busy, match="retry"):
        await bodies(replicas, call)


def test_a_replica_that_is_to_end_finishes_the_longest_answer_first(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deployments.inference.most_replicas", lambda settings, _: settings.replicas[1])
    settings = Settings(studies=tmp_path, workspace=tmp_path, max_answer=900.0, replicas=(1, 3))
    deployment = inference_deployment(settings, {"CPU": 4.0, "GPU": 0.4})
    assert deployment._deployment_config.graceful_shutdown_timeout_s > settings.max_answer
    options = deployment.ray_actor_options or {}
    assert (options["num_cpus"], options["num_gpus"]) == (4.0, 0.4)
