"""Several workers train one network: they share the cases out and end with the same weights and figures."""

import json
import subprocess
import sys
from pathlib import Path

from tests.training.blobs import write_pairs

WORKER = Path(__file__).with_name("worker.py")


def test_two_workers_train_one_network(tmp_path):
    write_pairs(tmp_path / "pairs", 9)
    workers = [subprocess.Popen([sys.executable, WORKER, str(rank), "2", tmp_path]) for rank in range(2)]
    try:
        assert [worker.wait(240) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2))
    assert first["sums"] == second["sums"]
    assert first["metrics"] == second["metrics"]
    assert len(first["metrics"]) == 4
    assert first["checkpoints"] == second["checkpoints"] != []
    assert first["iterations"] == second["iterations"]
    assert first["result"] is not None
    assert second["result"] is None
    assert first["design"] == second["design"]
    assert first["design"]["spacing"] == [1.0, 1.0, 1.0]
    assert first["timed"] == second["timed"] > 0
    assert first["rate"] == second["rate"] < 1e-6
    assert first["refused"] == second["refused"]
    assert "spacing" in first["refused"]
