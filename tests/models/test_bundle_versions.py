"""A bundle's stated package versions are compared with those installed; missing and older ones are named."""

import json
import logging
from importlib.metadata import version

import pytest

from rayapp.config import Settings
from rayapp.datastore.local import LocalDatastore
from rayapp.models.bundle_folder import BundleFolder
from rayapp.serving.catalogue import Catalogue
from tests.inference import zoo

MADE_WITH = {
    "monai_version": "99.1.0",
    "pytorch_version": "1.13.1",
    "numpy_version": "1.22.2",
    "required_packages_version": {"nibabel": "4.0.1", "no-such-package": "0.7.0", "scikit-image": "98.0"},
}


def a_bundle(root, **said):
    """A bundle that thresholds, and says these things of itself."""
    zoo.bundle(
        root,
        network=zoo.BRIGHTER,
        pre=zoo.compose(zoo.LOAD),
        post=zoo.compose(zoo.ARGMAX),
        weights=zoo.threshold(0.2),
    )
    metadata = root / "configs" / "metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), **said}))
    return root


def test_what_is_missing_or_older_is_named_with_what_is_wanted_and_what_is_there(tmp_path):
    lacking = BundleFolder(a_bundle(tmp_path / "spleen", **MADE_WITH), "spleen").missing_packages()
    assert lacking == (
        f"monai 99.1.0 ({version('monai')} is installed), no-such-package 0.7.0 (not installed), "
        f"scikit-image 98.0 ({version('scikit-image')} is installed)"
    )


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"monai_version": version("monai"), "pytorch_version": version("torch")},
        {"monai_version": "1.2.0rc4", "required_packages_version": {"nibabel": "nightly"}},
        {"required_packages_version": []},
    ],
)
def test_of_what_is_there_nothing_is_said(tmp_path, said):
    assert BundleFolder(a_bundle(tmp_path / "spleen", **said), "spleen").missing_packages() == ""


def test_a_bundle_that_cannot_be_made_names_them_and_the_others_serve(tmp_path, caplog):
    bundles = tmp_path / "bundles"
    a_bundle(bundles / "plain")
    a_bundle(bundles / "newer", **MADE_WITH)
    config = a_bundle(bundles / "lost", **MADE_WITH) / "configs" / "inference.json"
    without = {**json.loads(config.read_text()), "network_def": {"_target_": "no_such_package.Network"}}
    config.write_text(json.dumps(without))
    (tmp_path / "studies").mkdir()
    settings = Settings(
        studies=tmp_path / "studies", workspace=tmp_path / "ws", app="bundle", conf={"bundles": str(bundles)}
    )
    store = LocalDatastore(settings.studies, watch=False)
    try:
        with caplog.at_level(logging.WARNING):
            described = Catalogue(settings, store).describe()
    finally:
        store.close()
    assert set(described["models"]) == {"plain", "newer"}
    said = described["broken_models"]["lost"]
    assert "no_such_package" in said
    assert f"it was made with monai 99.1.0 ({version('monai')} is installed), no-such-package 0.7.0 (not" in said
    warned = [record.getMessage() for record in caplog.records if "used nevertheless" in record.getMessage()]
    assert len(warned) == 1
    assert warned[0].startswith("bundle newer was made with monai 99.1.0")
