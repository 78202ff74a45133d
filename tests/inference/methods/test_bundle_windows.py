"""A bundle's sliding windows can be interrupted, by a newer click or for one that passes."""

from __future__ import annotations

import pytest

from rayapp.errors import Superseded
from rayapp.inference.methods.monai_bundle import BundleTask
from rayapp.inference.network.cancellation import interruptible
from rayapp.models.bundle_folder import BundleFolder
from tests.inference import zoo
from tests.inference.methods.test_monai_bundle import ask, volumes

WINDOWS = {"_target_": "SlidingWindowInferer", "roi_size": [4, 4, 4], "sw_batch_size": 1}


def test_a_newer_click_ends_a_bundle_at_its_next_window(tmp_path):
    pre, post = zoo.compose(zoo.LOAD, zoo.ORIENT), zoo.compose(zoo.SOFTMAX, zoo.ARGMAX, zoo.SAVE)
    root = zoo.bundle(
        tmp_path / "b", network=zoo.BRIGHTER, pre=pre, post=post, weights=zoo.threshold(0.2), inferer=WINDOWS
    )
    task = BundleTask(BundleFolder(root, root.name))
    task.load()
    windows = []

    def superseded():
        windows.append(len(windows))
        if len(windows) == 4:
            raise Superseded("a newer click")

    with pytest.raises(Superseded), interruptible(superseded):
        ask(task, volumes()[0])
    assert len(windows) == 4
