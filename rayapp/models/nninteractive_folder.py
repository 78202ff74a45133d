"""NNInteractiveFolder: a model folder of nnInteractive as its authors lay it out, read but never changed.

    plans.json  dataset.json  inference_info.json (before version 2: inference_session_class.json)
    fold_<N or all>/checkpoint_final.pth  LICENSE (the first line names the licence)

Official folders have an id and lie in `~/.nninteractive/models/<id>` (or below `NNINTERACTIVE_MODEL_DIR`), where
nnInteractive's own programs keep them too. Their weights are licensed CC BY-NC-SA 4.0; rayapp ships none of them.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from rayapp.errors import ModelBroken, NotFound

CHECKPOINT = "checkpoint_final.pth"
CAPABILITIES = ("inference_info.json", "inference_session_class.json")
"""Files, newest first, one of which says what prompts the network takes."""
OFFICIAL_DATASET = "Dataset225_nnInteractiveV2"
"""Name in plans.json of the official model that was published before folders had a LICENSE."""
OFFICIAL_LICENCE = "CC BY-NC-SA 4.0"
_ID = re.compile(r"nnInteractive_[\w.\-]+")


def models_root() -> Path:
    """The folder in which nnInteractive's programs, and ours, keep official models: `<root>/models/<id>`."""
    return Path(os.environ.get("NNINTERACTIVE_MODEL_DIR") or Path.home() / ".nninteractive").expanduser()


@dataclass(frozen=True)
class NNInteractiveFolder:
    """One model folder; its name is the model's version."""

    root: Path

    @classmethod
    def find(cls, text: str) -> NNInteractiveFolder:
        """The folder that a path or an official model's id names. Nothing is downloaded.

        Raises:
            NotFound: If there is no such folder.
            ModelBroken: If files are missing from it; names them.
        """
        path = Path(text).expanduser()
        if _ID.fullmatch(text) and not path.is_dir():
            path = models_root() / "models" / text
            if not path.is_dir():
                raise NotFound(
                    f"the nnInteractive model {text!r} is not on this machine: `rayapp nninteractive download {text}` "
                    "shows its licence and fetches it"
                )
        if not path.is_dir():
            raise NotFound(f"nninteractive={text}: there is no such folder, and ids look like nnInteractive_v1.0")
        folder = cls(path.resolve())
        folder.check()
        return folder

    @property
    def name(self) -> str:
        """The folder's name, for official models their id."""
        return self.root.name

    def check(self) -> None:
        """Raise ModelBroken, naming what is missing, unless the folder has all files."""
        missing = [name for name in ("plans.json", "dataset.json") if not (self.root / name).is_file()]
        if not any((self.root / name).is_file() for name in CAPABILITIES):
            missing.append(CAPABILITIES[0])
        if missing:
            raise ModelBroken(f"{self.root} is no nnInteractive model folder: {' and '.join(missing)} missing")
        folds = [path for path in self.root.glob("fold_*") if path.is_dir()]
        if len(folds) != 1 or not (folds[0] / CHECKPOINT).is_file():
            raise ModelBroken(f"{self.root} must have one folder fold_* with {CHECKPOINT} in it")

    @property
    def licence(self) -> str:
        """The licence of the weights: the first line of LICENSE; "unknown" for a folder of unknown origin without."""
        try:
            lines = (self.root / "LICENSE").read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            plans = json.loads((self.root / "plans.json").read_text())
            return OFFICIAL_LICENCE if plans.get("dataset_name") == OFFICIAL_DATASET else "unknown"
        return next((line.strip() for line in lines if line.strip()), "unknown")
