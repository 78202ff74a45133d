"""A model that never answers holds up its process for a while, and no longer: that is replaced, and clicks go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from tests.conftest import started
from tests.waiting import until

MAIN = """
import time
import numpy as np
from rayapp.app.label_app import LabelApp
from rayapp.inference.infer_task import Prediction, TaskInfo

class Slow:
    version = "1"
    info = TaskInfo(type="segmentation", labels={"all": 1}, dimension=3, description="hangs when told to")
    def load(self): pass
    def prepare(self, volume): return volume
    def predict(self, prepared, prompts, config):
        while config.get("hang"):
            time.sleep(0.01)
        return Prediction(labels=np.ones(prepared.shape, np.uint8))

class App(LabelApp):
    def init_infers(self):
        return {"slow": Slow()}
"""


@pytest.mark.slow
def test_a_hung_model_is_told_and_its_process_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAYAPP_MAX_ANSWER", "2")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "main.py").write_text(MAIN)
    with started(tmp_path, "--app", str(tmp_path / "mine")) as server:

        def ask(params: str) -> requests.Response:
            query = {"image": "torso_0", "output": "json"}
            return requests.post(f"{server.url}/infer/slow", params=query, data={"params": params}, timeout=120)

        assert ask("{}").status_code == 200
        told = ask('{"hang": true}')
        assert told.status_code == 500
        assert "Slow (main.py, line 7), did not answer within 2 s" in told.json()["detail"]
        until(lambda: ask("{}").status_code == 200, within=120, every=1)
        assert server.stop() == 0
    assert server.survivors() == []
