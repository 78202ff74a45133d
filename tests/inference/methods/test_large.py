"""A large CT in every method takes little more memory than its mask does; deepedit's is in `test_click_refinement`."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MASK = 512 * 512 * 400
METHODS = ("deepgrow_2d", "deepgrow_3d", "deepgrow_pipeline", "Forest+GraphCut", "GMM+GraphCut", "Histogram+GraphCut")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what a process took at most is asked of Linux")
@pytest.mark.parametrize("method", METHODS)
def test_a_large_ct_needs_little_more_memory_than_its_mask(method, tmp_path):
    words = [sys.executable, "-m", "tests.inference.methods.large", method, str(tmp_path)]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    held, most = (int(number) for number in said.split())
    assert held < 200e6
    assert most < 2 * MASK + 250e6
