"""A run without real data says so once, and what it missed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import real_data
from tests.real_data import lacked, real


def skipped(reason: object) -> SimpleNamespace:
    """A report as pytest makes it of a skipped test."""
    return SimpleNamespace(longrepr=("test_it.py", 1, f"Skipped: {reason}"))


def test_what_a_run_lacked_is_named_by_folder_and_counted_and_other_skips_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(real_data, "DATA", tmp_path)
    (tmp_path / "hippocampus").mkdir()
    reports = [skipped("no GPU")]
    for parts in (("hippocampus", "imagesTr"), ("hippocampus", "labelsTr", "a.nii.gz"), ("chaos_t2",)):
        with pytest.raises(pytest.skip.Exception) as absent:
            real(*parts)
        reports.append(skipped(absent.value))
    said = lacked(reports)
    assert said.endswith(": chaos_t2 (1 skipped), hippocampus (2 skipped)")
    assert str(tmp_path) not in said


def test_a_run_that_lacked_nothing_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(real_data, "DATA", tmp_path)
    (tmp_path / "hippocampus").mkdir()
    assert real("hippocampus") == tmp_path / "hippocampus"
    assert lacked([skipped("no GPU")]) == ""
