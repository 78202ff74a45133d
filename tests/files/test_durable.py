"""Durable files: replaced whole or left as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayapp.files.durable import replacing


def test_a_file_is_replaced_as_a_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    for text in ("one", "two"):
        with replacing(path) as staged:
            assert staged.suffix == path.suffix
            staged.write_text(text)
            assert not path.exists() or path.read_text() != text
        assert path.read_text() == text
    assert [file.name for file in tmp_path.iterdir()] == ["users.json"]


def test_what_fails_half_way_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    path.write_text("one")

    def write() -> None:
        with replacing(path) as staged:
            staged.write_text("tw")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert path.read_text() == "one"
    assert [file.name for file in tmp_path.iterdir()] == ["users.json"]


def test_a_file_that_was_never_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "users.json"):
        pass
