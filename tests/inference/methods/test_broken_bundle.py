"""Broken bundles are refused, naming the file."""

import json
import pickle

import pytest
import torch

from rayapp.errors import ModelBroken
from tests.inference import zoo
from tests.inference.methods.bundles import task_of


def broken(root, kind):
    good = {"network": zoo.BRIGHTER, "pre": zoo.compose(zoo.LOAD), "post": zoo.compose(zoo.ARGMAX)}
    zoo.bundle(root, **good)
    configs, model = root / "configs", root / "models" / "model.pt"
    config = json.loads((configs / "inference.json").read_text())
    if kind == "no metadata":
        (configs / "metadata.json").unlink()
    if kind == "no inference config":
        (configs / "inference.json").unlink()
    if kind == "torn config":
        (configs / "inference.json").write_text("{")
    if kind == "no labels":
        (configs / "metadata.json").write_text(json.dumps(zoo.metadata(())))
    if kind == "two-dimensional":
        flat = zoo.metadata(("background", "spleen"))
        flat["network_data_format"]["inputs"]["image"]["spatial_shape"] = [256, 256]
        (configs / "metadata.json").write_text(json.dumps(flat))
    if kind == "no weights":
        model.unlink()
    if kind == "other weights":
        torch.save(torch.nn.Conv3d(1, 3, 1).state_dict(), model)
    if kind == "code in the weights":
        torch.save({"model": torch.nn.Conv3d(1, 2, 1)}, model)
    if kind == "pickle":
        model.write_bytes(pickle.dumps({"a": 1}))
    if kind == "no tensors":
        torch.save({"epoch": 3}, model)
    if kind == "unknown transform":
        config["preprocessing"]["transforms"].append({"_target_": "NoSuchTransformd", "keys": "image"})
        (configs / "inference.json").write_text(json.dumps(config))
    if kind == "missing package":
        config["network_def"] = {"_target_": "no_such_package.Network"}
        (configs / "inference.json").write_text(json.dumps(config))


BROKEN = {
    "no metadata": "configs/metadata.json is missing",
    "no inference config": "configs/inference.json is missing",
    "torn config": "inference.json cannot be read",
    "no labels": "no channel_def",
    "two-dimensional": "it is two-dimensional, but images are volumes",
    "no weights": "it has no weights: none of models/model.pt",
    "other weights": "model.pt does not match its network",
    "code in the weights": "could run code: not loaded",
    "pickle": "model.pt",
    "no tensors": "has no state dict",
    "unknown transform": "NoSuchTransformd",
    "missing package": "no_such_package",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_bundle_says_what_is_wrong_with_which_file(tmp_path, kind):
    broken(tmp_path / "spleen", kind)
    with pytest.raises(ModelBroken, match="bundle 'spleen'") as error:
        task_of(tmp_path / "spleen")
    assert BROKEN[kind] in error.value.detail, error.value.detail
