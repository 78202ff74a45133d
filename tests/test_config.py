"""Settings: how a studies address becomes an archive and a folder in the workspace."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from rayapp.config import Settings, default_workspace

URL = "https://pacs.example:8443/dicom-web"


def test_studies_at_an_address_are_worked_on_in_the_workspace(tmp_path: Path) -> None:
    settings = Settings(studies=URL, workspace=tmp_path)
    assert settings.dicomweb.url == URL
    assert settings.studies == tmp_path / "studies"
    assert Settings(studies=tmp_path).dicomweb.url == ""


def test_each_archive_has_a_workspace_of_its_own_wherever_the_server_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = Settings(studies=URL).workspace
    monkeypatch.chdir(tmp_path)
    assert Settings(studies=URL).workspace == first == default_workspace(URL)
    assert first.name.startswith("pacs.example-")
    assert Settings(studies=URL + "/2").workspace != first


def test_secrets_come_from_the_environment_and_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYAPP_DICOMWEB__TOKEN", "s3cret")
    monkeypatch.setenv("RAYAPP_DICOMWEB__TIMEOUT", "5")
    settings = Settings(studies=URL)
    assert settings.dicomweb.token is not None
    assert settings.dicomweb.token.get_secret_value() == "s3cret"
    assert settings.dicomweb.timeout == 5
    assert "s3cret" not in repr(settings) + str(settings) + settings.model_dump_json()


def test_a_table_in_the_file_tells_how_to_speak_to_the_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rayapp.toml").write_text(f'studies = "{URL}"\n[dicomweb]\nqido = "/query/"\nuser = "reader"\n')
    archive = Settings().dicomweb
    assert (archive.base("qido"), archive.base("wado")) == (URL + "/query", URL)
    assert archive.user == "reader"
    (tmp_path / "rayapp.toml").write_text(f'studies = "{URL}"\n[dicomweb]\nqidoo = "x"\n')
    with pytest.raises(ValidationError):
        Settings()
