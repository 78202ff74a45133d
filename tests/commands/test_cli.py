"""The command line as a person types it: what it says, and with which status it ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from rich.progress import Progress
from typer import Exit

from rayapp import cli
from rayapp.client.results import InferResult
from rayapp.commands import WrongUsage, annotation, doctor, jobs
from rayapp.commands.demo import inside_liver
from rayapp.commands.server import settings
from rayapp.imaging.phantom import ORGANS, phantom
from rayapp.planner.studies import opened
from rayapp.protocol import Role
from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.cases import bad_pairs
from rayapp.training.options import Options
from rayapp.training.train_task import Pair
from rayapp.users import UserStore
from tests.conftest import make_studies
from tests.training.blobs import write_pairs

Refused = Callable[..., str]
RAYAPP = Path(sys.executable).with_name("rayapp")


def rayapp(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line, as a process of its own, to its end."""
    return subprocess.run([RAYAPP, *words], capture_output=True, text=True, timeout=60)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Type a command, in this process, and return the one line with which it was refused."""

    def typed(*words: object, status: int = 2) -> str:
        monkeypatch.setattr(sys, "argv", ["rayapp", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capfd.readouterr()
        assert (left.value.code, said.out) == (status, "")
        (line,) = said.err.splitlines()
        assert line.startswith("rayapp: ")
        return line

    return typed


def test_help_names_every_command():
    done = rayapp("--help")
    assert done.returncode == 0
    for command in ("start", "demo", "datasets", "images", "infer", "next", "replay", "doctor", "users"):
        assert f"\n  {command} " in done.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys, rayapp.cli; print([m for m in ('ray', 'torch', 'monai', 'numpy', 'aiohttp') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def heavy_after(modules: str) -> str:
    """Those of torch and MONAI that another process has imported after these modules, as a list is printed."""
    code = f"import sys, {modules}; print([m for m in ('torch', 'monai') if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout


def test_a_gateway_and_what_starts_a_server_import_no_torch():
    assert heavy_after("deployments.gateway, deployments.ingress, rayapp.launch") == "[]\n"


def test_the_owners_of_data_and_jobs_import_no_torch():
    """Each is a process of its own, and so are the scoring actors, which wait for their work without it."""
    assert heavy_after("actors.datastore, actors.models, actors.jobs, actors.scoring, rayapp.datastore.local") == "[]\n"


def test_a_replay_computes_its_scores_without_torch():
    assert heavy_after("rayapp.training.metrics, rayapp.imaging.placement, rayapp.client") == "[]\n"


def test_the_version_is_shown():
    assert rayapp("--version").stdout == "rayapp 0.1.0\n"


def test_studies_are_needed(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "--studies is required" in refused("start")


def test_a_missing_folder_is_told_by_name(refused: Refused, tmp_path: Path):
    assert f"there is no folder {tmp_path / 'none'}" in refused("start", "--studies", tmp_path / "none")


def test_a_file_is_no_studies_folder(refused: Refused, tmp_path: Path):
    file = tmp_path / "file"
    file.touch()
    assert "is not a folder" in refused("start", "--studies", file)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("mode", [0o700, 0o755], ids=["not readable", "not writable"])
def test_a_folder_that_cannot_be_read_or_written_is_refused(mode: int):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(mode)
        assert settings({"studies": folder}).studies == Path(folder)
        os.seteuid(65534)
        try:
            with pytest.raises(WrongUsage, match=r"cannot be (read|written): this server has no permission; change it"):
                settings({"studies": folder})
        finally:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--studies", "/nowhere/at/all"), "--studies: there is no folder"),
        (("--port", "70000"), "--port: Input should be less than or equal to 65535, not 70000"),
        (("--port", "x"), "--port"),
        (("--replicas", "2"), "--replicas: '2' has no ':' in it"),
        (("--replicas", "3:1"), "1 <= MIN <= MAX"),
        (("--num-cpus", "0"), "--num-cpus"),
        (("--conf", "key"), "--conf: 'key' has no '=' in it"),
        (("--auth", "magic"), "--auth: Input should be 'none', 'token' or 'oidc', not 'magic'"),
        (("--app", "nothing"), "--app: no app 'nothing'"),
        (("--labels", "liver,roi"), "'roi' is a reserved name"),
        (("--labels", "liver,background"), "'background' is a reserved name"),
        (("--labels", "liver,liver"), "'liver' is given twice"),
        (("--host", "0.0.0.0"), "without --auth token would let everyone"),
        (("--nonsense",), "No such option: --nonsense"),
    ],
)
def test_a_wrong_flag_gets_one_line_and_status_2(refused: Refused, tmp_path: Path, words: tuple[str, ...], said: str):
    assert said in refused("start", "--studies", tmp_path, *words)


def test_a_port_in_use_is_told_before_anything_starts(refused: Refused, tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused("start", "--studies", tmp_path, "--port", port)
    assert f"--port {port}: Address already in use" in said


def test_flags_come_before_the_environment_and_that_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rayapp.toml").write_text(f'studies = "{tmp_path}"\nport = 8101\nmax_queued = 7\nsession_expiry = 61\n')
    monkeypatch.setenv("RAYAPP_PORT", "8102")
    monkeypatch.setenv("RAYAPP_MAX_QUEUED", "8")
    chosen = settings({"port": 8103})
    assert (chosen.port, chosen.max_queued, chosen.session_expiry) == (8103, 8, 61)


def test_what_is_wrong_outside_the_flags_is_told_in_one_line(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rayapp.toml").write_text("prot = 1")
    assert "there is no setting 'prot'" in refused("start", "--studies", tmp_path)
    (tmp_path / "rayapp.toml").write_text("port = ")
    assert "rayapp.toml" in refused("start", "--studies", tmp_path)
    (tmp_path / "rayapp.toml").unlink()
    monkeypatch.setenv("RAYAPP_MODELS", "a,b")
    assert "environment" in refused("start", "--studies", tmp_path)


def test_paths_are_made_absolute_and_each_studies_folder_has_a_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in ("a", "b", "app"):
        (tmp_path / name).mkdir()
    (tmp_path / "app" / "main.py").touch()
    first, second = (settings({"studies": name, "app": "app"}) for name in ("a", "b"))
    assert first.studies == tmp_path / "a"
    assert first.app == str(tmp_path / "app")
    assert first.workspace.parent == tmp_path / "data" / "rayapp"
    assert first.workspace != second.workspace
    assert settings({"studies": "a", "workspace": "w"}).workspace == tmp_path / "w"


def test_no_server_is_one_line_and_status_1(refused: Refused):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for words in (("next", "first"), ("infer", "deepedit", "image")):
            assert f"no answer from {url}" in refused(*words, "--server", url, status=1)
    assert "must begin with http" in refused("next", "first", "--server", "localhost", status=1)


def test_users_are_added_listed_and_revoked(refused: Refused, tmp_path: Path):
    at = ("--studies", str(tmp_path), "--workspace", str(tmp_path / "workspace"))
    token = rayapp("users", "add", "anna", "--role", "reviewer", *at).stdout.strip()
    user = UserStore.of(tmp_path / "workspace").authenticate(token)
    assert user is not None
    assert (user.name, user.role) == ("anna", Role.REVIEWER)
    assert "anna" in refused("users", "add", "anna", *at, status=1)
    assert "reviewer" in rayapp("users", "list", *at).stdout
    assert rayapp("users", "revoke", "anna", *at).returncode == 0
    assert UserStore.of(tmp_path / "workspace").authenticate(token) is None
    assert "'anna'" in refused("users", "revoke", "anna", *at, status=1)


def test_clicks_are_added_under_their_labels_names():
    params = annotation.request_params('{"liver": [[1, 2, 3]], "label": "liver"}', ["liver=4,5,6", "a=b=7,8,9"])
    assert params == {"liver": [[1, 2, 3], [4, 5, 6]], "label": "liver", "a=b": [[7, 8, 9]]}


@pytest.mark.parametrize(
    "words",
    [
        ("--output", "mask.png"),
        ("--click", "liver"),
        ("--click", "liver=1,2"),
        ("--click", "=1,2,3"),
        ("--params", "{"),
        ("--params", "[]"),
    ],
)
def test_an_inference_that_makes_no_sense_is_refused(refused: Refused, words: tuple[str, str]):
    assert words[0] in refused("infer", "deepedit", "image", *words)


def test_doctor_shows_versions_hardware_and_flags():
    done = rayapp("doctor")
    for word in ("Python", "ray", "torch", "monai", "cores", "GPUs", "networks run on", "--replicas 1:"):
        assert word in done.stdout
    assert done.returncode == (1 if done.stderr else 0)


def test_doctor_plans_for_the_studies_it_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with contextlib.suppress(Exit):  # for what is amiss on this machine
        doctor.doctor(make_studies(tmp_path / "studies", 1))
    shown = capsys.readouterr().out
    for word in ("1, 0 with labels", "segmentation", "deepedit", "deepgrow_2d", "deepgrow_3d", "batch size", "UNet"):
        assert word in shown


def test_doctor_refuses_a_folder_that_is_not_there(refused: Refused, tmp_path: Path):
    assert "no folder" in refused("doctor", "--studies", tmp_path / "absent")


def test_doctor_gives_the_reasons_where_no_image_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "um.nrrd").write_bytes(b"NRRD0004\ntype: short\ncut")
    with pytest.raises(Exit):
        doctor.doctor(tmp_path)
    told = capsys.readouterr()
    assert "um.nrrd" in told.out
    assert "recommended flags" in told.out
    assert "--studies: none of the sampled images could be read" in told.err


def test_doctor_finds_the_pairs_that_a_training_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Among them values that are none of the server's labels, which are taken from the flag or the environment."""
    studies, found = tmp_path / "studies", {}
    (studies / "labels" / "final").mkdir(parents=True)
    for number, pair in enumerate(write_pairs(tmp_path / "pairs", 4)):
        image, label = studies / pair.image.name, studies / "labels" / "final" / pair.image.name
        shutil.copy(pair.image, image)
        image_of, array = nibabel.load(pair.label), nibabel.load(pair.label).get_fdata().astype(np.uint8)
        affine = image_of.affine + np.array([[0, 0, 0, 3.0 * (number == 1)]] * 3 + [[0] * 4])
        nibabel.Nifti1Image(array * (4 if number == 2 else 1), affine).to_filename(label)
        if number == 0:
            label.write_bytes(label.read_bytes()[:-40])
        found[image.name.split(".")[0]] = Pair(image=image, label=label)
    trainer = BasicTrainTask(labels={"ball": 1, "rod": 2}, description="", options=Options())
    refused = bad_pairs(list(found.values()), trainer.check)
    assert list(refused) == ["blob_00", "blob_01", "blob_02"]
    with opened(studies) as read, Progress(disable=True) as progress:
        assert doctor.refused_by_training(read, ("ball", "rod"), progress) == refused
        assert list(doctor.refused_by_training(read, (), progress)) == ["blob_00", "blob_01"]
    with contextlib.suppress(Exit):
        doctor.doctor(studies, every=True, labels="ball,rod")
    told = capsys.readouterr().out
    assert all(name in told for name in refused)
    assert "blob_03" not in told


def test_doctor_reads_labels_only_where_it_reads_all(refused: Refused, tmp_path: Path):
    assert "--labels: needs --all" in refused("doctor", "--studies", tmp_path, "--labels", "liver")


def test_doctor_tells_a_problem_that_many_files_share_once():
    many = {f"old/{number}.dcm": "deflated" for number in range(20)}
    assert list(doctor.grouped({**many, "a.nii": "empty", "b.nii": "empty", "1.dcm": "deflated"})) == [
        ("old/0.dcm and 19 others there", "deflated"),
        ("a.nii", "empty"),
        ("b.nii", "empty"),
        ("1.dcm", "deflated"),
    ]


def test_doctor_names_what_is_amiss():
    gib = 1 << 30
    assert doctor.problems(8 * gib, 4 * gib, 100 * gib, ["segmentation"]) == []
    for said, problem in zip(
        ("2.0 GiB of memory", "--shm-size", "free disk", "make weights"),
        doctor.problems(2 * gib, gib // 16, gib, []),
        strict=True,
    ):
        assert said in problem


def test_an_unknown_data_set_is_answered_with_the_known_ones(refused: Refused):
    assert "Task09_Spleen" in refused("datasets", "download", "Task99_Nose", status=1)


def test_the_data_sets_are_listed():
    done = rayapp("datasets", "list")
    assert done.returncode == 0
    assert "Task04_Hippocampus" in done.stdout


def test_the_demos_click_lies_in_the_liver():
    i, j, k = map(int, inside_liver(3).split(","))
    assert phantom(3)[1].array[i, j, k] == ORGANS["liver"]


def test_options_of_a_training_are_json_where_they_can_be_and_else_text():
    options = ["max_epochs=3", "guard=false", "note=a=b", "network=UNet", "roi=[1, 2]", "rate=1e-3"]
    assert jobs.values(options) == {
        "max_epochs": 3,
        "guard": False,
        "note": "a=b",
        "network": "UNet",
        "roi": [1, 2],
        "rate": 0.001,
    }
    for wrong in ("max_epochs", "=3"):
        with pytest.raises(WrongUsage, match="KEY=VALUE"):
            jobs.values([wrong])


@pytest.mark.parametrize(
    ("names", "shown"),
    [({"background": 0, "liver": 2}, {"liver": 2}), ({}, {"structure": 1}), ({"tumour": 1}, {"tumour": 1})],
)
def test_a_structure_without_a_name_is_shown_too(names: dict[str, int], shown: dict[str, int]) -> None:
    result = InferResult(params={"label_names": names})
    assert annotation._label_values(result) == shown
