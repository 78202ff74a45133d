"""Commands without a server: a followed log shows each line once; the exit status says that nothing is left."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from rayapp import client as clients
from rayapp.cli import app
from rayapp.commands import WrongUsage
from rayapp.commands.overview import after, lines_of
from rayapp.commands.transfer import named


@pytest.mark.parametrize(
    ("shown", "now", "new"),
    [
        (["a", "b"], ["a", "b", "c"], ["c"]),
        (["a", "b", "c"], ["b", "c", "d", "e"], ["d", "e"]),
        (["a", "b"], ["a", "b"], []),
        (["x", "a", "a"], ["a", "a", "a"], ["a"]),
        (["a"], ["c", "d"], ["c", "d"]),
        ([], ["a"], ["a"]),
    ],
)
def test_a_followed_log_shows_the_lines_that_were_not_shown(shown: list[str], now: list[str], new: list[str]):
    assert after(shown, now) == new


def test_a_server_is_described_with_what_it_does_not_serve():
    described = {
        "name": "radiology",
        "version": "1",
        "datastore": {"total": 5, "completed": 2},
        "labels": ["liver", "spleen"],
        "models": {"deepedit": {"type": "deepedit", "version": "v2"}, "cuts": {"type": "scribbles"}},
        "trainers": {"deepedit": {}},
        "strategies": {"random": {}, "first": {}},
        "scoring": {},
        "broken_models": {"bad": "main.py, line 3: no such network"},
    }
    assert list(lines_of(described)) == [
        "radiology 1",
        "images     5, of which 2 have a final label",
        "labels     liver, spleen",
        "model      deepedit (deepedit) v2",
        "model      cuts (scribbles)",
        "trainers   deepedit",
        "strategies random, first",
        "not served bad: main.py, line 3: no such network",
    ]


def test_names_of_values_are_read_and_others_refused():
    assert named(["1=left kidney", "2=a=b"]) == [{"name": "left kidney", "idx": 1}, {"name": "a=b", "idx": 2}]
    for wrong in ("liver", "0=liver", "256=liver", "1=", "x=liver", "-1=liver"):
        with pytest.raises(WrongUsage, match="VALUE=NAME"):
            named([wrong])


class Finished:
    """A server on which every image is labelled."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> Finished:
        return self

    def __exit__(self, *_: object) -> None: ...

    def next_sample(self, _: str) -> None: ...


def test_next_ends_with_a_status_of_its_own_when_no_image_is_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clients, "Client", Finished)
    ended = CliRunner().invoke(app, ["next", "random"])
    assert ended.exit_code == 3
    assert ended.stdout == ""


def test_one_id_is_not_given_to_several_files(tmp_path):
    files = [tmp_path / name for name in ("a.nii", "b.nii")]
    for file in files:
        file.touch()
    ended = CliRunner().invoke(app, ["upload", *map(str, files), "--id", "ct"])
    assert isinstance(ended.exception, WrongUsage) or ended.exit_code == 2


@pytest.mark.parametrize("words", [["upload", "nothing.nii"], ["save", "ct_1", "nothing.nii"]])
def test_a_file_that_is_not_there_is_named(words: list[str]):
    ended = CliRunner().invoke(app, words)
    assert "nothing.nii is not a file" in str(ended.exception)
