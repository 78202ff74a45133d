"""One of several workers of a run, as its own process: worker.py RANK WORLD_SIZE FOLDER."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed

from rayapp.errors import BadRequest
from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.loop import Run
from rayapp.training.options import Options
from rayapp.training.train_task import Pair, TrainRequest
from tests.training.blobs import LABELS, SMALL


class Worker:
    """A host that keeps nothing."""

    device = torch.device("cpu")

    def __init__(self, rank, world_size):
        self.rank, self.world_size = rank, world_size
        self.checkpoints = []

    def resume(self):
        return None

    def report(self, progress, *, checkpoint=None):
        if checkpoint is not None:
            self.checkpoints.append((progress.iteration, checkpoint.name))

    def stopped(self):
        return False


def main(rank, world_size, folder):
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), world_size)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    names = sorted(path.name for path in (folder / "pairs").glob("blob_??.nii.gz"))
    pairs = [Pair(image=folder / "pairs" / n, label=folder / "pairs" / n.replace(".nii", "_label.nii")) for n in names]
    host = Worker(rank, world_size)
    conf = {"spacing": 1.0 + 0.5 * rank}  # as if each looked at another machine or at other files
    task = BasicTrainTask(labels=LABELS, description="", options=Options(), conf=conf)
    request = TrainRequest(
        model="segmentation",
        pairs=pairs,
        folder=folder / "run",
        params={**SMALL, "spacing": None, "max_epochs": 4, "val_split": 0.4},
    )
    run = Run(task, request, host)
    result = run.train()
    sums = {name: float(tensor.double().sum()) for name, tensor in run._learner.network.state_dict().items()}
    told = {"sums": sums, "metrics": [row["metric"] for row in run._state.rows], "checkpoints": host.checkpoints}
    told |= {"iterations": run._state.iteration, "result": None if result is None else result.metric}
    told |= {"design": run._state.design}
    timed = Run(
        task, replace(request, folder=folder / "timed", params={**SMALL, "minutes": 0.05, "val_split": 0.4}), host
    )
    timed._state.seconds = 0.5 * rank  # as if this worker had been slower
    timed.train()
    told |= {"timed": timed._state.iteration, "rate": timed._learner.rate}
    try:
        Run(task, replace(request, params={**SMALL, "spacing": -1.0}), host)
    except BadRequest as error:
        told |= {"refused": error.detail}
    (folder / f"rank_{rank}.json").write_text(json.dumps(told))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    # Gloo's own threads may still let go of tensors while the interpreter is taken down, which aborts the process
    # (pytorch#190489). What was learnt is on disk: end as a worker of Ray Train does, without taking it down.
    os._exit(0)
