"""cluster.yaml is what Ray's own check takes, and opens no port but the gateway's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from actors.node import _environment
from rayapp.config import Settings

FILE = Path(__file__).parents[2] / "cluster.yaml"


@pytest.fixture
def config():
    return yaml.safe_load(FILE.read_text())


def test_ray_accepts_it(config):
    validate_config(prepare_config(config))


def test_ray_would_refuse_an_unknown_key(config):
    with pytest.raises(jsonschema.ValidationError, match="unknown"):
        validate_config(prepare_config({**config, "unknown": 1}))


def test_only_the_gateways_port_is_open(config):
    opened = config["provider"]["security_group"]["IpPermissions"]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in opened] == [(8000, 8000)]


def test_keys_are_asked_for(config):
    (start,) = [line for line in config["head_start_ray_commands"] if "rayapp start" in line]
    assert "--auth token" in start


def test_inference_runs_on_the_workers(config):
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_every_node_has_the_settings_of_ray_that_a_server_of_its_own_would_start_it_with(config):
    said = " ".join(config["setup_commands"])
    for name, value in _environment(Settings(studies=Path("/studies"), auth="token", dashboard=True)).items():
        assert f"{name}={value}" in said
    for role in ("head", "worker"):
        (start,) = [line for line in config[f"{role}_start_ray_commands"] if "ray start" in line]
        assert ". ~/rayapp-ray.env; " in start


def test_nodes_mount_the_storage_whenever_they_start_and_not_only_when_they_are_set_up(config):
    (written,) = [line for line in config["setup_commands"] if "> ~/rayapp-mount.sh" in line]
    assert "mountpoint -q /mnt/rayapp ||" in written
    for role in ("head", "worker"):
        assert config[f"{role}_start_ray_commands"][0] == "sh ~/rayapp-mount.sh"


def test_one_worker_is_never_taken_away_and_all_disks_are_encrypted(config):
    kinds = config["available_node_types"]
    kept = [
        kind for kind in kinds.values() if kind["min_workers"] and "InstanceMarketOptions" not in kind["node_config"]
    ]
    assert len(kept) == 1
    assert any("InstanceMarketOptions" in kind["node_config"] for kind in kinds.values())
    for kind in kinds.values():
        assert all(disk["Ebs"]["Encrypted"] for disk in kind["node_config"]["BlockDeviceMappings"])


def test_the_first_administrator_is_made_once_before_the_server_starts(config, tmp_path):
    commands = config["head_start_ray_commands"]
    (made,) = [number for number, line in enumerate(commands) if "users add" in line]
    assert made < next(number for number, line in enumerate(commands) if "rayapp start" in line)
    studies, workspace = tmp_path / "studies", tmp_path / "workspace"
    studies.mkdir()
    workspace.mkdir()
    rayapp = Path(sys.executable).with_name("rayapp")
    command = commands[made].replace("/mnt/rayapp", str(tmp_path)).replace("~/rayapp-env/bin/rayapp", str(rayapp))
    first, second = (
        subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=True) for _ in range(2)
    )
    assert len(first.stdout.strip()) > 20
    assert second.stdout == ""
