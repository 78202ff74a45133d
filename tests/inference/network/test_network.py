"""A broken model file is named, never loaded, and never a pickle."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from rayapp.errors import ModelBroken
from rayapp.inference.network.network import Network, divisor_of, supports_bf16
from rayapp.models.networks import build, load_weights, residual_unet, save_weights

SMALL = {**residual_unet(1, 2), "channels": [4, 8], "strides": [2], "num_res_units": 0}


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "small.safetensors"
    save_weights(build(SMALL), path)
    return path


def network(weights, config=SMALL, channels=(1, 2), **more):
    return Network(name="demo", config=config, weights=weights, channels=channels, **more)


def test_weights_come_back_as_they_were_saved(weights):
    first, second = build(SMALL), build(SMALL)
    load_weights(first, weights)
    load_weights(second, weights)
    image = torch.rand(1, 1, 8, 8, 8)
    assert torch.equal(first(image), second(image))
    assert all(tensor.dtype == torch.float16 for tensor in load_file(weights).values())
    assert all(parameter.dtype == torch.float32 for parameter in first.parameters())


def test_a_network_answers_with_logits_of_its_classes(weights):
    demo = network(weights)
    assert demo(torch.rand(2, 1, 16, 8, 8)).shape == (2, 2, 16, 8, 8)
    assert demo.divisor == (2, 2, 2)


def test_strides_of_their_own_along_each_axis_need_multiples_of_their_own(tmp_path):
    uneven = {**SMALL, "channels": [4, 8, 8], "strides": [[2, 2, 1], 2]}
    save_weights(build(uneven), tmp_path / "small.safetensors")
    demo = network(tmp_path / "small.safetensors", uneven)
    assert demo.divisor == (4, 4, 2)
    assert demo(torch.rand(1, 1, 12, 8, 6)).shape == (1, 2, 12, 8, 6)
    assert divisor_of({"spatial_dims": 2, "strides": [1, 2, [2, 1]]}) == (4, 2)
    assert divisor_of({"name": "BasicUNet"}) == (16, 16, 16)


@pytest.mark.skipif(not supports_bf16(torch.device("cpu")), reason="this processor has no bfloat16")
def test_a_card_that_asks_for_float32_gets_it(weights):
    image = torch.rand(1, 1, 8, 8, 8)
    exact = build(SMALL)
    load_weights(exact, weights)
    asked, usual = network(weights, precision="float32")(image), network(weights)(image)
    with torch.no_grad():
        torch.testing.assert_close(asked, exact(image), rtol=1e-4, atol=1e-5)
    assert not torch.equal(asked, usual)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b"\xff" * 4000),
        lambda path: torch.save(build(SMALL).state_dict(), path),
        lambda path: path.unlink(),
        lambda path: save_weights(build({**SMALL, "channels": [8, 16]}), path),
        lambda path: save_file({"other": torch.zeros(3)}, path),
        lambda path: save_file({k: v * torch.nan for k, v in load_file(path).items()}, path),
    ],
    ids=["empty", "truncated", "garbage", "pickle", "missing", "other network", "other tensors", "not numbers"],
)
def test_a_broken_file_is_named_without_its_folder(weights, spoil):
    spoil(weights)
    with pytest.raises(ModelBroken) as broken:
        network(weights).load()
    assert "small.safetensors" in broken.value.detail
    assert "demo" in broken.value.detail
    assert str(weights.parent) not in broken.value.detail
    assert len(broken.value.detail) < 500


def test_a_file_that_was_mended_loads(weights):
    good = weights.read_bytes()
    weights.write_bytes(b"broken")
    demo = network(weights)
    with pytest.raises(ModelBroken):
        demo.load()
    weights.write_bytes(good)
    demo.load()


@pytest.mark.parametrize(
    "config", [{"name": "NoSuchNet"}, {"name": "torch"}, {}, {**SMALL, "kernel": 3}, {**SMALL, "strides": []}]
)
def test_a_network_that_cannot_be_built_is_refused(config):
    with pytest.raises(ModelBroken):
        build(config)


def test_channels_that_do_not_fit_the_labels_are_refused(weights):
    with pytest.raises(ModelBroken, match="out_channels"):
        network(weights, channels=(1, 5)).load()
