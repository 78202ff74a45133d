"""The commands of every page, in their order, on real servers over generated torsos."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rayapp.imaging.phantom import phantom
from tests.conftest import SHAPE, Running, make_studies, started
from tests.inference import zoo
from tests.model_server import ModelServer, serving
from tests.test_docs import PAGES, ROOT, WALKTHROUGH, commands, fences

ZOO = "rayapp start --app bundle --studies studies --models spleen_ct_segmentation"
ARCHIVE = "rayapp start --studies https://pacs.example/dicom-web"
VIEWER = "rayapp ohif install"
SIMULATION = "rayapp simulate epistemic --scoring epistemic --references labels/ --validation held_out/ --out results/"
BASELINE = "rayapp simulate random --references labels/ --validation held_out/ --out results/"
NOT_RUN = {
    ZOO: "fetches from MONAI's zoo, away from this machine; tests/models/test_zoo.py fetches from a zoo of its own",
    ARCHIVE: "needs an archive; tests/contract/test_archive_server.py has one",
    VIEWER: "fetches OHIF by npm, away from this machine; make test-browser does",
    BASELINE: "trains many times, as the next",
    SIMULATION: "trains many times; tests/gateway/test_simulation.py does it small",
}
"""Commands that are only parsed (`test_docs`), and why."""
TYPED_AS = {
    "max_epochs=20": "max_epochs=1",  # minutes
    "/data/": "data/",
    "examples/": f"{ROOT}/examples/",
    "http://127.0.0.1:9000": "{model_server}",
}
"""Words that are typed differently, so that it takes minutes and stays in the test's folder."""
INSTEAD = {
    "rayapp train segmentation": "rayapp train segmentation --set max_epochs=1",
    "rayapp train deepedit": "rayapp train deepedit --set max_epochs=1",
    "rayapp infer segmentation IMAGE --picture look.png": "rayapp infer segmentation torso_0 --picture look.png",
}
"""Whole lines that are, since they leave something to who types them, or take long."""
PATIENCE_S = 400.0
"""No page says how soon a server answers, and the machine may have other work."""
ALONE = ("doctor", "users", "datasets")
"""Commands that ask no server."""


def test_what_is_not_run_is_on_a_page_and_everything_else_is():
    typed = {line for page in PAGES for line in commands(page)}
    assert {*NOT_RUN, *INSTEAD} <= typed
    assert len(typed - set(NOT_RUN)) > 30


class Typist:
    """Types lines in a folder in which everything lies that the pages speak of."""

    def __init__(self, folder: Path, stack: ExitStack, model_server: str) -> None:
        self.folder, self._stack = folder, stack
        self._open = stack.enter_context(ExitStack())
        self._model_server = model_server
        self.server: Running | None = None
        self.said: dict[str, list[str]] = {}

    def type(self, line: str) -> None:
        """One line; a server that it starts takes the place of the one before."""
        words = [self._as_typed(word) for word in shlex.split(INSTEAD.get(line, line))]
        if words[:2] == ["rayapp", "start"]:
            self._start(*words[2:])
            return
        if self.server is None and words[1] not in ALONE:
            self._start()
        env = {**os.environ, "OMP_NUM_THREADS": "1", "RAYAPP_WORKSPACE": str(self.folder / "workspace")}
        if self.server is not None:
            env["RAYAPP_SERVER"] = self.server.url
        program = {"python": sys.executable, "rayapp": str(Path(sys.executable).with_name("rayapp"))}[words[0]]
        done = subprocess.run(
            [program, *words[1:]], cwd=self.folder, env=env, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, (line, done.stdout[-2000:], done.stderr[-2000:])
        self.said.setdefault(line, []).append(done.stdout)

    def _as_typed(self, word: str) -> str:
        for said, instead in TYPED_AS.items():
            word = word.replace(said, instead.format(model_server=self._model_server))
        return word

    def _start(self, *flags: str) -> None:
        self._open.close()
        self.server = self._open.enter_context(started(self.folder, *flags, patience=PATIENCE_S))


@pytest.fixture
def typist(tmp_path):
    make_studies(tmp_path / "studies", 4)
    shutil.copytree(tmp_path / "studies", tmp_path / "data" / "liver")
    labels = tmp_path / "data" / "liver" / "labels" / "final"
    labels.mkdir(parents=True)
    for number in (2, 3):
        volume, truth = phantom(5_000_000 + number, shape=SHAPE)
        two = np.where(truth.array <= 2, truth.array, 0)  # the structures of docs/training.md are two
        nibabel.Nifti1Image(two, volume.affine).to_filename(labels / f"torso_{number}.nii.gz")
    zoo.bundle(
        tmp_path / "data" / "bundles" / "spleen_ct_segmentation",
        network=zoo.BRIGHTER,
        pre=zoo.compose(zoo.LOAD, zoo.ORIENT),
        post=zoo.compose(zoo.ARGMAX),
        weights=zoo.threshold(100.0),
    )
    listed = {"training": [{"image": "studies/torso_0.nii.gz"}], "testing": ["studies/torso_1.nii.gz"]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    for title, text in fences(WALKTHROUGH, "python"):
        if title:
            path = tmp_path / title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    with serving(ModelServer()) as model_server, ExitStack() as stack:
        yield Typist(tmp_path, stack, model_server)


def a_second_version(typist):
    """Of the segmentation, as a training would have made."""
    import requests

    assert typist.server is not None
    weights = ROOT / "rayapp" / "apps" / "radiology" / "weights" / "segmentation.safetensors"
    with weights.open("rb") as file:
        answer = requests.put(f"{typist.server.url}/model/segmentation", files={"file": file}, timeout=120)
    assert answer.status_code == 200, answer.text


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_what_a_page_says_to_type_works_in_that_order(typist, page):
    for line in commands(page):
        if line in NOT_RUN:
            continue
        if line == "rayapp models promote segmentation v2":
            a_second_version(typist)
        typist.type(line)
    if page == WALKTHROUGH:
        assert typist.said["rayapp next first"] == ["torso_0\n", "torso_2\n"]
        assert "v1" in typist.said["rayapp models list"][0]
        assert (typist.folder / "torso_2.nii.gz").exists()
        assert (typist.folder / "torso_0.png").exists()
    if page.name == "operator.md":
        assert typist.said["rayapp models promote segmentation v2"] == ["v2\n"]
        assert typist.said["rayapp models rollback segmentation"] == ["v1\n"]
    if page.name == "access.md":
        assert "anna" in typist.said["rayapp users list --studies /data/liver"][0]
    if page.name == "active_learning.md":
        assert (typist.folder / "unsure.png").exists()
    if page.name == "README.md":
        assert (typist.folder / "torso.png").exists()
