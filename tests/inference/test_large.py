"""A large CT in every method takes little more memory than its mask does; deepedit's is in `test_fine`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MASK = 512 * 512 * 400
METHODS = ("deepgrow_2d", "deepgrow_3d", "deepgrow_pipeline", "Forest+GraphCut", "GMM+GraphCut", "Histogram+GraphCut")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what a process took at most is asked of Linux")
@pytest.mark.parametrize("method", METHODS)
def test_a_large_ct_needs_little_more_memory_than_its_mask(method, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
    words = [sys.executable, str(HERE / "large.py"), method, str(tmp_path)]
    said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
    held, most = (int(number) for number in said.split())
    assert held < 200e6
    assert most < 2 * MASK + 250e6
