"""Saves, removals, other programs, scans, document edits, openings and crashes in any order (Hypothesis), and the
orders that found a fault once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

from tests.datastore.store_machine import StoreMachine

A, B = ("ct_a", "final"), ("ct_b", "final")
Scene = Callable[[StoreMachine], None]


def saves(machine: StoreMachine, key: tuple[str, str] = A, *, at_once: bool = True, **given: object) -> None:
    """Somebody saves a label; not `at_once`, it is not committed yet."""
    machine.an_annotator_saves(
        key=key, **{"user": "ann", "ext": ".nii.gz", "conditional": False, "old": False, **given}
    )
    if at_once:
        machine.commit_batch(machine.pending[-1:])


def edits(machine: StoreMachine, key: tuple[str, str] = A) -> None:
    machine.another_program_writes_a_label(key=key, in_place=False)


def an_edit_is_saved_over(machine: StoreMachine) -> None:
    saves(machine)
    edits(machine)
    saves(machine, user="ben")


def an_edit_is_removed(machine: StoreMachine) -> None:
    saves(machine)
    edits(machine)
    machine.an_annotator_removes(key=A, conditional=False)


def a_label_is_saved_while_a_scan_finds_that_its_file_is_gone(machine: StoreMachine) -> None:
    saves(machine)
    machine.another_program_deletes_a_label(key=A, seen=False)
    machine.a_scan_begins()
    saves(machine, at_once=False)
    machine.commit_batch(machine.pending[::-1])


def a_label_is_saved_while_a_scan_finds_an_edit(machine: StoreMachine) -> None:
    saves(machine)
    edits(machine)
    machine.a_scan_begins()
    saves(machine, at_once=False)
    machine.commit_batch(machine.pending[::-1])


def two_annotators_save_what_is_based_on_the_same_label(machine: StoreMachine) -> None:
    saves(machine)
    saves(machine, user="ben", conditional=True, at_once=False)
    saves(machine, at_once=False)
    machine.commit_batch(machine.pending[::-1])


def a_label_is_saved_before_it_is_removed_on_a_condition(machine: StoreMachine) -> None:
    saves(machine)
    machine.an_annotator_removes(key=A, conditional=True)
    saves(machine, user="ben", at_once=False)
    machine.commit_batch(machine.pending[::-1])


def a_save_is_repeated_after_another_one(machine: StoreMachine) -> None:
    saves(machine)
    saves(machine, user="ben")
    machine.repeat(machine.saves[0])


def a_content_is_saved_again_after_its_revision_was_damaged(machine: StoreMachine) -> None:
    saves(machine)
    saves(machine, user="ben")
    machine.a_revision_that_is_not_the_newest_is_lost(key=A, missing=False)
    saves(machine, old=True)


def a_crash_and_the_disk_lose_one_label(machine: StoreMachine) -> None:
    saves(machine, B)
    saves(machine)
    saves(machine, user="ben", at_once=False)
    machine.crash(machine.pending, published=0, lost=True)


def a_crash_comes_between_two_publications(machine: StoreMachine) -> None:
    saves(machine)
    saves(machine, at_once=False)
    saves(machine, B, at_once=False)
    machine.crash(machine.pending, published=1, edited=[A])


def a_name_is_used_again(machine: StoreMachine, *, added: bool = True) -> None:
    saves(machine)
    edits(machine)
    machine.an_image_gives_its_name_to_another_patients(image="ct_a", added=added)
    saves(machine)


def a_name_is_used_again_by_another_program(machine: StoreMachine) -> None:
    a_name_is_used_again(machine, added=False)


def a_name_is_used_again_after_a_label_that_no_scan_has_seen(machine: StoreMachine) -> None:
    edits(machine)
    machine.an_image_gives_its_name_to_another_patients(image="ct_a", added=True)


def a_name_is_used_again_after_an_edit_of_the_document(machine: StoreMachine) -> None:
    machine.the_document_is_written()
    machine.another_program_reads_the_document()
    machine.another_program_writes_the_document(image="ct_a")
    machine.an_image_gives_its_name_to_another_patients(image="ct_a", added=True)


def an_image_is_replaced(machine: StoreMachine) -> None:
    saves(machine)
    machine.an_image_is_replaced_by_another_program(image="ct_a")


def an_added_image_is_replaced(machine: StoreMachine) -> None:
    machine.an_image_gives_its_name_to_another_patients(image="ct_a", added=True)
    machine.an_image_is_replaced_by_another_program(image="ct_a")


def the_document_is_written_twice(machine: StoreMachine, where: str) -> None:
    machine.the_document_is_written()
    machine.another_program_reads_the_document()
    machine.a_note_is_made(image="ct_b", number=1)
    machine.the_document_is_written_while_another_program_writes_it(image="ct_a", where=where)


def the_document_is_edited_before_it_is_replaced(machine: StoreMachine) -> None:
    the_document_is_written_twice(machine, "_remember")


def the_document_is_edited_after_it_was_replaced(machine: StoreMachine) -> None:
    the_document_is_written_twice(machine, "_keep_base")


def an_old_document_is_edited(machine: StoreMachine) -> None:
    machine.a_note_is_made(image="ct_a", number=0)
    machine.the_document_is_written()
    machine.another_program_reads_the_document()
    for number in (1, 2):
        machine.a_note_is_made(image="ct_a", number=number)
        machine.the_document_is_written()
    machine.another_program_writes_the_document(image="ct_b")


SCENES: tuple[Scene, ...] = (
    an_edit_is_saved_over,
    an_edit_is_removed,
    a_label_is_saved_while_a_scan_finds_that_its_file_is_gone,
    a_label_is_saved_while_a_scan_finds_an_edit,
    two_annotators_save_what_is_based_on_the_same_label,
    a_label_is_saved_before_it_is_removed_on_a_condition,
    a_save_is_repeated_after_another_one,
    a_content_is_saved_again_after_its_revision_was_damaged,
    a_crash_and_the_disk_lose_one_label,
    a_crash_comes_between_two_publications,
    a_name_is_used_again,
    a_name_is_used_again_by_another_program,
    a_name_is_used_again_after_a_label_that_no_scan_has_seen,
    a_name_is_used_again_after_an_edit_of_the_document,
    an_image_is_replaced,
    an_added_image_is_replaced,
    the_document_is_edited_before_it_is_replaced,
    the_document_is_edited_after_it_was_replaced,
    an_old_document_is_edited,
)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_what_went_wrong_once(scene: Scene) -> None:
    machine = StoreMachine()
    try:
        machine.open_the_folder()
        scene(machine)
        machine.all_is_quiet()
    finally:
        machine.teardown()


ODD = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, print_blob=False)
TestStore = StoreMachine.TestCase
TestStore.settings = settings(ODD, max_examples=6, stateful_step_count=20)


@pytest.mark.slow
class TestStoreAtLength(StoreMachine.TestCase):  # type: ignore[misc]
    """The same for minutes."""

    settings = settings(ODD, max_examples=400, stateful_step_count=40, derandomize=False)
