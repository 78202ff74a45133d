"""Model versions: immutable, numbered, one of them in production."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from rayapp.errors import BadRequest, Conflict, NotFound, Unreadable
from rayapp.models.store import ModelStore

CARD = {"labels": {"liver": 1}}


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "models")


@pytest.fixture
def weights(tmp_path):
    def make(value: float):
        file = tmp_path / f"{value}.safetensors"
        save_file({"w": torch.full((2,), value)}, file)
        return file

    return make


def test_nothing_is_in_production_before_a_version_was_published(store):
    assert store.production("spleen") is None
    assert store.versions("spleen") == []


def test_a_published_version_is_in_production_and_keeps_its_parent(store, weights):
    store.publish("spleen", weights(1.0), CARD)
    second = store.publish("spleen", weights(2.0), CARD)
    assert store.production("spleen") == second
    assert (second.version, second.card["parent"]) == ("v2", "v1")
    assert load_file(second.weights)["w"].tolist() == [2.0, 2.0]


def test_an_earlier_version_can_be_promoted_again(store, weights):
    first = store.publish("spleen", weights(1.0), CARD)
    store.publish("spleen", weights(2.0), CARD)
    store.promote("spleen", "v1")
    assert store.production("spleen") == first


def test_versions_are_in_the_order_of_their_numbers(store, weights):
    for _ in range(11):
        store.publish("spleen", weights(1.0), CARD)
    assert store.versions("spleen")[-2:] == ["v10", "v11"]


def test_a_truncated_file_is_refused_and_changes_nothing(store, weights, tmp_path):
    store.publish("spleen", weights(1.0), CARD)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(weights(2.0).read_bytes()[:-3])
    with pytest.raises(Unreadable, match="safetensors"):
        store.publish("spleen", broken, CARD)
    assert store.versions("spleen") == ["v1"]


def test_a_retired_model_has_versions_but_none_in_production(store, weights):
    store.publish("spleen", weights(1.0), CARD)
    store.retire("spleen")
    assert store.production("spleen") is None
    assert store.versions("spleen") == ["v1"]
    with pytest.raises(NotFound):
        store.retire("spleen")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden"])
def test_a_name_can_never_be_a_path(store, name):
    with pytest.raises(BadRequest):
        store.production(name)


def test_the_same_request_publishes_one_version(store, weights):
    first = store.publish("spleen", weights(1.0), CARD, request="a")
    assert store.publish("spleen", weights(1.0), CARD, request="a") == first
    second = store.publish("spleen", weights(1.0), CARD, request="b")
    assert store.versions("spleen") == ["v1", "v2"]
    assert store.published("spleen", "b") == second
    assert store.published("spleen", "c") is None
    assert store.production("spleen") == second


def test_each_card_is_read_once_however_often_something_is_published(store, weights, monkeypatch):
    for n in range(6):
        store.publish("spleen", weights(1.0), CARD, request=f"r{n}")
    read, version = [], store.version
    monkeypatch.setattr(store, "version", lambda name, which: read.append(which) or version(name, which))
    assert store.published("spleen", "another") is None
    read.clear()
    assert store.published("spleen", "yet another") is None
    assert read == []
    assert store.published("spleen", "r3").version == "v4"
    assert read == ["v4"]


def test_a_publication_cut_short_before_it_served_is_finished_by_sending_it_again(store, weights):
    store.publish("spleen", weights(1.0), CARD)
    store.publish("spleen", weights(2.0), CARD, request="a", promote=False)
    assert store.serving("spleen") == "v1"
    store.publish("spleen", weights(2.0), CARD, request="a")
    assert (store.serving("spleen"), store.versions("spleen")) == ("v2", ["v1", "v2"])


def test_a_version_kept_back_is_there_and_does_not_serve(store, weights):
    store.publish("spleen", weights(1.0), CARD)
    kept = store.publish("spleen", weights(2.0), CARD, promote=False)
    assert store.serving("spleen") == "v1"
    assert kept.card["parent"] == "v1"
    store.promote("spleen", kept.version)
    assert store.production("spleen") == kept


def test_rolling_back_goes_through_the_versions_that_served(store, weights):
    for value in (1.0, 2.0, 3.0):
        store.publish("spleen", weights(value), CARD)
    store.promote("spleen", "v1")
    store.promote("spleen", "v1")
    assert [store.rollback("spleen") for _ in range(3)] == ["v3", "v2", "v1"]
    with pytest.raises(Conflict):
        store.rollback("spleen")
    assert store.serving("spleen") == "v1"


def test_an_alias_of_before_there_was_a_history_is_read(store, weights, tmp_path):
    store.publish("spleen", weights(1.0), CARD)
    store.publish("spleen", weights(2.0), CARD)
    (tmp_path / "models" / "spleen" / "production").write_text("v1\n")
    assert store.serving("spleen") == "v1"


def test_models_with_versions_are_listed(store, weights):
    assert store.names() == []
    store.publish("spleen", weights(1.0), CARD)
    store.publish("liver", weights(1.0), CARD)
    assert store.names() == ["liver", "spleen"]
