"""The log lines of a server's processes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from rayapp.config import Settings
from rayapp.runtime import logs
from rayapp.runtime.request_id import REQUEST

ODD = """
import sys
from pathlib import Path
import numpy as np
import pydicom
from rayapp.runtime import logs
from rayapp.config import Settings
from rayapp.imaging.dicom_seg import encode
from rayapp.imaging.reader import read_grid
from rayapp.imaging.volume import Segmentation
from tests.imaging.grids import AFFINES, labels, voxels
from tests.imaging.series import edit, write_series

folder = Path(sys.argv[1])
logs.configure(Settings(studies=folder, workspace=folder / "workspace"))
for file in write_series(folder / "series", voxels(), AFFINES["oblique"]):
    edit(file, PatientName="Smithson", PatientBirthDate="Smithson-1970")
label = Segmentation(array=labels(), affine=read_grid(folder / "series").affine, names={"a": 1, "b": 2, "c": 3})
encode(label, folder / "series")
"""


def test_libraries_that_find_a_header_odd_do_not_quote_the_patient(tmp_path: Path):
    said = subprocess.run(
        [sys.executable, "-W", "always", "-c", ODD, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "Smithson" not in said.stdout + said.stderr + (tmp_path / "workspace" / "logs" / "app.log").read_text()


def test_lines_of_json_carry_the_request_and_one_line_each(tmp_path: Path) -> None:
    settings = Settings(studies=tmp_path, workspace=tmp_path / "workspace", log_format="json")
    handlers = logging.getLogger("rayapp").handlers[:]
    try:
        logs.configure(settings)
        token = REQUEST.set("request-7")
        logging.getLogger("rayapp.test").warning("two\nlines %s", "ü")
        REQUEST.reset(token)
        try:
            raise ValueError("it")
        except ValueError:
            logging.getLogger("rayapp.test").exception("broke")
    finally:
        logging.getLogger("rayapp").handlers[:] = handlers
    first, second = map(json.loads, logs.log_file(settings).read_text().splitlines())
    assert (first["message"], first["request"], first["level"]) == ("two\nlines ü", "request-7", "WARNING")
    assert (first["logger"], first["process"]) == ("rayapp.test", os.getpid())
    assert "request" not in second
    assert "ValueError: it" in second["error"]
