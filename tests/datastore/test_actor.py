"""The actor around the store: found by its name, and killed without loss."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import psutil
import pytest
import ray

from actors import NAMESPACE, OWNER, name_of, predecessor
from actors.datastore import remote_datastore, start_datastore
from actors.predecessor import taken_over
from deployments.clients import DatastoreClient
from rayapp.config import Settings
from rayapp.errors import RayappError
from tests.datastore.saves import AUTHOR, save


def test_a_kill_of_the_actor_loses_nothing_and_the_calls_cut_short_are_made_again(
    ray_node: None, studies: Path, tmp_path: Path
) -> None:
    settings = Settings(studies=studies, workspace=tmp_path / "workspace")
    handle = start_datastore(settings)
    store = remote_datastore(handle)
    store.status()
    pid = ray.get(handle.__ray_call__.remote(lambda _: os.getpid()))
    answered: list[tuple[str, str]] = []

    def saver(number: int) -> None:
        for count in range(12):
            body = f"{number}/{count}".encode()
            answered.append((f"version_{number}", save(store, tag=f"version_{number}", body=body).revision))
            if (number, count) == (0, 3):
                os.kill(pid, signal.SIGKILL)

    threads = [threading.Thread(target=saver, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(answered) == 48, "every save was answered, those cut short by the new process"
    for number in range(4):
        tag = f"version_{number}"
        assert [r.id for r in store.revisions("ct_a", tag)] == [sha for t, sha in answered if t == tag]
    assert ray.get(handle.__ray_call__.remote(lambda _: os.getpid())) != pid
    store.close()
    ray.kill(handle)
    assert not psutil.pid_exists(pid)


async def test_the_actor_is_found_by_its_name_and_answers_through_a_client(
    ray_node: None, studies: Path, tmp_path: Path
) -> None:
    settings = Settings(studies=studies, workspace=tmp_path / "workspace")
    handle = start_datastore(settings)
    client = DatastoreClient(ray.get_actor(name_of("datastore", settings), namespace=NAMESPACE))
    staged = await client.stage(".nii.gz")
    staged.write_bytes(b"x")
    record = await client.save_label("ct_a", "final", staged, ".nii.gz", info={}, author=AUTHOR)
    assert record == await client.label("ct_a", "final")
    store = remote_datastore(handle)
    store.close()
    ray.kill(handle)


def test_a_server_with_other_settings_is_refused_and_one_with_the_same_goes_on(
    ray_node: None, studies: Path, tmp_path: Path
) -> None:
    settings = Settings(studies=studies, workspace=tmp_path / "workspace", port=8001, ray_address="auto")
    other = settings.model_copy(update={"max_queued": 3})
    assert taken_over(settings) == []
    models = ray.remote(Idle).options(**OWNER, name=name_of("models", settings)).remote()
    jobs = ray.remote(Idle).options(**OWNER, name=name_of("jobs", settings)).remote()
    handle = start_datastore(settings)
    try:
        assert taken_over(settings.model_copy(update={"port": 8002})) == []
        with pytest.raises(RayappError, match=r"with other settings .*max_queued 64 and not 3"):
            taken_over(other)
        elsewhere = settings.model_copy(update={"studies": tmp_path / "others"})
        assert taken_over(elsewhere) == [], "a server for other studies has actors of its own"
    finally:
        remote_datastore(handle).close()
        for actor in (handle, models, jobs):
            ray.kill(actor)


def test_what_a_server_that_crashed_left_behind_is_ended_if_it_had_other_settings(
    ray_node: None, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(studies=studies, workspace=tmp_path / "workspace", ray_address="auto")
    start_datastore(settings)
    job = ray.get_runtime_context().get_job_id()
    monkeypatch.setattr(predecessor, "jobs", lambda: [{"JobID": job, "IsDead": True}])
    assert taken_over(settings.model_copy(update={"max_queued": 3})) == [name_of("datastore", settings)]
    with pytest.raises(ValueError, match="Failed to look up actor"):
        ray.get_actor(name_of("datastore", settings), namespace=NAMESPACE)


class Idle:
    """Stands where another of the server's actors would be."""
