"""HAProxy's configuration: only the server's own port is open to other machines."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from ray.serve._private import haproxy_templates

from actors.haproxy import narrowed


def test_what_ray_writes_is_narrowed_before_haproxy_reads_it(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    binary = tmp_path / "binary"
    binary.write_text(f'#!/bin/sh\necho "$@" > {seen}\n')
    binary.chmod(0o700)
    config = tmp_path / "haproxy.cfg"
    config.write_text(haproxy_templates.HAPROXY_CONFIG_TEMPLATE)
    script = narrowed(tmp_path, str(binary))
    subprocess.run([script, "-db", "-f", config, "-sf", "12"], check=True)
    assert seen.read_text() == f"-db -f {config} -sf 12\n"
    text = config.read_text()
    binds = re.findall(r"^(?:frontend|listen) (\S+)\s+bind ([^:]*):", text, re.MULTILINE)
    assert ("prometheus", "127.0.0.1") in binds
    assert ("stats", "127.0.0.1") in binds
    assert ("http_frontend", "{{ config.frontend_host }}") in binds
    assert re.findall(r"mode (\d+) level admin", text) == ["600"]
    assert script.stat().st_mode & 0o077 == 0
