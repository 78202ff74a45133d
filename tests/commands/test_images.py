"""The table of `rayapp images`."""

from __future__ import annotations

from typing import Any

from rayapp.commands.images import image_rows, problem_rows

LISTED: dict[str, Any] = {
    "ct_a": {"image": {"info": {"name": "ct_a.nii.gz"}}},
    "_=T1w=5B1=5D": {"image": {"info": {"name": "T1w[1].nii", "unreadable": {"ts": 1, "why": "the file is cut"}}}},
}


def test_images_are_listed_with_the_names_that_people_know_where_the_id_is_another() -> None:
    assert image_rows(LISTED) == [("_=T1w=5B1=5D", "T1w[1].nii"), ("ct_a", "")]


def test_problems_are_what_is_left_out_and_what_could_not_be_read() -> None:
    assert problem_rows(LISTED, {"x.nii": "it is empty"}) == [
        ("x.nii", "it is empty"),
        ("_=T1w=5B1=5D", "the file is cut"),
    ]
