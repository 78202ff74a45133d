"""The app's catalogue and what replicas serve, on plain objects: publishing, broken files, wanted labels."""

from __future__ import annotations

import nibabel
import pytest

from rayapp.apps.radiology.main import SHIPPED, RadiologyApp
from rayapp.config import Settings
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import NotFound, Unreadable
from rayapp.imaging.phantom import phantom
from rayapp.inference.network import network
from rayapp.models.store import ModelStore
from rayapp.protocol import Output
from rayapp.serving.catalogue import Catalogue
from rayapp.serving.messages import InferCall
from rayapp.serving.service import InferenceService
from tests.inference import near_and_bright

NETWORKS = {"deepedit", "segmentation", "deepgrow_2d", "deepgrow_3d"}
SCRIBBLES = {"Histogram+GraphCut", "GMM+GraphCut", "Forest+GraphCut", "ClosedCurves+GraphCut"}
REFINEMENTS = {"Segmentation+GraphCut", "DeepEdit+GraphCut"}
WEIGHTS = SHIPPED / "segmentation.safetensors"


@pytest.fixture
def settings(tmp_path):
    studies = tmp_path / "studies"
    studies.mkdir()
    volume, _ = phantom(9, shape=(40, 36, 32))
    nibabel.Nifti1Image(volume.array[0], volume.affine).to_filename(studies / "ct.nii.gz")
    return Settings(studies=studies, workspace=tmp_path / "ws")


@pytest.fixture
def datastore(settings):
    store = LocalDatastore(settings.studies, watch=False)
    yield store
    store.close()


@pytest.fixture
def catalogue(settings, datastore):
    return Catalogue(settings, datastore)


def test_the_shipped_models_serve_at_once(catalogue):
    described = catalogue.describe()
    assert set(described["models"]) == {*NETWORKS, *SCRIBBLES, *REFINEMENTS}
    assert described["broken_models"] == {}
    assert "config" not in described
    assert "background" not in described["models"]["segmentation"]["labels"]


def test_label_values_are_contiguous(catalogue):
    models = catalogue.describe()["models"]
    assert {"segmentation", "deepedit"} <= set(models)
    for model in models.values():
        values = sorted(value for value in model["labels"].values() if value)
        assert values == list(range(1, len(values) + 1))


def test_models_of_other_labels_do_not_serve(settings, datastore):
    other = Catalogue(settings.model_copy(update={"labels": ("hippocampus",)}), datastore)
    assert set(other.describe()["models"]) == {"deepgrow_2d", "deepgrow_3d", *SCRIBBLES}  # which are of any structure


def test_what_no_version_serves_for_the_wanted_labels_can_still_be_trained(settings, datastore):
    models = ("segmentation", "deepedit", "deepgrow_2d")
    wanted = settings.model_copy(update={"labels": ("tail", "head"), "models": models})
    described = Catalogue(wanted, datastore).describe()
    assert (described["models"], described["broken_models"]) == ({}, {})
    assert set(described["trainers"]) == set(models)
    assert described["trainers"]["deepedit"]["labels"] == {"tail": 1, "head": 2}
    assert described["trainers"]["deepgrow_2d"]["labels"] == {"foreground": 1}
    assert described["trainers"]["segmentation"]["config"]["max_epochs"] == 0  # as many steps as suit the device
    assert described["trainers"]["deepedit"]["config"]["click_noise"] == 0.0


def test_wanted_labels_are_published_before_a_version_has_them_and_misfits_are_named(settings, datastore):
    Catalogue(settings, datastore)  # publishes what ships
    wanted = settings.model_copy(update={"labels": ("tail", "head")})
    described = Catalogue(wanted, datastore).describe()
    assert described["labels"][:2] == ["tail", "head"]
    assert set(described["broken_models"]) == {"segmentation", "deepedit"}
    assert "v1 in production was trained for" in described["broken_models"]["deepedit"]
    assert "--labels are tail, head" in described["broken_models"]["deepedit"]


def test_deepgrow_serves_the_version_published_last_whatever_labels_are_wanted(settings, datastore, tmp_path):
    wanted = settings.model_copy(update={"labels": ("hippocampus",)})
    catalogue = Catalogue(wanted, datastore)
    before = catalogue.describe()["models"]
    assert (before["deepgrow_2d"]["version"], before["deepgrow_2d"]["dimension"]) == ("v1", 2)  # by the 3D network
    assert before["deepgrow_3d"]["version"] == "v1"
    for dimensions in (2, 3):
        made = near_and_bright.version(tmp_path, dimensions)
        catalogue.publish(made.name, made.weights, made.card, request=made.name)
        model = catalogue.describe()["models"][made.name]
        assert (model["type"], model["labels"], model["dimension"]) == ("deepgrow", {}, dimensions)
    described = catalogue.describe()
    assert set(described["models"]) == {"deepgrow_2d", "deepgrow_3d", "deepgrow_pipeline", *SCRIBBLES}
    assert (described["labels"], described["broken_models"]) == (["hippocampus"], {})


def test_a_model_that_is_made_of_others_is_renewed_with_any_of_them(settings, tmp_path):
    models = ModelStore.of(settings)
    for dimensions in (2, 3):
        made = near_and_bright.version(tmp_path, dimensions)
        models.publish(made.name, made.weights, made.card)
    app = RadiologyApp(settings=settings, models=models)
    before = app.infers["deepgrow_pipeline"]
    assert app.renewed().infers["deepgrow_pipeline"] is before
    again = models.publish(made.name, made.weights, {**made.card, "spacing": 2})
    after = app.renewed().infers["deepgrow_pipeline"]
    assert after is not before
    assert after.version.endswith(f"+{again.version}")


def test_a_publication_loads_the_weights_once_also_for_the_models_made_of_them(catalogue, monkeypatch):
    loaded = []
    load_weights = network.load_weights
    monkeypatch.setattr(network, "load_weights", lambda made, path: loaded.append(path) or load_weights(made, path))
    card = catalogue.production("segmentation").card
    version = catalogue.publish("segmentation", WEIGHTS, card, request="once")
    assert catalogue.production("segmentation") == version
    assert loaded == [WEIGHTS]
    catalogue.promote("segmentation", "v1")
    assert len(loaded) == 2


def test_scribbles_are_what_slicers_panel_looks_for(catalogue):
    described = catalogue.describe()["models"]
    for name in SCRIBBLES | REFINEMENTS:
        assert described[name]["type"] == "scribbles"
        assert described[name]["config"]["optimiser"] == ["graph cut", "random walk"]
        assert described[name]["labels"] is not None
    assert all(described[name]["labels"] == {} for name in SCRIBBLES)
    assert "background" not in described["DeepEdit+GraphCut"]["labels"]


def test_a_refinement_needs_its_network_and_scribbles_their_flag(settings, datastore):
    without = Catalogue(settings.model_copy(update={"models": ("segmentation",)}), datastore)
    assert set(without.describe()["models"]) == {"segmentation"}
    alone = Catalogue(settings.model_copy(update={"models": ("segmentation", "scribbles")}), datastore)
    assert set(alone.describe()["models"]) == {"segmentation", "Segmentation+GraphCut", *SCRIBBLES}
    assert alone.describe()["broken_models"] == {}


def test_a_broken_model_is_named_and_the_others_serve(settings, datastore, catalogue):
    catalogue.production("deepedit").weights.write_bytes(b"no tensors")
    described = Catalogue(settings, datastore).describe()
    served = {"segmentation", "deepgrow_2d", "deepgrow_3d", "Segmentation+GraphCut"}
    assert set(described["models"]) == {*served, *SCRIBBLES}
    assert set(described["broken_models"]) == {"deepedit", "DeepEdit+GraphCut"}


def test_a_published_version_is_served_by_a_running_replica(settings, datastore, catalogue):
    import asyncio

    from deployments.clients import DatastoreClient

    async def story():
        app = RadiologyApp(settings=settings, models=ModelStore.of(settings))
        service = InferenceService(settings=settings, app=app, images=DatastoreClient(datastore))
        call = InferCall(model="segmentation", key="ct", output=Output.JSON)
        before = (await service.infer(call)).params["model_version"]
        catalogue.upload("segmentation", WEIGHTS, {}, request="1")
        after = before
        async with asyncio.timeout(30):
            while after == before:  # the old version answers until the new one is warm
                after = (await service.infer(call)).params["model_version"]
        catalogue.retire("segmentation")
        with pytest.raises(NotFound):
            await service.infer(call)
        service.close()
        return before, after

    assert asyncio.run(story()) == ("v1", "v2")


def test_weights_of_another_network_are_refused_and_the_old_version_serves_on(catalogue):
    with pytest.raises(Unreadable):
        catalogue.upload("deepedit", WEIGHTS, {}, request="1")
    assert catalogue.production("deepedit").version == "v1"
    assert "deepedit" in catalogue.describe()["models"]


def test_next_hands_out_every_image_and_then_none(catalogue, datastore, tmp_path):
    given = catalogue.next_image("first", {"client_id": "slicer"})
    assert (given["id"], given["name"]) == ("ct", "ct.nii.gz")
    assert datastore.image("ct").info["strategy"]["first"]["client_id"] == "slicer"
    staged = datastore.stage(".nii.gz")
    staged.write_bytes(b"label")
    from rayapp.datastore.interfaces import Author

    datastore.save_label("ct", "final", staged, ".nii.gz", info={}, author=Author())
    assert catalogue.next_image("first", {}) == {}
    assert catalogue.next_image("random", {}) == {}


def test_an_unknown_strategy_is_named(catalogue):
    with pytest.raises(NotFound, match="random"):
        catalogue.next_image("clever", {})
