"""Bundles are fetched from a zoo by name, over HTTP: checked, whole or not at all."""

from __future__ import annotations

import io
import os
import re
import socket
import zipfile

import pytest

from rayapp.apps.bundle.main import fetch as app_fetch
from rayapp.config import Settings
from rayapp.errors import ModelBroken
from rayapp.models import zoo
from tests.models.fake_zoo import open_zoo


def archive_of(name: str, version: str) -> bytes:
    """A zip as the zoo's: one folder of the bundle's name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr(f"{name}/configs/metadata.json", f'{{"version": "{version}", "monai_version": "1.0.0"}}')
        packed.writestr(f"{name}/models/model.pt", os.urandom(200_000))
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def served():
    with open_zoo() as opened:
        for version in ("0.9.0", "0.10.0", "0.2.1"):
            opened.add("spleen_ct", version, archive_of("spleen_ct", version))
        yield opened


def index_of(served):
    return f"{served.url}/models/model_info.json"


def version_in(folder):
    return re.search(r'"version": "([^"]+)"', (folder / "configs" / "metadata.json").read_text())[1]


def test_the_newest_version_is_fetched_once_and_what_is_there_is_left_alone(served, tmp_path):
    folder = zoo.fetch("spleen_ct", tmp_path / "bundles", index=index_of(served))
    assert (folder, version_in(folder)) == (tmp_path / "bundles" / "spleen_ct", "0.10.0")
    assert served.asked == ["spleen_ct_v0.10.0.zip"]
    (folder / "mine.txt").touch()
    assert zoo.fetch("spleen_ct", tmp_path / "bundles", index="http://127.0.0.1:9/away") == folder
    assert (folder / "mine.txt").exists()
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == ["spleen_ct"]


def test_the_app_takes_the_version_and_the_mirror_that_conf_names(served, tmp_path):
    conf = {"bundles": str(tmp_path / "b"), "zoo": index_of(served), "version.spleen_ct": "0.9.0"}
    app_fetch("spleen_ct", Settings(studies=tmp_path, workspace=tmp_path / "ws", app="bundle", conf=conf))
    assert version_in(tmp_path / "b" / "spleen_ct") == "0.9.0"


def test_of_two_servers_that_fetch_at_once_the_first_ones_stays(served, tmp_path, monkeypatch):
    download = zoo._download

    def slower(name, staged, archive):
        download(name, staged, archive)
        zoo._download = download
        (zoo.fetch(name, tmp_path, index=index_of(served)) / "first.txt").touch()

    monkeypatch.setattr(zoo, "_download", slower)
    assert (zoo.fetch("spleen_ct", tmp_path, index=index_of(served)) / "first.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["spleen_ct"]


FAULTS = {
    "missing": r"127\.0\.0\.1:\d+ answers 404 Not Found",
    "torn": r"127\.0\.0\.1:\d+ broke off the transfer",
    "stalled": r"127\.0\.0\.1:\d+ sent nothing for 0\.5 s",
    "other": r"the archive from 127\.0\.0\.1:\d+ does not match its checksum; it was discarded",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_download_is_told_and_leaves_nothing_behind(served, tmp_path, fault, monkeypatch):
    monkeypatch.setattr(zoo, "PATIENCE_S", 0.5 if fault == "stalled" else zoo.PATIENCE_S)
    served.add("liver_ct", "1.0.0", archive_of("liver_ct", "1.0.0"), fault=fault)
    with pytest.raises(ModelBroken, match=r"bundle 'liver_ct' could not be downloaded: .*" + FAULTS[fault]):
        zoo.fetch("liver_ct", tmp_path, index=index_of(served))
    assert list(tmp_path.iterdir()) == []
    served.faults.clear()
    served.add("liver_ct", "1.0.0", archive_of("liver_ct", "1.0.0"))
    assert version_in(zoo.fetch("liver_ct", tmp_path, index=index_of(served))) == "1.0.0"


def test_the_timeout_of_a_download_holds_for_no_other_connection_of_the_process(served, tmp_path, monkeypatch):
    set_for_all = []
    monkeypatch.setattr(socket, "setdefaulttimeout", set_for_all.append)
    zoo.fetch("spleen_ct", tmp_path, index=index_of(served))
    assert set_for_all == []


def test_an_archive_that_is_no_zip_or_holds_another_bundle_is_told(served, tmp_path):
    served.add("torn", "1.0.0", b"<html>sign in</html>")
    with pytest.raises(ModelBroken, match="is not a zip archive"):
        zoo.fetch("torn", tmp_path, index=index_of(served))
    served.add("renamed", "1.0.0", archive_of("another", "1.0.0"))
    with pytest.raises(ModelBroken, match="has no renamed/configs"):
        zoo.fetch("renamed", tmp_path, index=index_of(served))
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_would_write_elsewhere_is_not_unpacked(served, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("../../evil.txt", "x")
    served.add("evil", "1.0.0", buffer.getvalue())
    with pytest.raises(ModelBroken, match="Unsafe path"):
        zoo.fetch("evil", tmp_path / "bundles", index=index_of(served))
    assert not (tmp_path / "evil.txt").exists()


def test_what_the_zoo_has_not_is_told_before_anything_is_fetched(served, tmp_path):
    with pytest.raises(ModelBroken, match="the zoo has no bundle 'spleen_ctt'; did you mean 'spleen_ct'"):
        zoo.fetch("spleen_ctt", tmp_path, index=index_of(served))
    with pytest.raises(ModelBroken, match=r"no version 9 of bundle 'spleen_ct'; the newest is 0\.10\.0"):
        zoo.fetch("spleen_ct", tmp_path, index=index_of(served), version="9")
    served.index["spleen_ct_v0.10.0"]["checksum"] = ""
    with pytest.raises(ModelBroken, match="lacks address or checksum of bundle 'spleen_ct'"):
        zoo.fetch("spleen_ct", tmp_path, index=index_of(served))
    assert (served.asked, list(tmp_path.iterdir())) == ([], [])


def test_a_zoo_that_is_away_or_answers_something_else_is_told(served, tmp_path):
    with pytest.raises(ModelBroken, match=r"the zoo's index: 127\.0\.0\.1:9 cannot be reached"):
        zoo.fetch("spleen_ct", tmp_path, index="http://127.0.0.1:9/model_info.json")
    with pytest.raises(ModelBroken, match=r"the zoo's index: 127\.0\.0\.1:\d+ answers 404"):
        zoo.fetch("spleen_ct", tmp_path, index=f"{served.url}/elsewhere.json")


def test_what_a_killed_server_left_of_a_download_is_swept_away_after_a_day(served, tmp_path):
    for name, age in (("old", 2 * zoo.STALE_S), ("new", 60.0)):
        left = tmp_path / f"{zoo.STAGED}{name}"
        left.mkdir()
        then = left.stat().st_mtime - age
        os.utime(left, (then, then))
    zoo.fetch("spleen_ct", tmp_path, index=index_of(served))
    assert {path.name for path in tmp_path.iterdir()} == {"spleen_ct", f"{zoo.STAGED}new"}
