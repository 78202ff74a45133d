"""Requirements: the packages that an app needs beyond the server's, in an environment of the app's own.

`requirements.txt` beside the app's main.py is installed once, into the workspace, on top of what the server's own
interpreter has: what is there already is used, what is missing or of another version is added. Whatever runs the app's
code (the models' owner, the jobs' queue, replicas, trainings, scorers) is started with that environment's interpreter,
as Ray's `py_executable`; the gateway and the datastore keep the server's. On a cluster the workspace lies on
storage that all nodes mount.

(Ray's own `pip` environments would copy the whole of the server's environment, gigabytes of it, onto each node.)
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from filelock import FileLock

from rayapp.config import Settings
from rayapp.errors import AppBroken

logger = logging.getLogger(__name__)

FILE = "requirements.txt"
DONE = ".installed"
INSTALL_S = 1800.0
"""How long pip may take."""


def interpreter(settings: Settings) -> Path | None:
    """The interpreter that has the app's requirements, installed now if they are not; None for an app without any.

    Raises:
        AppBroken: saying what pip said, if they cannot be installed.
    """
    app = Path(settings.app).resolve()
    wanted = app / FILE
    if not (app / "main.py").is_file() or not wanted.is_file():
        return None
    digest = hashlib.sha256(f"{sys.version}\n{sys.prefix}\n{wanted.read_text()}".encode()).hexdigest()[:16]
    root = settings.workspace / "requirements" / digest
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        if not (root / DONE).exists():
            _install(root, app)
            (root / DONE).touch()
    return root / "bin" / "python"


def _install(root: Path, app: Path) -> None:
    logger.info("installing the requirements of app %s", app.name)
    venv.create(root, symlinks=True, with_pip=False, clear=False)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(root), "platbase": str(root)}))
    # Read as a site folder, so that packages installed there for editing are found too.
    below = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (own / "rayapp_server.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in below))
    pip = [sys.executable, "-m", "pip", "--python", str(root / "bin" / "python"), "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*pip, "install", "--quiet", "--no-input", "--requirement", FILE],
            cwd=app,  # so that paths in the file are the app's
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise AppBroken(f"{FILE} of app {app.name!r} could not be installed within {INSTALL_S:.0f} s") from None
    if done.returncode:
        said = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = "; ".join(said) or done.stderr.strip()[-500:] or f"pip ended with status {done.returncode}"
        raise AppBroken(f"{FILE} of app {app.name!r} cannot be installed: {reason}")
