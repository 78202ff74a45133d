"""Every name can be served: ids derived from file names, and the files and labels found by them."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayapp.datastore.image_names import id_of, label_name, stem_of
from rayapp.protocol import checked_name
from tests.datastore.saves import Open, save

NAMES = [
    unicodedata.normalize("NFD", "Müller"),
    "รูปภาพ",
    "रोगी",
    "scan–1",
    "O’Brien",
    "T1w[1]",
    "T2*",
    "a;b",
    "100%",
    "n°1",
    "(1)scan",
    "@x",
    "-x",
    "a~1",
    "a..b",
    "_=a",
    "__=a",
    "con",
    "x.",
    "two\nlines",
    "😀",
    'quo"te',
    "x" * 248,
    "é" * 124,
]
STEMS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=60)


@given(STEMS)
def test_an_id_is_a_checked_name_and_gives_the_file_name_back(stem: str) -> None:
    image_id = id_of(stem)
    assert checked_name(image_id, "image") == image_id
    assert stem_of(image_id) in (stem, None)
    if image_id != stem:
        assert parse_qs(urlsplit(f"/x?image={image_id}").query)["image"] == [image_id]


@given(STEMS, STEMS)
def test_no_two_names_share_an_id(one: str, other: str) -> None:
    assert (id_of(one) == id_of(other)) == (one == other)


@given(STEMS)
def test_the_id_of_one_image_is_never_the_name_of_another(stem: str) -> None:
    image_id = id_of(stem)
    assert image_id == stem or id_of(image_id) != image_id


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
def test_an_image_of_any_name_is_served_labelled_and_found_again(name: str, studies: Path, open_store: Open) -> None:
    (studies / f"{name}.nii.gz").write_bytes(b"voxels")
    store = open_store(studies)
    image_id = id_of(name)
    assert image_id in store.image_ids()
    record = store.image(image_id)
    assert (record.path, record.info["name"]) == (studies / f"{name}.nii.gz", f"{name}.nii.gz")
    path = save(store, image_id, body=b"label").path
    assert path == studies / "labels" / "final" / label_name(image_id, ".nii.gz")
    store.close()
    store = open_store(studies)
    assert store.label(image_id, "final").path.read_bytes() == b"label"
    assert store.image(image_id).path.exists()
    store.remove_label(image_id, "final")
    assert not path.exists()
    store.remove_image(image_id)
    assert not (studies / f"{name}.nii.gz").exists()
    assert image_id not in store.image_ids()


def test_a_label_that_bears_its_images_name_is_taken(studies: Path, open_store: Open) -> None:
    final = studies / "labels" / "final"
    final.mkdir(parents=True)
    for folder in (studies, final):
        (folder / "T1w[1].nii.gz").write_bytes(b"x")
    store = open_store(studies)
    assert store.label("_=T1w=5B1=5D", "final").path == final / "T1w[1].nii.gz"
    assert store.datalist() == [
        {"image": str(studies / "T1w[1].nii.gz"), "label": str(final / "T1w[1].nii.gz")},
    ]


@pytest.mark.parametrize("name", ["UPPER.NII.GZ", "Upper.Nii", "x.NRRD"])
def test_an_extension_may_be_in_any_case(name: str, studies: Path, open_store: Open) -> None:
    (studies / name).write_bytes(b"voxels")
    store = open_store(studies)
    image = store.image(name.split(".")[0])
    assert (image.path, image.info["name"]) == (studies / name, name)
    assert image.ext == image.ext.lower()


def test_a_folder_of_slices_may_have_any_name(studies: Path, open_store: Open) -> None:
    (studies / "Müller [1]").mkdir()
    (studies / "Müller [1]" / "1.dcm").write_bytes(bytes(128) + b"DICM")
    store = open_store(studies)
    assert store.image("_=Müller=20=5B1=5D").path == studies / "Müller [1]"
