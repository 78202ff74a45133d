"""Export a training's checkpoint as weights that ship: `python -m rayapp.training.synthetic.export FOLDER TARGET`.

TARGET.safetensors holds the averaged network as float16, TARGET.json its card.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from rayapp import __version__
from rayapp.models.networks import save_weights
from rayapp.models.promptable import Promptable

DESCRIPTION = "Any structure, from the first click, stroke, curve or box"


def export(folder: Path, target: Path) -> dict[str, Any]:
    """Write weights and card of the checkpoint in a folder. Returns the card."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    network = {"dimensions": 3, "widths": state["widths"], "tail": state["tail"]}
    trained = Promptable(**network)
    trained.load_state_dict(state["average"])
    save_weights(trained, target.with_suffix(".safetensors"))
    card = {
        "labels": {},
        "network": {"name": Promptable.__name__, **network},
        "description": DESCRIPTION,
        "license": "Apache-2.0",
        "code": f"rayapp {__version__}",
        "training": {
            "data": "random scenes (rayapp.training.synthetic); no image of anybody",
            "samples": state["samples"],
            "steps": state["steps"],
            "processor_hours": round(state["cpu"] / 3600, 2),
            "seed": state["seed"],
            "validation": validations(folder),
        },
    }
    target.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def validations(folder: Path) -> list[dict[str, Any]]:
    """Validations on real structures in the log, with the number of samples seen by then."""
    log = folder / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [line for line in lines if "click" in line]


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the training")
    parser.add_argument("target", type=Path, help="without suffix")
    options = parser.parse_args()
    print(json.dumps(export(options.folder, options.target), indent=2))


if __name__ == "__main__":
    main()
