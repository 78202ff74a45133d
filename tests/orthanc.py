"""A real DICOMweb archive for the tests: Debian's Orthanc with its DICOMweb plugin, on a free port, in its own folder.

`make test` installs it if root runs it; where it is absent, the tests that need it are skipped and say so.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dicomweb_client import DICOMwebClient

from tests.waiting import until

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
MISSING = shutil.which("Orthanc") is None or not PLUGIN.exists()
needs_orthanc = pytest.mark.skipif(MISSING, reason="no Orthanc: apt-get install orthanc orthanc-dicomweb")
START_S = 120.0


class Orthanc:
    """One archive: it can be stopped and started again on the same address with what it holds."""

    def __init__(self, folder: Path, **options: Any) -> None:
        """`options` go into Orthanc's configuration, for example `RegisteredUsers={"anna": "secret"}`."""
        self.folder = folder
        self.port = _free_port()
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.root}/dicom-web"
        self._process: subprocess.Popen[bytes] | None = None
        settings = {
            "Name": "tests",
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "StorageDirectory": str(folder / "store"),
            "IndexDirectory": str(folder / "store"),
            "AuthenticationEnabled": "RegisteredUsers" in options,
            "RemoteAccessAllowed": False,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
            **options,
        }
        (folder / "store").mkdir(parents=True)
        (folder / "orthanc.json").write_text(json.dumps(settings))

    def start(self) -> None:
        """Start it, and return once it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(["Orthanc", self.folder / "orthanc.json"], stdout=log, stderr=log)
        process = self._process
        try:
            until(lambda: self._answers() or process.poll() is not None, within=START_S, every=0.05)
            assert process.poll() is None
        except AssertionError:
            self.stop()
            pytest.fail(f"Orthanc did not start: {(self.folder / 'log').read_text()[-2000:]}")

    def stop(self) -> None:
        """Stop it at once (a clean stop takes seconds); what it holds stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None

    def client(self) -> DICOMwebClient:
        """The plain client of the field, to look at the archive with other eyes than ours."""
        return DICOMwebClient(self.url)

    def store(self, files: Iterable[Path]) -> None:
        """Send DICOM files to it by STOW-RS. It says nothing of those that it refuses, so what it took is counted."""
        sent = [pydicom.dcmread(file) for file in files]
        taken = self.client().store_instances(sent)
        assert len(taken.ReferencedSOPSequence) == len(sent)

    def find(self, level: str, query: dict[str, str]) -> list[str]:
        """Orthanc's own ids of what the query finds."""
        body = json.dumps({"Level": level, "Query": query}).encode()
        with urllib.request.urlopen(self.root + "/tools/find", data=body, timeout=60) as answer:
            found: list[str] = json.load(answer)
        return found

    def remove(self, kind: str, own_id: str) -> None:
        """Remove it, as an administrator of the archive would."""
        request = urllib.request.Request(f"{self.root}/{kind}/{own_id}", method="DELETE")
        urllib.request.urlopen(request, timeout=60).close()

    def empty(self) -> None:
        """Make it as it was at first: running, and with nothing in it."""
        if self._process is None:
            self.start()
        with urllib.request.urlopen(self.root + "/patients", timeout=60) as answer:
            for own_id in json.load(answer):
                self.remove("patients", own_id)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.root + "/system", timeout=5).close()
        except urllib.error.HTTPError as error:
            return error.code == 401
        except OSError:
            return False
        return True


@contextmanager
def orthanc(folder: Path, **options: Any) -> Iterator[Orthanc]:
    """A running archive that keeps its things in `folder`, stopped at the end."""
    archive = Orthanc(folder, **options)
    archive.start()
    try:
        yield archive
    finally:
        archive.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
