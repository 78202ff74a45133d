"""Official model folders of nnInteractive, fetched by its own package. A folder appears complete or not at all.

The weights are not rayapp's: they are licensed CC BY-NC-SA 4.0, and are downloaded only after the licence was shown.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
from pathlib import Path

from rayapp.errors import Conflict, Disabled, NotFound, RayappError

MODULE = "nnInteractive.model_management"
"""The module of the official package that downloads."""
LICENCE = """The official weights of nnInteractive (Isensee et al., 2025, DKFZ) are licensed CC BY-NC-SA 4.0:
not for commercial use, with attribution, and what is derived from them under the same licence.
https://creativecommons.org/licenses/by-nc-sa/4.0/"""


class WeightsAway(RayappError):
    """The weights could not be downloaded: try again later."""


def download(model_id: str) -> Path:
    """Fetch an official model folder to where nnInteractive's own programs look for it.

    Args:
        model_id: The model's id, such as `nnInteractive_v1.0`.

    Returns:
        The folder.

    Raises:
        Disabled: If the package is not installed.
        Conflict: If the folder exists already.
        NotFound: If there is no such model; lists those that there are.
        WeightsAway: If the download fails.
    """
    try:
        official = importlib.import_module(MODULE)
    except ImportError as error:
        raise Disabled("nnInteractive is not installed: pip install 'rayapp[nninteractive]'") from error
    models = official.get_model_root_dir() / "models"
    target = Path(models / model_id)
    if target.exists():
        raise Conflict(f"{target} exists already: remove it to download it again")
    models.mkdir(parents=True, exist_ok=True)
    # Downloaded in place, a folder that was cut short would pass for a model.
    part = Path(tempfile.mkdtemp(prefix=".download-", dir=models))
    try:
        fetched: Path = official.ensure_model_available(model_id, model_root=part)
        fetched.rename(target)
    except ValueError as error:
        raise NotFound(str(error)) from error
    except RuntimeError as error:
        raise WeightsAway(str(error)) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target
