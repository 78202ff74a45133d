"""Time MONAI Label's own training. Run by MONAI Label's Python for `benchmarks.train_scaling`; see there."""

import json
import os
import sys
import time

job = json.load(sys.stdin)
sys.path.insert(0, job["app"])

import torch  # noqa: E402
from ignite.engine import Events  # noqa: E402
from lib.configs.deepedit import DeepEdit  # noqa: E402
from lib.configs.segmentation import Segmentation  # noqa: E402


class Datastore:
    """The methods of a datastore that a trainer uses."""

    def datalist(self):
        return job["pairs"]


class Clock:
    """Records when iterations end, in seconds of wall time and processor time."""

    def __init__(self):
        self.times = []

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.note)

    def note(self, _):
        self.times.append((time.monotonic(), time.process_time()))


torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
config = {"deepedit": DeepEdit, "segmentation": Segmentation}[job["model"]]()
conf = {"labels": ",".join(job["labels"]), "use_pretrained_model": "false"}
config.init(job["model"], job["folder"], conf, None)
task = config.trainer()
clock, handlers = Clock(), task.train_handlers
task.train_handlers = lambda context: [*handlers(context), clock]
request = {"device": "cpu", "max_epochs": 1, "val_split": 0.0, "dataset": "Dataset", "dataloader": "DataLoader"}
task({**request, "tracking": "None"}, Datastore())
(wall, busy), (wall_end, busy_end) = clock.times[0], clock.times[-1]
count = len(clock.times) - 1
print(
    json.dumps(
        {
            "s_per_image": (wall_end - wall) / count,
            "cpu_s_per_image": (busy_end - busy) / count,
            "threads": torch.get_num_threads(),
        }
    )
)
