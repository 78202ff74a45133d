"""Two Ray nodes on this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A CPU each; connect to its `address`. All that Ray writes lies in one folder, which is removed."""
    folder = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))  # Unix sockets must have short paths
    (folder / "ray").mkdir()  # where Ray notes the cluster's address
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "temp_dir": str(folder)}
    )
    nodes.add_node(num_cpus=1)
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
