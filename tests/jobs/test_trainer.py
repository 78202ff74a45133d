"""The spread of a training over a cluster."""

from __future__ import annotations

import pytest

from actors.trainer import scaling


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
    found = scaling(params, cluster)
    assert (found.num_workers, found.use_gpu) == (workers, gpu)
    assert found.resources_per_worker["CPU"] == 1


def test_two_workers_never_meet_on_a_gpu_and_leave_room_for_clicks():
    share = scaling({}, {"GPU": 2.0}).resources_per_worker["GPU"]
    assert 0.5 < share < 1
