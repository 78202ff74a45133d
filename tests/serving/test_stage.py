"""Ids of the masks of an answer that comes in stages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rayapp.serving.stage import Stage

STAGE = replace(Stage.of(step=12, number=1, version="v1 (mine)\n"), mask="0123456789abcdef")


def test_a_stage_is_read_from_its_id():
    assert Stage.of_id(STAGE.id) == STAGE


@pytest.mark.parametrize(
    "text", ["", "12", STAGE.id + "0", STAGE.id.upper(), "1.2.3.4", STAGE.id[1:] + "\n", "१" + STAGE.id]
)
def test_no_other_text_is_an_id(text: str):
    assert Stage.of_id(text) is None


@pytest.mark.parametrize(
    ("step", "number", "version", "needed"),
    [(12, 0, "v1", False), (12, 1, "v1", False), (12, 2, "v1", True), (13, 0, "v1", True), (12, 0, "v2", True)],
)
def test_who_has_a_stage_needs_later_ones_and_those_of_other_answers(
    step: int, number: int, version: str, needed: bool
):
    has = Stage.of(step=12, number=1, version="v1")
    assert has.covers(Stage.of(step=step, number=number, version=version)) is not needed
