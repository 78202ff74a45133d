"""An app that is written for MONAI Label, unchanged."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from rayapp.active_learning.scoring_methods import Case
from rayapp.app import import_aliases
from rayapp.app.app_loader import app_class
from rayapp.errors import AppBroken
from rayapp.inference.infer_task import Prompts
from rayapp.serving.catalogue import Catalogue
from rayapp.training.train_task import Pair, TrainRequest
from tests.compat.conftest import ask, mask, save
from tests.training.worker import Worker


@pytest.fixture
def app(app_folder, settings):
    made = app_class(settings(app_folder)).of(settings(app_folder))
    made.load_all()
    return made


def test_it_is_described_and_what_cannot_run_is_named(app_folder, settings, store):
    described = Catalogue(settings(app_folder), store).describe()
    assert (described["name"], described["version"]) == ("labelled", "3")
    assert set(described["models"]) == {"bright", "clicks", "Histogram+GraphCut"}
    assert described["models"]["bright"]["labels"] == {"dim": 1, "lit": 2}
    assert described["models"]["bright"]["config"]["above"] == 0.0
    assert "none.pt" in described["broken_models"]["unwritten"]
    assert "docs/porting.md" in described["broken_models"]["sam_3d"]
    assert described["trainers"]["bright"]["config"]["max_epochs"] == 2
    assert {"longest", "first"} <= set(described["strategies"])
    assert {"name_length", "dice"} <= set(described["scoring"])


def test_its_mask_is_exact_to_the_voxel_on_the_images_own_grid(app, volume):
    assert np.array_equal(ask(app.task("bright"), volume).labels, mask())
    assert np.array_equal(ask(app.task("bright"), volume, turned=True).labels, mask())


def test_options_of_a_request_reach_its_data(app, volume):
    prediction = ask(app.task("bright"), volume, above=1.5)
    assert np.array_equal(prediction.labels > 0, mask() == 2)
    assert prediction.params["above"] == 1.5
    assert prediction.params["image_path"] == str(volume.path)


def test_clicks_arrive_under_the_names_of_their_labels(app, volume):
    prompts = Prompts(clicks={"lit": [(2, 11, 4)], "dim": [(7, 0, 1)]})
    labels = ask(app.task("clicks"), volume, prompts).labels
    assert np.argwhere(labels == 2).tolist() == [[2, 11, 4]]
    assert np.argwhere(labels == 1).tolist() == [[7, 0, 1]]


def test_its_strategy_chooses_and_leaves_out_what_others_hold(app, store):
    assert app.next_image("longest", {"holder": "a"}, store)["id"] == "longest"
    assert app.next_image("longest", {"holder": "b"}, store)["id"] in ("one", "two")


def test_its_scoring_method_scores_one_image(app, store):
    case = Case(image=store.image("longest"), labels={}, max_bytes=1 << 30)
    assert app.scoring["name_length"].score(case, {}, None).info == {"name_length": 7}


def test_its_hook_hears_of_a_saved_label(app_folder, settings, store):
    catalogue = Catalogue(settings(app_folder), store)
    save(store, "one", mask(), {"dim": 1, "lit": 2})
    catalogue.label_saved("one", "final")
    assert store.image("one").info["seen_by_app"] == "one"


def test_it_trains_on_labels_by_name_and_the_version_serves(app_folder, settings, store, tmp_path, volume):
    catalogue = Catalogue(settings(app_folder), store)
    swapped = np.array([0, 2, 1], np.uint8)[mask()]
    for name in ("one", "two", "longest"):
        save(store, name, swapped, {"dim": 2, "lit": 1})
    app = app_class(settings(app_folder)).of(settings(app_folder))
    pairs = [Pair.of(entry) for entry in store.datalist(immutable=True)]
    request = TrainRequest(model="bright", pairs=pairs, folder=tmp_path / "run", params={"max_epochs": "1"})
    result = app.trainers["bright"].train(request, Worker(0, 1))
    assert result.metric > 0.99  # the network is right from the start, if labels are read by name
    version = catalogue.publish("bright", result.weights, result.card, request="job")
    described = catalogue.describe()
    assert described["models"]["bright"]["version"] == version.version
    assert "none.pt" in described["broken_models"]["unwritten"]
    served = app_class(settings(app_folder)).of(settings(app_folder))
    assert np.array_equal(ask(served.task("bright"), volume).labels, mask())


def test_an_app_that_exits_says_what_it_printed(app_folder, settings):
    main = app_folder / "main.py"
    main.write_text(main.read_text().replace("self.models = {", "print('Provide --conf models'); exit(-1); self.m = {"))
    with pytest.raises(AppBroken, match=r"exit\(\) at main.py, line \d+: Provide --conf models"):
        app_class(settings(app_folder)).of(settings(app_folder))


def test_the_names_are_ours_while_it_is_loaded_and_not_after(app_folder, settings):
    app_class(settings(app_folder))
    assert sys.modules["monailabel.interfaces.app"].MONAILabelApp.__module__ == "rayapp.compat.monailabel_app"
    import_aliases.deactivate()
    assert not [name for name in sys.modules if name.startswith("monailabel")]
