"""A newer version takes over between two clicks, under a steady load of them."""

from __future__ import annotations

import asyncio
import secrets

import pytest
from safetensors.torch import load_file, save_file

from deployments.clients import DatastoreClient
from rayapp.app.app_loader import app_class
from rayapp.config import Settings
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import NotFound
from rayapp.protocol import Output
from rayapp.serving import live_versions
from rayapp.serving.catalogue import Catalogue
from rayapp.serving.messages import InferCall
from rayapp.serving.service import InferenceService
from tests.conftest import make_studies
from tests.jobs.plain import APP, write_images
from tests.waiting import until_async

ANNOTATORS = 4


class House:
    """A catalogue and a replica's service over one workspace, as two processes have them."""

    def __init__(self, studies, workspace, **settings):
        self.settings = Settings(studies=studies, workspace=workspace, **settings)
        self.store = LocalDatastore(studies, watch=False, settle=0.0)
        self.catalogue = Catalogue(self.settings, self.store)
        app = app_class(self.settings).of(self.settings)
        app.load_all()
        self.service = InferenceService(settings=self.settings, app=app, images=DatastoreClient(self.store))

    async def click(self, model, image, **params):
        call = InferCall(model=model, key=image, params=params, output=Output.BOX)
        return (await self.service.infer(call)).params

    async def served(self, model, image, version):
        """Click until that version answers."""
        async with asyncio.timeout(30):
            while (params := await self.click(model, image))["model_version"] != version:
                pass
        return params

    def publish(self, model, weights, **how):
        card = self.catalogue.production(model).card
        return self.catalogue.publish(model, weights, card, request=secrets.token_hex(8), **how).version

    def close(self):
        self.service.close()
        self.store.close()


@pytest.fixture
def house(tmp_path):
    write_images(tmp_path / "studies")
    house = House(tmp_path / "studies", tmp_path / "workspace", app=str(APP), models=("bright",))
    yield house
    house.close()


def threshold(folder, at):
    import torch

    save_file({"at": torch.tensor([at])}, folder / "at.safetensors")
    return folder / "at.safetensors"


async def test_a_replica_that_served_nobody_yet_begins_with_the_newest_version(house, tmp_path):
    house.publish("bright", threshold(tmp_path, 90.0))
    assert (await house.click("bright", "ct_0"))["at"] == 90.0


async def test_a_version_published_while_nobody_clicks_is_there_for_the_next_click(house, tmp_path):
    await house.click("bright", "ct_0")
    house.publish("bright", threshold(tmp_path, 90.0))
    await until_async(lambda: house.service._serving.app.serving["bright"] == "v2")
    assert (await house.click("bright", "ct_0"))["at"] == 90.0


async def test_rolling_back_brings_the_old_version_back(house, tmp_path):
    await house.click("bright", "ct_0")
    house.publish("bright", threshold(tmp_path, 90.0))
    await house.served("bright", "ct_0", "v2")
    house.catalogue.rollback("bright", leaving="v2")
    house.catalogue.rollback("bright", leaving="v2")  # sent again
    assert (await house.served("bright", "ct_0", "v1"))["at"] == 60.0


async def test_a_version_that_was_kept_back_does_not_serve(house, tmp_path, monkeypatch):
    monkeypatch.setattr(live_versions, "WATCH_S", 0.01)
    await house.click("bright", "ct_0")
    house.publish("bright", threshold(tmp_path, 90.0), promote=False)
    looks, models = [], house.service._serving.app.models
    serving = models.serving
    monkeypatch.setattr(models, "serving", lambda model: looks.append(model) or serving(model))
    await until_async(lambda: len(looks) >= 5)
    assert (await house.click("bright", "ct_0"))["model_version"] == "v1"


async def test_a_model_without_versions_serves_once_it_has_one(house, tmp_path):
    await house.click("bright", "ct_0")
    with pytest.raises(NotFound):
        await house.click("shiny", "ct_0")
    house.catalogue.publish("shiny", threshold(tmp_path, 90.0), {"labels": {"bright": 1}}, request="1")
    assert (await house.click("shiny", "ct_0"))["at"] == 90.0
    house.catalogue.retire("shiny")
    with pytest.raises(NotFound):
        await house.click("shiny", "ct_0")


async def test_only_the_changed_model_is_loaded_again(house, tmp_path):
    house.catalogue.publish("shiny", threshold(tmp_path, 90.0), {"labels": {"bright": 1}}, request="1")
    await house.click("shiny", "ct_0")
    kept = house.service._serving.app.infers["shiny"]
    house.publish("bright", threshold(tmp_path, 80.0))
    await house.served("bright", "ct_0", "v2")
    assert house.service._serving.app.infers["shiny"] is kept


async def test_a_swap_under_a_steady_load_of_clicks_fails_none_of_them(tmp_path):
    """With the networks that ship; `benchmarks.swap` measures the swap, and the clicks meanwhile."""
    make_studies(tmp_path / "studies", ANNOTATORS)
    house = House(tmp_path / "studies", tmp_path / "workspace", models=("segmentation",))
    weights = tmp_path / "next.safetensors"
    save_file(load_file(house.catalogue.production("segmentation").weights), weights)
    answers = [[] for _ in range(ANNOTATORS)]
    """The version that made each, by annotator."""
    ending = asyncio.Event()

    async def annotate(number):
        while not ending.is_set():
            params = await house.click("segmentation", f"torso_{number}")
            answers[number].append(params["model_version"])

    try:
        for number in range(ANNOTATORS):
            await house.click("segmentation", f"torso_{number}")
        load = [asyncio.create_task(annotate(number)) for number in range(ANNOTATORS)]
        await until_async(lambda: all(len(one) >= 3 for one in answers))
        await asyncio.to_thread(house.publish, "segmentation", weights)
        await until_async(lambda: all(one[-2:] == ["v2", "v2"] for one in answers))
        ending.set()
        await asyncio.gather(*load)
    finally:
        house.close()
    for versions in answers:
        assert versions == sorted(versions), "once the new version answers, the old one does not any more"
        assert set(versions) == {"v1", "v2"}
