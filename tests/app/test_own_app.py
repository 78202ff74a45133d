"""An app of one's own: a folder with main.py and lib/, and what is said of one that is wrong."""

from __future__ import annotations

import logging
import sys
import textwrap

import pytest

from rayapp.active_learning.strategies import strategies
from rayapp.app.app_loader import app_class
from rayapp.app.label_app import LabelApp
from rayapp.config import Settings
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import AppBroken, NotFound
from rayapp.serving.catalogue import Catalogue

LIB = """
import numpy as np
from rayapp.inference.infer_task import Prediction, TaskInfo

class Bright:
    version = "1"

    def __init__(self, at):
        self.at = at

    @property
    def info(self):
        return TaskInfo(type="segmentation", labels={"bright": 1}, dimension=3, description="brighter than a value")

    def load(self):
        pass

    def prepare(self, volume):
        return volume

    def predict(self, prepared, prompts, config):
        return Prediction(labels=(prepared.array[0] > self.at).astype(np.uint8))
"""
MAIN = """
from lib.bright import Bright
from rayapp.app.label_app import LabelApp

class MyApp(LabelApp):
    name = "mine"

    def init_infers(self):
        return {"bright": Bright(at=float(self.settings.conf.get("at", 10)))}
"""


@pytest.fixture
def store(tmp_path):
    (tmp_path / "studies").mkdir()
    store = LocalDatastore(tmp_path / "studies", watch=False)
    yield store
    store.close()


@pytest.fixture
def write(tmp_path):
    """Write an app's files; the settings that serve it."""

    def write(main, *, lib=LIB, folder="mine", **settings):
        app = tmp_path / folder
        (app / "lib").mkdir(parents=True, exist_ok=True)
        (app / "main.py").write_text(textwrap.dedent(main))
        (app / "lib" / "bright.py").write_text(textwrap.dedent(lib))
        return Settings(studies=tmp_path / "studies", workspace=tmp_path / "ws", app=str(app), **settings)

    return write


def with_hooks(hooks):
    """MAIN with another hook in its class; the first line of `hooks` is line 12."""
    return MAIN + "\n" + textwrap.indent(textwrap.dedent(hooks).strip("\n"), "    ") + "\n"


def test_a_folder_with_main_and_lib_is_an_app(write, store):
    settings = write(MAIN, conf={"at": "3"})
    described = Catalogue(settings, store).describe()
    assert (described["name"], described["labels"], described["broken_models"]) == ("mine", ["bright"], {})
    app = app_class(settings).of(settings)
    assert app.app_dir == (settings.studies.parent / "mine")
    assert app.task("bright").at == 3.0


def test_two_apps_in_one_process_have_each_their_own_lib(write, store):
    first, second = write(MAIN), write(MAIN, lib=LIB.replace("at = at", "at = -at"), folder="other")
    assert [app_class(s).of(s).task("bright").at for s in (first, second, first)] == [10, -10, 10]
    assert [entry for entry in sys.path if "mine" in entry or "other" in entry] == [first.app]


def test_a_reload_reads_the_sources_again(write, store):
    settings = write(MAIN)
    catalogue = Catalogue(settings, store)
    write(MAIN, lib=LIB.replace('"bright": 1', '"shiny": 1'))
    catalogue.reload()
    assert catalogue.describe()["models"]["bright"]["labels"] == {"shiny": 1}


def test_conf_and_folders_are_at_hand(write):
    settings = write(
        with_hooks("def init_trainers(self):\n    self.seen = (self.app_dir, self.settings)\n    return {}")
    )
    app = app_class(settings).of(settings)
    assert app.seen == (settings.studies.parent / "mine", settings)


BROKEN_APPS = {
    "syntax": ("def x(:\n    pass", LIB, ["main.py, line 1", "SyntaxError"]),
    "syntax in lib": (MAIN, "\n\ndef x(:", ["lib/bright.py, line 3", "SyntaxError"]),
    "missing package": ("import no_such_package", LIB, ["main.py, line 1", "no_such_package", "requirements.txt"]),
    "missing module of its own": ("import lib.brigth", LIB, ["main.py, line 1", "lib.brigth"]),
    "error while imported": ("x = 1\ny = 1 / 0", LIB, ["main.py, line 2", "ZeroDivisionError"]),
    "error in lib while imported": (MAIN, "x = {}['k']", ["lib/bright.py, line 1", "KeyError: 'k'"]),
    "no app": ("x = 1", LIB, ["must define one subclass of LabelApp; it defines none"]),
    "two apps": (MAIN + "\nclass Second(LabelApp):\n    pass\n", LIB, ["MyApp (main.py, line 5)", "Second (main.py"]),
    "hook fails": (
        with_hooks("def init_trainers(self):\n    return {'a': self.nothing}"),
        LIB,
        ["init_trainers failed", "main.py, line 12", "AttributeError", "nothing"],
    ),
    "hook fails in lib": (MAIN, LIB.replace("self.at = at", "self.at = att"), ["init_infers", "lib/bright.py, line 9"]),
    "hook returns nothing": (
        with_hooks("def init_trainers(self):\n    pass"),
        LIB,
        ["init_trainers (main.py, line 11)", "must return a dict of TrainTask by name, not None"],
    ),
    "hook returns a list": (
        MAIN.replace("{", "[").replace("}", "]").replace('"bright": ', ""),
        LIB,
        ["init_infers (main.py, line 8)", "must return a dict of InferTask by name, not a list"],
    ),
    "install fails": (
        with_hooks("@classmethod\ndef install(cls, settings, models):\n    raise OSError('no disk')"),
        LIB,
        ["install failed", "main.py, line 13", "OSError: no disk"],
    ),
    "own __init__ of another kind": (
        with_hooks("def __init__(self, app_dir, studies, conf):\n    pass"),
        LIB,
        ["MyApp failed", "TypeError", "settings"],
    ),
}


@pytest.mark.parametrize("kind", BROKEN_APPS)
def test_an_app_that_cannot_be_made_names_the_file_and_the_line(write, store, kind):
    main, lib, said = BROKEN_APPS[kind]
    with pytest.raises(AppBroken) as error:
        Catalogue(write(main, lib=lib), store)
    assert all(words in error.value.detail for words in said), error.value.detail


BROKEN_TASKS = {
    "no predict": ("def predict(", "def predikt(", ["Bright (lib/bright.py, line 5)", "predict(prepared, prompts"]),
    "no version": ('version = "1"', "pass", ["an attribute or property version"]),
    "info is no TaskInfo": ("return TaskInfo", "return dict", ["must be a TaskInfo, not a dict"]),
    "info fails": ("return TaskInfo(", "return TaskInfo(1, ", ["lib/bright.py, line 13", "TypeError"]),
    "labels are a list": ('{"bright": 1}', '["bright"]', ["must be a dict such as", "['bright']"]),
    "a label is not a number": ('{"bright": 1}', '{"bright": "1"}', ["must be a dict such as"]),
    "the config is no JSON": ('value")', 'value", config={"at": {1, 2}})', ["plain JSON", "set"]),
    "weights are missing": ("pass", "open('/nowhere')", ["lib/bright.py, line 16", "FileNotFoundError"]),
}


@pytest.mark.parametrize("kind", BROKEN_TASKS)
def test_a_broken_task_is_named_with_its_line_and_the_others_serve(write, store, kind, caplog):
    old, new, said = BROKEN_TASKS[kind]
    assert LIB.count(old) == 1
    main = MAIN.replace("return {", 'from lib.broken import Bright as Broken\n        return {"broken": Broken(1), ')
    settings = write(main)
    broken = settings.studies.parent / "mine" / "lib" / "broken.py"
    broken.write_text(LIB.replace(old, new))
    said = [words.replace("bright.py", "broken.py") for words in said]
    with caplog.at_level(logging.ERROR):
        catalogue = Catalogue(settings, store)
    described = catalogue.describe()
    assert set(described["models"]) == {"bright"}
    assert all(words in described["broken_models"]["broken"] for words in said), described["broken_models"]
    assert described["broken_models"]["broken"] in caplog.text
    app = app_class(settings).of(settings)
    app.load_all()
    with pytest.raises(NotFound, match="no model 'broken'"):
        app.task("broken")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("queue.py", "queue.py of app 'mine' would hide Python's own module 'queue'"),
        ("numpy.py", "numpy.py of app 'mine' would hide the package 'numpy'"),
        ("statistics/__init__.py", "statistics of app 'mine' would hide Python's own module"),
    ],
)
def test_a_module_that_would_hide_another_from_the_server_is_told(write, store, file, said):
    settings = write(MAIN)
    path = settings.studies.parent / "mine" / file
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(AppBroken) as error:
        Catalogue(settings, store)
    assert said in error.value.detail
    assert "put it into lib/ and import lib." in error.value.detail


def test_modules_in_lib_and_folders_beside_main_may_be_called_anything(write, store):
    settings = write(MAIN + "import lib.queue\nassert lib.queue.MINE\nimport queue\nqueue.Queue()\n")
    app = settings.studies.parent / "mine"
    (app / "lib" / "queue.py").write_text("MINE = True\n")
    for folder in ("test", "model", "email"):
        (app / folder).mkdir()
    (app / "test" / "__init__.py").touch()
    assert Catalogue(settings, store).describe()["broken_models"] == {}


def test_a_name_that_could_be_a_path_and_a_broken_trainer_and_strategy_are_named(write, store):
    hooks = """
        def init_trainers(self):
            return {"bright": object()}
        def init_strategies(self):
            return {"odd": "first", "../up": print, **super().init_strategies()}
    """
    described = Catalogue(write(with_hooks(hooks)), store).describe()
    assert set(described["strategies"]) == set(strategies())
    assert (set(described["models"]), described["trainers"]) == ({"bright"}, {})
    broken = described["broken_models"]
    assert "object needs an attribute or property info" in broken["bright (TrainTask)"]
    assert "str needs an attribute or property description" in broken["odd (Strategy)"]
    assert "not a valid name" in broken["../up (Strategy)"]


CHOOSERS = """
class Mine:
    description = ""
    def __call__(self, request, datastore):
        return {}[request["client_id"]]

class Old(Mine):
    def __call__(self, request, datastore):
        return {"id": "x"}
"""


def test_a_strategy_that_fails_names_its_line_and_not_what_it_saw(write, store):
    hooks = "def init_strategies(self):\n    return {'mine': Mine(), 'old': Old()}"
    catalogue = Catalogue(write(with_hooks(hooks) + CHOOSERS), store)
    with pytest.raises(AppBroken, match=r"'mine' failed with KeyError at main\.py, line 17") as error:
        catalogue.next_image("mine", {"client_id": "Doe^John"})
    assert "Doe" not in error.value.detail
    with pytest.raises(AppBroken, match=r"Old \(main\.py, line 19\) must return a Pick or None, not a dict"):
        catalogue.next_image("old", {})


def test_a_save_hook_may_return_nothing_and_one_that_fails_is_logged_without_what_it_saw(write, store, caplog):
    hooks = """
        def on_save_label(self, image_id, tag):
            if tag == "bad":
                raise ValueError("Doe^John")
    """
    catalogue = Catalogue(write(with_hooks(hooks)), store)
    assert catalogue.label_saved("ct", "final") == {}
    with pytest.raises(AppBroken):
        catalogue.label_saved("ct", "bad")
    assert "ValueError at main.py, line 13" in caplog.text
    assert "Doe" not in caplog.text


def test_the_base_app_serves_nothing_and_has_the_strategies_that_every_app_has(write):
    settings = write("from rayapp.app.label_app import LabelApp\nclass Bare(LabelApp):\n    pass\n")
    app = app_class(settings).of(settings)
    assert isinstance(app, LabelApp)
    assert (app.infers, app.trainers, sorted(app.strategies)) == ({}, {}, sorted(strategies()))


def test_an_app_whose_class_is_in_lib_is_found(write, store):
    settings = write("from lib.bright import MyApp\n", lib=LIB + MAIN.replace("from lib.bright import Bright\n", ""))
    assert set(Catalogue(settings, store).describe()["models"]) == {"bright"}


def test_a_base_class_beside_the_app_is_not_taken_for_a_second_app(write, store):
    settings = write(MAIN + "\nclass Finer(MyApp):\n    name = 'finer'\n")
    assert Catalogue(settings, store).describe()["name"] == "finer"


def test_the_apps_own_tests_beside_main_do_no_harm(write, store, monkeypatch):
    settings = write(MAIN)
    for name in ("conftest", "test_main"):
        (settings.studies.parent / "mine" / f"{name}.py").write_text("raise AssertionError\n")
        monkeypatch.setitem(sys.modules, name, sys)
    assert Catalogue(settings, store).describe()["name"] == "mine"


def test_an_app_that_exits_says_where(write, store):
    settings = write(with_hooks("def init_trainers(self):\n    exit(-1)"))
    with pytest.raises(AppBroken, match=r"init_trainers called exit\(\) at main.py, line 12"):
        Catalogue(settings, store)
