"""`rayapp ohif install`: the pinned archive or nothing, prepared for /ohif/, whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from rayapp.downloads import ohif
from rayapp.errors import NotFound, Unreadable

FILES = {
    "package/package.json": "{}",
    "package/dist/index.html": '<meta content="/assets/b.xml"><script>window.PUBLIC_URL="/"</script>'
    '<script src="/app-config.js"></script><link href="/app.css">',
    "package/dist/app.bundle.0123456789abcdef.js": '/******/ __webpack_require__.p = "/";\nrest("/kept");',
    "package/dist/app.css": "@font-face{src:url(/a.woff2)}",
    "package/dist/manifest.json": '{"src": "/assets/a.png"}',
    "package/dist/assets/a.png": "PNG",
    "package/dist/ort/big.wasm": "left out",
    "package/dist/sw.js": "left out",
    "package/dist/app-config.js": "left out",
}


def archive(folder: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of these files, which counts as the pinned one."""
    path = folder / "ohif.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    monkeypatch.setattr(ohif, "SHA512", digest)
    return path


def test_the_build_is_slimmed_and_moved_under_its_base_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target, told = tmp_path / "data" / "ohif", []
    package = archive(tmp_path, FILES, monkeypatch)
    assert ohif.install(target, archive=package, progress=lambda *at: told.append(at))
    names = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert names == {
        "index.html", "app.bundle.0123456789abcdef.js", "app.css", "manifest.json", "assets/a.png", "rayapp.json"
    }  # fmt: skip
    html = (target / "index.html").read_text()
    assert html == (
        '<meta content="/ohif/assets/b.xml"><script>window.PUBLIC_URL="/ohif/"</script>'
        '<script src="/ohif/app-config.js"></script><link href="/ohif/app.css">'
    )
    script = (target / "app.bundle.0123456789abcdef.js").read_text()
    assert script == '/******/ __webpack_require__.p = "/ohif/";\nrest("/kept");'
    assert "url(/ohif/a.woff2)" in (target / "app.css").read_text()
    assert json.loads((target / "manifest.json").read_text()) == {"src": "/ohif/assets/a.png"}
    assert told[-1] == (package.stat().st_size, package.stat().st_size)
    assert ohif.is_prepared(target)
    assert not ohif.install(target, archive=tmp_path / "not looked at")
    assert [path.name for path in target.parent.iterdir()] == ["ohif"]


def test_half_an_installation_and_another_version_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "ohif"
    target.mkdir()
    (target / "old.js").write_text("")
    (target / ohif.MARK).write_text('{"version": "3.0.0"}')
    assert ohif.install(target, archive=archive(tmp_path, FILES, monkeypatch))
    assert not (target / "old.js").exists()


def test_another_archive_is_refused_and_nothing_is_left(tmp_path: Path):
    other = tmp_path / "other.tgz"
    other.write_bytes(b"something else")
    with pytest.raises(Unreadable, match="SHA-512"):
        ohif.install(tmp_path / "ohif", archive=other)
    with pytest.raises(NotFound, match="no archive"):
        ohif.install(tmp_path / "ohif", archive=tmp_path / "absent.tgz")
    assert [path.name for path in tmp_path.iterdir()] == ["other.tgz"]


def test_a_build_that_is_laid_out_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = {name: text.replace("__webpack_require__", "other") for name, text in FILES.items()}
    with pytest.raises(Unreadable, match="unexpected layout"):
        ohif.install(tmp_path / "ohif", archive=archive(tmp_path, files, monkeypatch))
    assert not (tmp_path / "ohif").exists()


def test_without_npm_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ohif.InstallFailed, match=r"install Node\.js, or .*--archive"):
        ohif.install(tmp_path / "ohif")


def test_npms_own_words_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho 'npm error network down' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/usr/bin:/bin")
    with pytest.raises(ohif.InstallFailed, match="network down"):
        ohif.install(tmp_path / "ohif")
    assert not (tmp_path / "ohif").exists()


def test_the_old_build_comes_back_if_the_new_one_cannot_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target, rename = tmp_path / "ohif", Path.rename
    target.mkdir()
    (target / "old.js").write_text("")
    package = archive(tmp_path, FILES, monkeypatch)

    def fail(path: Path, to: Path) -> Path:
        if path.name == "build":
            raise OSError("no room for the folder's entry")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no room"):
        ohif.install(target, archive=package)
    assert [path.name for path in target.iterdir()] == ["old.js"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ohif", "ohif.tgz"]
