"""`rayapp plan` shows what would be trained, for this machine and for others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayapp.commands import WrongUsage
from rayapp.commands.plan import plan
from rayapp.planner.machine import GPUS, hardware, with_device
from tests.conftest import make_studies


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    return make_studies(folder / "studies", 1)


def test_each_choice_is_shown_with_its_reason(studies: Path, capsys: pytest.CaptureFixture[str]):
    plan(studies, model="segmentation", device="cpu")
    shown = " ".join(capsys.readouterr().out.split())
    for word in (
        "1 images, 0 with labels",
        "no GPU",
        "segmentation",
        "spacing",
        "roi size",
        "UNet",
        "train batch size",
    ):
        assert word in shown


def test_a_plan_for_a_gpu_that_is_not_here_is_json(studies: Path, capsys: pytest.CaptureFixture[str]):
    plan(studies, model="segmentation", device="A100-80", gpus=4, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [gpu["name"] for gpu in told["machine"]["gpus"]] == ["A100-80"] * 4
    assert told["plans"]["segmentation"]["network"]["name"] == "DynUNet"
    assert told["plans"]["segmentation"]["why"]["spacing"]
    assert told["survey"]["images"] == 1


def test_what_a_server_would_start_is_shown_with_what_it_asks_for(studies: Path, capsys: pytest.CaptureFixture[str]):
    plan(studies, model="segmentation", device="A10G", gpus=1, as_json=True)
    told = json.loads(capsys.readouterr().out)["placement"]
    assert "0.2 GPU" in told["replicas"]
    assert told["beside them: training"] == "up to 1, each 0.51 GPU"
    plan(studies, model="segmentation", device="cpu")
    shown = " ".join(capsys.readouterr().out.split())
    assert "up to 1, each 0.51 CPU" in shown
    assert "threads" in shown


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "abacus"}, "H200"),
        ({"model": "detection"}, "segmentation"),
        ({"studies": Path("nowhere")}, "no folder"),
    ],
)
def test_what_cannot_be_planned_for_is_refused_with_what_can(studies: Path, given: dict[str, object], said: str):
    with pytest.raises(WrongUsage, match=said):
        plan(**{"studies": studies, **given})  # type: ignore[arg-type]


def test_known_gpus_replace_those_of_the_machine():
    machine = hardware()
    assert with_device(machine, "cpu").gpus == ()
    for name, (memory, bf16) in GPUS.items():
        (gpu,) = with_device(machine, name).gpus
        assert (gpu.name, gpu.memory, gpu.bf16) == (name, memory << 30, bf16)
