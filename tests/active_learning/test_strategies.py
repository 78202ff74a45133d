"""Strategies on a real store: what each prefers, and that they work before anything was scored."""

import sqlite3
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from rayapp.active_learning.strategies import HOLDER, strategies
from rayapp.app.label_app import LabelApp
from rayapp.config import Settings
from rayapp.datastore.interfaces import Author, ImageScore
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import Busy
from rayapp.models.store import ModelStore

NAMES = ["a", "b", "c", "d"]


class Plain(LabelApp):
    """An app with the strategies that every app has."""


@pytest.fixture
def store(tmp_path):
    studies = tmp_path / "studies"
    studies.mkdir()
    for name in NAMES:
        (studies / f"{name}.nii").write_bytes(b"x")
    store = LocalDatastore(studies, watch=False, settle=0.0)
    yield store
    store.close()


@pytest.fixture
def app(store, tmp_path):
    settings = Settings(studies=tmp_path / "studies", workspace=tmp_path / "workspace")
    return Plain(settings=settings, models=ModelStore.of(settings))


def score(store, feature=None, **values):
    """`name=(value of a, b, c, d)`."""
    for n, image in enumerate(NAMES):
        given = {name.replace("__", ":"): column[n] for name, column in values.items() if column[n] is not None}
        row = ImageScore(image_id=image, run="r", ts=time.time(), values=given, feature=feature and feature[n])
        store.save_scores([row])


def label(store, image):
    staged = store.stage(".nii")
    staged.write_bytes(b"y")
    store.save_label(image, "final", staged, ".nii", info={}, author=Author())


def ask(store, name, **request):
    pick = strategies()[name](request, store)
    return pick and pick.image_id


def drawn(store, name, times=400):
    return Counter(ask(store, name) for _ in range(times))


@pytest.mark.parametrize("name", strategies())
def test_every_strategy_gives_an_image_before_anything_was_scored_and_none_when_all_are_labelled(store, name):
    assert ask(store, name) in NAMES
    for image in NAMES:
        assert ask(store, name) is not None
        label(store, image)
    assert ask(store, name) is None


def test_first_and_last_go_by_the_name(store):
    assert (ask(store, "first"), ask(store, "last")) == ("a", "d")


@pytest.mark.parametrize("name", ["tta", "epistemic"])
def test_the_most_uncertain_comes_first(store, name):
    score(store, **{name: (0.1, 0.3, 0.9, 0.2)})
    assert ask(store, name) == "c"
    label(store, "c")
    assert ask(store, name) == "b"


def test_images_nobody_scored_come_as_often_as_there_are_of_them(store):
    score(store, tta=(0.1, None, None, None))
    picks = drawn(store, "tta", 600)
    assert picks["a"] / 600 == pytest.approx(0.25 + 0.75 / 4, abs=0.07)
    assert set(picks) == set(NAMES)


def test_foreground_random_leaves_out_where_the_model_finds_nothing(store):
    score(store, foreground=(0, 5.0, 0, 900.0))
    picks = drawn(store, "foreground_random")
    assert set(picks) == {"b", "d"}
    assert picks["b"] == pytest.approx(200, abs=50)


def test_entropy_takes_each_structure_in_turn_however_uncertain_the_others_are(store):
    score(store, entropy__liver=(9.0, 0.1, 0.1, 0.1), entropy__spleen=(0.001, 0.001, 0.001, 0.09))
    picks = drawn(store, "entropy")
    assert picks["a"] == pytest.approx(200, abs=50)
    assert picks["d"] == pytest.approx(200, abs=50)


def test_entropy_draws_with_noise(store):
    score(store, entropy__liver=(2.0, 1.0, 1.0, 1.0))
    picks = drawn(store, "entropy")
    assert picks["a"] / 400 == pytest.approx(4 / 7, abs=0.09)
    assert len(picks) == 4


def test_diverse_takes_of_the_uncertain_what_is_least_like_the_labelled(store):
    score(store, tta=(0.5, 0.6, 0.4, 0.9), feature=[(0, 0), (0, 1), (8, 0), (0, 0.5)])
    assert ask(store, "diverse") == "d"  # nothing is labelled: the most uncertain
    label(store, "a")
    assert ask(store, "diverse") == "c"
    label(store, "c")
    assert ask(store, "diverse") == "b"


def test_two_annotators_get_two_images_by_every_strategy(store, app):
    score(store, tta=(1, 2, 3, 4), epistemic=(1, 2, 3, 4), foreground=(1, 1, 1, 1), entropy__liver=(1, 2, 3, 4))
    for name in strategies():
        ids = {app.next_image(name, {HOLDER: holder, "client_id": holder}, store)["id"] for holder in ("ann", "bob")}
        assert len(ids) == 2, name
    assert (
        app.next_image("first", {HOLDER: "ann"}, store)["id"] == app.next_image("first", {HOLDER: "ann"}, store)["id"]
    )


def test_a_strategy_of_an_app_that_knows_of_no_leases_is_not_asked_for_ever(store, app):
    from rayapp.active_learning.strategies import Pick

    class Stubborn:
        description = "always the same"

        def __call__(self, request, datastore):
            return Pick(image_id="b")

    app.strategies = {"stubborn": Stubborn()}
    assert app.next_image("stubborn", {HOLDER: "ann"}, store)["id"] == "b"
    with pytest.raises(Busy):
        app.next_image("stubborn", {HOLDER: "bob"}, store)


@pytest.fixture
def many(tmp_path):
    """A store that was closed with 2000 scored images, a fifth of them labelled, and opened again."""
    studies = tmp_path / "many"
    studies.mkdir()
    ids = [f"image_{number:04}" for number in range(2000)]
    for image in ids:
        (studies / f"{image}.nii").write_bytes(b"x")
    store = LocalDatastore(studies, watch=False)
    names = ["tta", "epistemic", "foreground", "entropy:liver", "entropy:spleen"]
    store.save_scores(
        [
            ImageScore(image_id=image, run="r", ts=1.0, values=dict.fromkeys(names, 1.0 + n % 100), feature=[0.0] * 128)
            for n, image in enumerate(ids)
        ]
    )
    store.close()
    with sqlite3.connect(studies / ".rayapp" / "index.db") as db:
        db.executemany(
            "INSERT INTO label VALUES(?, 'final', '.nii', '{}', 1, 'x', 1, 1, 1)", [(image,) for image in ids[::5]]
        )
    (studies / "labels" / "final").mkdir(exist_ok=True)
    for image in ids[::5]:
        (studies / "labels" / "final" / f"{image}.nii").write_bytes(b"y")
    store = LocalDatastore(studies, watch=False, settle=0.0)
    yield store
    store.close()


def test_no_strategy_reads_when_asked_what_could_have_been_read_before(many):
    """In thousands of instructions of the database, since a busy machine changes nothing about them: reading one of the
    five scores takes 23."""
    thousands = []
    with many._index.reader() as db:
        db.set_progress_handler(lambda: thousands.append(1), 1000)

    def asked(name):
        thousands.clear()
        picked = ask(many, name, holder="ann")
        assert len(thousands) < 10, name
        return picked

    for name in [*strategies(), *strategies()]:
        assert asked(name) is not None
    many.remove_label("image_0000", "final")
    for name in strategies():
        assert asked(name) is not None
    scores = [ImageScore(image_id=f"image_{n:04}", run="n", ts=2.0, values={"tta": 200.0 + n}) for n in range(1000)]
    many.save_scores(scores)
    assert asked("tta") == "image_0999"


def test_many_who_ask_at_once_for_the_best_image_lose_once_at_most(app, store, monkeypatch):
    monkeypatch.setattr("rayapp.app.label_app.ATTEMPTS", 2)
    score(store, tta=(0.1, 0.2, 0.3, 0.4))

    together, met = threading.Barrier(4), set()

    class Pondering:
        """By score; all four choose, at first the same image, before any of them may have it."""

        description = "slow"

        def __call__(self, request, datastore):
            pick = strategies()["tta"](request, datastore)
            if request[HOLDER] not in met:
                met.add(request[HOLDER])
                together.wait(20)
            return pick

    app.strategies = {"tta": Pondering()}
    asked = [{HOLDER: f"ann{number}", "client_id": str(number)} for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda request: app.next_image("tta", request, store)["id"], asked))
    assert sorted(got) == NAMES
