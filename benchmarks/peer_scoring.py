"""MONAI Label's own epistemic scoring, timed: run by its Python, asked on stdin by `benchmarks.scoring`, which see."""

import json
import os
import sys
import time
from pathlib import Path

asked = json.load(sys.stdin)
sys.path.insert(0, asked["app"])

import torch  # noqa: E402
from lib.infers import Segmentation  # noqa: E402
from monai.networks import nets  # noqa: E402
from monailabel.tasks.scoring.epistemic import EpistemicScoring  # noqa: E402


class Datastore:
    """All that a scoring method asks of one."""

    def get_unlabeled_images(self):
        return sorted(str(path) for path in Path(asked["images"]).glob("*.nii.gz"))

    def get_image_uri(self, image):
        return image

    def get_image_info(self, _):
        return {}

    def update_image_info(self, *_):
        pass


torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
network = dict(asked["network"])
network = getattr(nets, network.pop("name"))(**network, dropout=asked["dropout"])
method = EpistemicScoring(
    model=asked["weights"],
    network=network,
    transforms=Segmentation(None, target_spacing=(asked["spacing"],) * 3).pre_transforms(),
    roi_size=asked["roi_size"],
    num_samples=asked["samples"],
)
datastore = Datastore()
began = time.perf_counter()
method({}, datastore)
print(json.dumps({"images_per_s": len(datastore.get_unlabeled_images()) / (time.perf_counter() - began)}))
