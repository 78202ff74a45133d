"""Requirements of an app: packages beyond the server's, in a virtual environment of the app's own.

`requirements.txt` beside the app's main.py is installed once, into the workspace, on top of the server's own
environment: packages that are there in a suitable version are used, others are added. All processes that run the app's
code (the models actor, the jobs actor, replicas, training and scoring workers) are started with the interpreter of that
environment, as Ray's `py_executable`. The gateway keeps the server's interpreter, and so does the datastore unless the
app brings it. On a cluster, the workspace is on storage that all nodes mount.

(Ray's own `pip` environments would copy the server's whole environment, gigabytes of it, to each node.)
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
"""Seconds that pip may take."""


def interpreter(settings: Settings) -> Path | None:
    """The interpreter with the app's requirements, which are installed if they are not yet.

    Args:
        settings: The server's settings.

    Returns:
        The interpreter's path; None for an app without requirements.

    Raises:
        AppBroken: With pip's message, if the requirements cannot be installed.
    """
    app = Path(settings.app).resolve()
    requirements = app / FILE
    if not (app / "main.py").is_file() or not requirements.is_file():
        return None
    digest = hashlib.sha256(f"{sys.version}\n{sys.prefix}\n{requirements.read_text()}".encode()).hexdigest()[:16]
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
    # Added as site directories, so that packages of the server that are installed in editable mode are found too.
    server = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (own / "rayapp_server.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in server))
    pip = [sys.executable, "-m", "pip", "--python", str(root / "bin" / "python"), "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*pip, "install", "--quiet", "--no-input", "--requirement", FILE],
            cwd=app,  # so that paths in the file are relative to the app
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise AppBroken(f"{FILE} of app {app.name!r} could not be installed within {INSTALL_S:.0f} s") from None
    if done.returncode:
        errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = "; ".join(errors) or done.stderr.strip()[-500:] or f"pip ended with status {done.returncode}"
        raise AppBroken(f"{FILE} of app {app.name!r} cannot be installed: {reason}")
