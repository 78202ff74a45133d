"""Time MONAI Label's own epistemic scoring. Run by MONAI Label's Python for `benchmarks.scoring`; see there."""

import json
import os
import sys
import time
from pathlib import Path

request = json.load(sys.stdin)
sys.path.insert(0, request["app"])

import torch  # noqa: E402
from lib.infers import Segmentation  # noqa: E402
from monai.networks import nets  # noqa: E402
from monailabel.tasks.scoring.epistemic import EpistemicScoring  # noqa: E402


class Datastore:
    """The methods of a datastore that a scoring method uses."""

    def get_unlabeled_images(self):
        return sorted(str(path) for path in Path(request["images"]).glob("*.nii.gz"))

    def get_image_uri(self, image):
        return image

    def get_image_info(self, _):
        return {}

    def update_image_info(self, *_):
        pass


torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
network = dict(request["network"])
network = getattr(nets, network.pop("name"))(**network, dropout=request["dropout"])
method = EpistemicScoring(
    model=request["weights"],
    network=network,
    transforms=Segmentation(None, target_spacing=(request["spacing"],) * 3).pre_transforms(),
    roi_size=request["roi_size"],
    num_samples=request["samples"],
)
datastore = Datastore()
began = time.perf_counter()
method({}, datastore)
print(json.dumps({"images_per_s": len(datastore.get_unlabeled_images()) / (time.perf_counter() - began)}))
