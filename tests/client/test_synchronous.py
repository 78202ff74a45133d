"""The blocking client is the asynchronous one, method by method."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import griffe
import pytest

from rayapp.client import AsyncClient, AsyncInteraction, Client, Interaction, make_synchronous

PAIRS = [(Client, AsyncClient), (Interaction, AsyncInteraction)]


def methods(cls: type) -> dict[str, Callable[..., Any]]:
    return {name: method for name, method in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}


def test_the_generated_file_is_up_to_date():
    message = "run `python -m rayapp.client.make_synchronous`"
    assert make_synchronous.TARGET.read_text() == make_synchronous.generated(), message


@pytest.mark.parametrize(("blocking", "awaited"), PAIRS)
def test_the_blocking_class_has_every_method_of_the_other_with_its_parameters(blocking: type, awaited: type):
    assert methods(blocking).keys() - {"close"} == methods(awaited).keys()
    for name, method in methods(awaited).items():
        parameters = inspect.signature(methods(blocking)[name]).parameters
        assert dict(parameters) == dict(inspect.signature(method).parameters), name


@pytest.mark.parametrize("blocking", [Client, Interaction])
def test_the_reference_shows_a_signature_and_a_docstring_for_every_method(blocking: type):
    target = make_synchronous.TARGET
    module = griffe.visit("synchronous", filepath=target, code=target.read_text())
    shown = module.members[blocking.__name__].members
    assert shown.keys() >= methods(blocking).keys()
    assert [name for name in methods(blocking) if not (shown[name].is_function and shown[name].docstring)] == []


def test_an_iterator_that_is_dropped_after_the_client_was_closed_complains_of_nothing(monkeypatch):
    async def events(self, job):
        while True:
            yield {"id": job}

    monkeypatch.setattr(AsyncClient, "follow", events)
    with Client("http://127.0.0.1:9") as client:
        following = client.follow("a")
        assert next(following) == {"id": "a"}
    following.close()
