"""The spread of a training over a cluster."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from actors import trainer
from actors.placement import node_of
from actors.run import Run
from actors.trainer import scaling
from rayapp.config import Settings
from rayapp.errors import BadRequest
from rayapp.planner.shares import shares
from rayapp.training.train_task import TrainRequest


def asked_on(cluster):
    """What a training worker asks for on a node with these resources."""
    return shares([node_of(cluster)]).training


@pytest.mark.parametrize(
    ("params", "cluster", "workers", "gpu"),
    [
        ({}, {"CPU": 4.0}, 1, False),
        ({"workers": 0}, {"CPU": 4.0}, 1, False),
        ({"workers": 3}, {"CPU": 4.0}, (1, 3), False),
        ({}, {"CPU": 4.0, "GPU": 1.0}, 1, True),
        ({}, {"CPU": 64.0, "GPU": 8.0}, (1, 8), True),
        ({"workers": "2"}, {"CPU": 64.0, "GPU": 8.0}, (1, 2), True),
    ],
)
def test_workers_are_as_many_as_asked_for_or_as_there_are_gpus(params, cluster, workers, gpu):
    worker = asked_on(cluster)
    found = scaling(params, worker, cluster)
    assert (found.num_workers, found.use_gpu) == (workers, gpu)
    assert found.resources_per_worker == worker


def test_two_workers_never_meet_on_a_gpu_and_leave_room_for_clicks():
    cluster = {"CPU": 8.0, "GPU": 2.0}
    share = scaling({}, asked_on(cluster), cluster).resources_per_worker["GPU"]
    assert 0.5 < share < 1


class Host:
    """A worker of Ray Train, without Ray."""

    def __init__(self, run: Run) -> None:
        self.rank = RANK.get(run.job_id, 0)

    def alone(self):
        return contextlib.nullcontext()

    def began(self):
        pass


RANK = {"first": 0, "second": 1}


def test_a_request_that_cannot_be_trained_is_returned_by_rank_0_so_that_ray_does_not_try_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for name in ("run_in_idle_time", "share_cores", "pause_between_layers"):
        monkeypatch.setattr(trainer, name, lambda: None)
    monkeypatch.setattr(trainer, "RayHost", Host)

    def work(job: str, model: str = "bright"):
        request = TrainRequest(model=model, pairs=[], params={"fault": "refuse"}, folder=tmp_path)
        return trainer.work(
            {"run": Run(job_id=job, settings=settings, request=request, checkpoints=tmp_path, jobs=None)}
        )

    refused = work("first")
    assert isinstance(refused, BadRequest)
    assert refused.detail == "this cannot be trained with"
    assert "nothing" in work("first", model="nothing").detail
    with pytest.raises(BadRequest, match="cannot be trained with"):
        work("second")
