"""HAProxy's configuration: only the server's own port is open to other machines, and nobody can take all of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from ray.serve._private import haproxy_templates

from actors.haproxy import DONE, Frontend, installed, narrowed
from tests.certificates import self_signed

CONFIG = """global
    stats socket /tmp/x.sock mode 666 level admin expose-fd listeners
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8123
    default_backend none
backend none
    http-request return status 404
listen stats
    bind *:8404
    stats enable
"""
"""What Ray's template has, in short."""


def changed(folder: Path, text: str, frontend: Frontend, times: int = 1) -> str:
    binary = folder / "binary"
    binary.write_text(f'#!/bin/sh\necho "$@" > {folder / "seen"}\n')
    binary.chmod(0o700)
    config = folder / "haproxy.cfg"
    config.write_text(text)
    script = narrowed(folder, str(binary), frontend)
    assert script.stat().st_mode & 0o077 == 0
    for _ in range(times):
        subprocess.run([script, "-db", "-f", config, "-sf", "12"], check=True)
    assert (folder / "seen").read_text() == f"-db -f {config} -sf 12\n"
    return config.read_text()


def test_what_ray_writes_is_narrowed_before_haproxy_reads_it(tmp_path: Path) -> None:
    text = changed(tmp_path, haproxy_templates.HAPROXY_CONFIG_TEMPLATE, Frontend(max_connections=77), times=2)
    binds = re.findall(r"^(?:frontend|listen) (\S+)\s+bind ([^:]*):", text, re.MULTILINE)
    assert ("prometheus", "127.0.0.1") in binds
    assert ("stats", "127.0.0.1") in binds
    assert re.findall(r"mode (\d+) level admin", text) == ["600"]
    assert "local0" not in text, "requests name images, which no other program is to be told"
    assert text.count("timeout http-request 10s") == 1
    assert text.count(DONE) == 1


@pytest.mark.parametrize(
    ("host", "bound"),
    [(None, "127.0.0.1"), ("0.0.0.0", "*"), ("::", "[::]"), ("::1", "[::1]"), ("10.1.2.3", "10.1.2.3")],
)
def test_clients_connect_where_the_server_was_told_to_listen(tmp_path: Path, host: str | None, bound: str) -> None:
    frontend = Frontend(host=host, max_connections=77)
    text = changed(tmp_path, CONFIG, frontend, times=2)
    (line,) = re.findall(r"frontend http_frontend\n *bind (.*)\n", text)
    assert line == f"{bound}:8123"
    assert text.count("tcp-request connection reject if { sc0_conn_cur gt 77 }") == 1


def test_haproxy_takes_the_changed_configuration_with_a_certificate(tmp_path: Path) -> None:
    both = tmp_path / "tls.pem"
    both.write_text("".join(each.read_text() for each in self_signed(tmp_path)))
    text = changed(tmp_path, CONFIG, Frontend(host="0.0.0.0", certificate=both))
    assert f"bind *:8123 ssl crt {both}" in text
    config = tmp_path / "final.cfg"
    config.write_text(text)
    checked = subprocess.run([installed(), "-c", "-f", config], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
