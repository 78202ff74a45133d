"""A training over two Ray nodes; a server that leaves the cluster in the middle of one takes all of it along."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
import ray

from actors import NAMESPACE
from actors.client import BlockingActorClient
from actors.datastore import remote_datastore, start_datastore
from actors.jobs import start_jobs
from actors.models import start_models
from rayapp.config import Settings
from rayapp.datastore.job_record import State
from rayapp.protocol import JobKind
from tests.jobs.plain import APP, label_all, write_images
from tests.waiting import until

PATIENCE_S = 180


@pytest.mark.slow
def test_workers_on_both_nodes_train_one_model_and_nothing_stays_when_the_server_leaves(cluster, tmp_path: Path):
    write_images(tmp_path / "studies")
    settings = Settings(
        studies=tmp_path / "studies",
        workspace=tmp_path / "workspace",
        app=str(APP),
        models=("bright",),
        ray_address=cluster.address,
    )
    ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False)
    datastore = start_datastore(settings)
    models = start_models(settings, datastore)
    handle = start_jobs(settings, datastore, models)
    label_all(remote_datastore(datastore), settings.studies)
    jobs = BlockingActorClient(handle)

    def submit(**params: Any) -> str:
        return jobs.submit(JobKind.TRAIN, "bright", params, job_id=str(uuid.uuid4()), user="ann").id

    # Each node has one CPU, so two workers are on two nodes.
    job = submit(workers=2, max_epochs=4, pause=0.05)
    until(lambda: jobs.job(job).over, within=PATIENCE_S, every=0.2)
    done = jobs.job(job)
    assert done.state is State.DONE, done.details
    assert "2 worker(s)" in "\n".join(done.details)
    trace = (settings.workspace / "runs" / done.id / "trace.txt").read_text().splitlines()
    assert sorted({line.split()[1] for line in trace}) == ["0", "1"]

    left = submit(workers=2, max_epochs=400, pause=0.1)
    until(lambda: jobs.job(left).progress is not None, within=PATIENCE_S, every=0.2)
    for actor in (handle, models, datastore):
        ray.kill(actor)
    ray.shutdown()
    ray.init(address=cluster.address, namespace="looking", log_to_driver=False)
    until(lambda: ray.available_resources().get("CPU") == 2.0, within=PATIENCE_S, every=0.5)
