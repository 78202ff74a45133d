"""Memory as predicted against memory as measured in a process of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.planner import Measured, measure, measure_apart, unet
from rayapp.errors import ModelBroken
from rayapp.inference.network.network import supports_bf16
from rayapp.planner.footprint import MIB, Footprint, Workload

WITHIN = 0.25


def predicted(work: Workload) -> Footprint:
    return Footprint.of(work, threads=torch.get_num_threads())


MODERATE = (
    Workload(network=unet([16, 32, 64, 128]), roi=(128, 112, 96)),
    Workload(network=unet([32, 64, 128]), roi=(96, 112, 128), precision="bfloat16"),
    Workload(
        network=unet([8, 16, 32], inputs=4, strides=[[2, 2, 1], [2, 2, 2]]), roi=(112, 128, 40), batch=2, training=True
    ),
    Workload(network=unet([16, 32, 64, 128]), roi=(96, 80, 72), batch=2, precision="bfloat16", training=True),
)


def computed(work: Workload) -> bool:
    """True if this processor would compute it so: without bfloat16 of its own none is ever asked for."""
    return work.precision == "float32" or supports_bf16(torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="memory of the CPU")
def test_tensors_take_the_memory_that_was_foretold():
    works = [work for work in MODERATE if computed(work)]
    for work, found in zip(works, measure_apart(works, exact=True, rounds=1), strict=True):
        assert predicted(work).memory == pytest.approx(found.memory, rel=WITHIN), work


LARGE = (
    Workload(network=unet([16, 32, 64, 128]), roi=(192, 160, 144), precision="bfloat16"),
    Workload(network=unet([32, 64, 128, 256]), roi=(160, 128, 144)),
    Workload(network=unet([16, 32, 64, 128]), roi=(128, 120, 112), precision="bfloat16", training=True),
    Workload(network=unet([16, 32, 64], inputs=7, outputs=6), roi=(96, 88, 80), batch=2, training=True),
)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="memory of the CPU")
@pytest.mark.parametrize("work", LARGE, ids=str)
def test_a_process_grows_by_what_was_foretold(work: Workload):
    if not computed(work):
        pytest.skip("no bfloat16 in this processor")
    (found,) = measure_apart([work], exact=False)
    assert predicted(work).resident == pytest.approx(found.memory, rel=WITHIN)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("work", LARGE, ids=str)
def test_a_gpu_allocates_what_was_foretold(work: Workload):
    found: Measured = measure(work)
    assert Footprint.of(work, threads=0).memory == pytest.approx(found.memory, rel=WITHIN)


def test_memory_grows_with_the_region_and_the_batch_and_training_needs_more():
    small = Workload(network=unet([8, 16]), roi=(32, 48, 40))
    once, twice = predicted(small), predicted(replace(small, batch=2))
    assert twice.memory == pytest.approx(2 * once.memory, rel=0.1)
    assert predicted(replace(small, roi=(64, 48, 40))).memory == pytest.approx(twice.memory, rel=0.1)
    assert predicted(replace(small, training=True)).memory > 2 * once.memory


def test_weights_gradients_and_optimiser_state_are_counted():
    wide = Workload(network=unet([64, 512]), roi=(8, 8, 8), training=True)
    weights = sum(parameter.numel() * 4 for parameter in _parameters(wide))
    assert weights > 3 * MIB
    assert 4 * weights < predicted(wide).memory < 6 * weights


def test_operations_are_counted_and_training_takes_about_three_times_as_many():
    work = Workload(network=unet([8, 16]), roi=(32, 48, 40))
    once, step = predicted(work).flops, predicted(replace(work, training=True)).flops
    assert 2.5 * once < step < 3.1 * once


def test_nothing_is_computed_and_nothing_kept():
    before = torch.random.get_rng_state()
    huge = Workload(network=unet([16, 32]), roi=(2048, 2048, 2048))
    assert predicted(huge).memory > 1 << 38
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_network_that_does_not_exist_is_named():
    with pytest.raises(ModelBroken, match="NoSuchNet"):
        predicted(Workload(network={"name": "NoSuchNet", "in_channels": 1}, roi=(8, 8, 8)))


def _parameters(work: Workload) -> list[torch.Tensor]:
    from rayapp.models.networks import build

    return list(build(work.network).parameters())
