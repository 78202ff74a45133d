"""A server does not start on a broken app: one line says where it is wrong, and nothing is left running."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from tests.conftest import make_studies

APP = """
from rayapp.app.label_app import LabelApp

class MyApp(LabelApp):
    pass
"""
IN_REPLICAS = """
from ray import serve
from ray.serve.exceptions import RayServeException

try:
    serve.get_replica_context()
except RayServeException:
    pass
else:
    import no_such_package
"""
KINDS = {
    "missing package": ("import no_such_package", "main.py, line 1: ModuleNotFoundError: No module named 'no_such_p"),
    "syntax error": ("class MyApp(:", "main.py, line 1: SyntaxError"),
    "wrong only in replicas": (IN_REPLICAS + APP, "main.py, line 10: ModuleNotFoundError: No module named 'no_such_p"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_line_says_where_it_is_wrong_and_there_is_no_traceback(tmp_path: Path, kind: str):
    main, said = KINDS[kind]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "main.py").write_text(textwrap.dedent(main))
    words = ["start", "--app", "mine", "--studies", make_studies(tmp_path / "studies", 1), "--workspace", "ws"]
    command = [Path(sys.executable).with_name("rayapp"), *words, "--port", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert said in done.stderr.splitlines()[-1], done.stderr[-2000:]
    assert [each for each in psutil.process_iter() if str(tmp_path) in " ".join(_line(each))] == []


def _line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
