"""The bundle app: bundles from a folder or an address, beside broken ones, and trained further."""

import hashlib
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rayapp.app.app_loader import app_class
from rayapp.apps.bundle.main import BundleApp
from rayapp.config import Settings
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import BadRequest, ModelBroken, Unreadable
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts
from rayapp.models import zoo
from rayapp.serving.catalogue import Catalogue
from tests.inference import zoo as made_zoo


def a_bundle(root, at=0.2):
    return made_zoo.bundle(
        root,
        network=made_zoo.BRIGHTER,
        pre=made_zoo.compose(made_zoo.LOAD, made_zoo.ORIENT),
        post=made_zoo.compose(made_zoo.ARGMAX, made_zoo.SAVE),
        weights=made_zoo.threshold(at),
    )


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "studies").mkdir()
    nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)).to_filename(tmp_path / "studies" / "ct.nii.gz")
    conf = {"bundles": str(tmp_path / "bundles")}
    return Settings(studies=tmp_path / "studies", workspace=tmp_path / "ws", app="bundle", conf=conf)


@pytest.fixture
def store(settings):
    store = LocalDatastore(settings.studies, watch=False)
    yield store
    store.close()


def test_all_bundles_of_a_folder_are_served_and_a_broken_one_is_named(settings, store, tmp_path):
    a_bundle(tmp_path / "bundles" / "spleen")
    shutil.copytree(tmp_path / "bundles" / "spleen", tmp_path / "bundles" / "torn")
    (tmp_path / "bundles" / "torn" / "models" / "model.pt").write_bytes(b"torn")
    (tmp_path / "bundles" / "notes").mkdir()
    train = {"train": {"trainer": {"max_epochs": 3}}, "validate": {"evaluator": {"_target_": "SupervisedEvaluator"}}}
    (tmp_path / "bundles" / "spleen" / "configs" / "train.json").write_text(json.dumps(train))
    described = Catalogue(settings, store).describe()
    assert set(described["models"]) == {"spleen"}
    assert described["models"]["spleen"]["labels"] == {"spleen": 1}
    assert described["trainers"]["spleen"]["config"]["max_epochs"] == 3
    assert set(described["broken_models"]) == {"torn"}
    assert "model.pt is not an intact weights file" in described["broken_models"]["torn"]


def test_a_version_takes_the_place_of_the_bundles_own_weights_and_wrong_ones_do_not(settings, store, tmp_path):
    a_bundle(tmp_path / "bundles" / "spleen")
    catalogue = Catalogue(settings, store)
    weights = tmp_path / "new.safetensors"
    save_file(made_zoo.threshold(0.6), weights)
    catalogue.publish("spleen", weights, {"labels": {"spleen": 1}}, request="1")
    task = app_class(settings).of(settings).task("spleen")
    array = made_zoo.speckled()
    labels = task.predict(task.prepare(Volume(array=array, affine=np.eye(4))), Prompts(), {}).labels
    assert (task.version, np.array_equal(labels, array[0] > 0.6)) == ("v1", True)
    save_file({"weight": torch.zeros(3)}, weights)
    with pytest.raises(Unreadable, match="does not match its network"):
        catalogue.publish("spleen", weights, {}, request="2")


@pytest.fixture
def archive(tmp_path):
    """A bundle's zip archive: its address and digest."""
    a_bundle(tmp_path / "made" / "spleen")
    path = Path(shutil.make_archive(str(tmp_path / "spleen_v0.5.6"), "zip", tmp_path / "made"))
    return path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_bundle_is_fetched_from_an_address_once_and_checked(settings, store, tmp_path, archive):
    url, digest = archive
    conf = {**settings.conf, "url.spleen": url, "sha256.spleen": digest}
    asked = settings.model_copy(update={"models": ("spleen",), "conf": conf})
    assert set(Catalogue(asked, store).describe()["models"]) == {"spleen"}
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == ["spleen"]
    Path(url.removeprefix("file://")).unlink()
    assert set(Catalogue(asked, store).describe()["models"]) == {"spleen"}


def test_another_archive_than_the_digest_says_is_not_opened(settings, store, tmp_path, archive):
    url, digest = archive
    wrong = ("0" if digest[0] != "0" else "1") + digest[1:]
    with pytest.raises(ModelBroken, match="does not match its checksum"):
        zoo.fetch("spleen", tmp_path / "bundles", url=url, sha256=wrong)
    assert list((tmp_path / "bundles").iterdir()) == []
    with pytest.raises(BadRequest, match="no valid sha256"):
        zoo.fetch("spleen", tmp_path / "bundles", url=url)
    with pytest.raises(ModelBroken, match="has no liver/configs"):
        zoo.fetch("liver", tmp_path / "bundles", url=url, sha256=digest)
    conf = {**settings.conf, "url.spleen": url, "sha256.spleen": wrong}
    described = Catalogue(settings.model_copy(update={"models": ("spleen",), "conf": conf}), store).describe()
    assert described["models"] == {}
    assert "could not be downloaded" in described["broken_models"]["spleen"]


def test_it_is_an_app_like_any_other():
    assert BundleApp.app_dir.name == "bundle"
