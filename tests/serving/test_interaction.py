"""The fold over the click log, against a plain list with an end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rayapp.errors import Conflict, NotFound
from rayapp.serving.interaction import PROMPT, REDO, UNDO, WITHDRAW, Interaction, opened_at, opening_event

OPENED = replace(opening_event(image_id="ct", model="m", user="ann", client_id=None, ts=1.0), seq=7)

points = st.tuples(*[st.integers(0, 9)] * 3)
prompts = st.fixed_dictionaries(
    {"clicks": st.dictionaries(st.sampled_from(["liver", "spleen", "background"]), st.lists(points, min_size=1))},
    optional={"roi": st.none() | st.just([0, 1, 2, 3, 4, 5]), "label": st.sampled_from("ab"), "reset": st.booleans()},
)
steps = st.lists(st.tuples(st.just(PROMPT), prompts) | st.tuples(st.sampled_from([UNDO, REDO]), st.just({})))


def folded(said: list) -> Interaction:
    at = Interaction.of(OPENED)
    for number, (kind, prompt) in enumerate(said, start=8):
        at = at.after(replace(at.event(kind, prompt, request=str(number), client_id=None, ts=1.0), seq=number))
    return at


@given(steps)
def test_any_prompts_undos_and_redos_leave_what_a_list_and_its_cursor_would(said: list):
    timeline: list[dict] = []
    cursor = 0
    for kind, prompt in said:
        if kind == PROMPT:
            timeline, cursor = [*timeline[:cursor], prompt], cursor + 1
        else:
            cursor = max(0, cursor - 1) if kind == UNDO else min(len(timeline), cursor + 1)
    at = folded(said)
    assert [{k: v for k, v in prompt.items() if k != "step"} for prompt in at.done] == timeline[:cursor]
    assert (len(at.done), len(at.undone)) == (cursor, len(timeline) - cursor)
    since = max((n for n in range(cursor) if timeline[n].get("reset")), default=0)
    in_force = timeline[since:cursor]
    clicked = [(name, tuple(points)) for prompt in in_force for name, points in prompt["clicks"].items()]
    for name in ("liver", "spleen", "background"):
        clicks = [
            point
            for number, (own, points) in enumerate(clicked)
            for point in points
            if own == name and not any(point in later for _, later in clicked[number + 1 :])
        ]
        assert at.params.get(name, []) == clicks, "the last of several clicks on a voxel counts"
    for name in ("roi", "label"):
        given_last = [prompt[name] for prompt in in_force if name in prompt]
        assert at.params.get(name, "never") == (given_last[-1] if given_last else "never")
    assert at.step == 7 + len(said)


def test_strokes_tell_how_many_clicks_were_there_before_them():
    click, stroke = {"liver": [[1, 1, 1]]}, {"marks": "packed", "label": "liver"}
    first = {"clicks": {**click, "spleen": [[3, 3, 3]]}}
    at = folded([(PROMPT, first), (PROMPT, stroke), (PROMPT, {"clicks": {"background": [[3, 3, 3]]}})])
    (strokes,) = at.params["marks"]
    assert strokes == {"label": "liver", "packed": "packed", "after": {"liver": 1, "spleen": 0, "background": 0}}
    (strokes,) = folded([(PROMPT, stroke), (PROMPT, {"clicks": click})]).params["marks"]
    assert strokes == {"label": "liver", "packed": "packed"}


@given(steps, st.data())
def test_events_that_were_sent_again_count_once(said: list, data: st.DataObject):
    again = data.draw(st.lists(st.sampled_from(range(len(said))), max_size=3)) if said else []
    at = whole = folded(said)
    for offset, number in enumerate(again):
        kind, prompt = said[number]
        event = at.event(kind, prompt, request=str(8 + number), client_id=None, ts=2.0)
        at = at.after(replace(event, seq=1000 + offset))
    assert (at.done, at.undone) == (whole.done, whole.undone)


def test_a_withdrawn_prompt_is_gone_and_those_around_it_stay():
    at = folded([(PROMPT, {"label": "a"}), (PROMPT, {"label": "b"}), (PROMPT, {"slice": 1})])
    event = at.event(WITHDRAW, {"withdrawn": 9}, request="w", client_id=None, ts=1.0)
    assert at.after(replace(event, seq=11)).params == {"label": "a", "slice": 1}


def refused(at: Interaction, step: int, seq: int) -> Interaction:
    event = at.event(WITHDRAW, {"withdrawn": step}, request=f"w{step}", client_id=None, ts=1.0)
    return at.after(replace(event, seq=seq))


def test_a_prompt_that_was_refused_leaves_what_can_be_redone():
    at = folded([(PROMPT, {"label": "a"}), (PROMPT, {"label": "b"}), (UNDO, {}), (PROMPT, {"label": "c"})])
    at = refused(at, 11, 12)
    assert (at.params, len(at.undone)) == ({"label": "a"}, 1)
    again = at.after(replace(at.event(REDO, {}, request="r", client_id=None, ts=1.0), seq=13))
    assert again.params == {"label": "b"}


@pytest.mark.parametrize("order", [(10, 11), (11, 10)])
def test_of_several_prompts_that_were_refused_none_leaves_less_to_redo(order: tuple[int, int]):
    at = folded([(PROMPT, {"label": "a"}), (UNDO, {}), (PROMPT, {"label": "c"}), (PROMPT, {"label": "d"})])
    for number, step in enumerate(order):
        at = refused(at, step, 20 + number)
    assert at.done == ()
    assert [prompt["label"] for prompt in at.undone] == ["a"]


def test_a_prompt_that_was_refused_late_leaves_nothing_to_redo_behind_one_that_counts():
    at = folded([(PROMPT, {"label": "a"}), (UNDO, {}), (PROMPT, {"label": "c"}), (PROMPT, {"label": "d"})])
    at = refused(at, at.step - 1, 20)
    assert [prompt["label"] for prompt in at.done] == ["d"]
    assert at.undone == ()


def test_a_prompt_that_was_undone_before_it_was_refused_cannot_be_redone():
    at = folded([(PROMPT, {"label": "a"}), (UNDO, {}), (PROMPT, {"label": "c"}), (UNDO, {})])
    at = refused(at, 10, 12)
    assert [prompt["label"] for prompt in at.undone] == ["a"]


@given(
    st.lists(st.sampled_from([PROMPT, UNDO, REDO]) | st.integers(0, 9), max_size=12).filter(lambda said: PROMPT in said)
)
@example([PROMPT, UNDO, PROMPT, 0, 0])
def test_a_refused_prompt_never_comes_back_and_discards_nothing(said: list[str | int]):
    """A number refuses one of the prompts so far, in any order with undo, redo and other prompts."""
    at, counts, refused_steps = Interaction.of(OPENED), list[int](), set[int]()
    for seq, kind in enumerate(said, start=8):
        if isinstance(kind, int):
            if counts:
                step = counts.pop(kind % len(counts))
                refused_steps.add(step)
                at = refused(at, step, seq)
            continue
        at = at.after(replace(at.event(kind, {}, request=str(seq), client_id=None, ts=1.0), seq=seq))
        counts += [seq] if kind == PROMPT else []
        kept = [prompt["step"] for prompt in (*at.done, *at.undone[::-1])]
        assert kept == sorted(set(kept) - refused_steps)
    kept = [prompt["step"] for prompt in (*at.done, *at.undone[::-1])]
    assert kept == sorted(set(kept) - refused_steps)
    discarded = set(counts) - set(kept)
    assert all(any(newer > step for newer in counts) for step in discarded), "only a prompt that counts discards others"


def test_its_turns_are_the_prompts_one_by_one_with_the_last_box_and_no_mask_to_start_from():
    at = folded(
        [
            (PROMPT, {"clicks": {"a": [[9, 9, 9]]}, "label": "a"}),
            (PROMPT, {"clicks": {"background": [[1, 2, 3]]}, "roi": [0, 1, 2, 3, 4, 5], "reset": True, "label": "a"}),
            (PROMPT, {"clicks": {"a": [[4, 5, 6]]}, "roi": [1, 2, 3, 4, 5, 6], "start": "mask"}),
            (PROMPT, {"curves": [[[1, 1, 1], [1, 2, 1], [2, 2, 1]]], "marks": "strokes"}),
            (PROMPT, {"clicks": {"a": [[7, 8, 9]]}}),
            (UNDO, {}),
        ]
    )
    assert at.turns == (
        {"label": "a", "background": [[1, 2, 3]]},
        {"roi": [1, 2, 3, 4, 5, 6], "a": [[4, 5, 6]]},
        {
            "curves": [{"label": None, "points": [[1, 1, 1], [1, 2, 1], [2, 2, 1]]}],
            "marks": [{"label": None, "packed": "strokes"}],
        },
    )
    assert at.params["start"] == "mask"


def test_events_of_others_are_not_its_own():
    at = Interaction.of(OPENED)
    mine = at.event(PROMPT, {"label": "a"}, request="1", client_id=None, ts=1.0)
    other = replace(mine, payload={**mine.payload, "interaction": "f" * 16})
    assert at.own([mine, other, replace(mine, user="bob"), replace(mine, payload={})]) == [mine]


def test_nothing_to_undo_or_redo_is_a_conflict_that_says_so():
    for kind in (UNDO, REDO):
        with pytest.raises(Conflict, match=kind):
            folded([]).check(kind)
    folded([(PROMPT, {"label": "a"})]).check(UNDO)
    folded([(PROMPT, {"label": "a"}), (UNDO, {})]).check(REDO)


@pytest.mark.parametrize("name", ["", "7", "7-", "-0123456789abcdef", "9" * 40 + "-0123456789abcdef", "7-../../x", "é"])
def test_what_is_no_id_is_not_found(name: str):
    with pytest.raises(NotFound):
        opened_at(name)


def test_an_id_leads_to_the_event_that_opened_it():
    assert opened_at(Interaction.of(OPENED).id) == 7


def test_a_size_counts_for_the_clicks_made_until_it_was_chosen():
    at = folded(
        [
            (PROMPT, {"clicks": {"foreground": [(1, 2, 3)]}}),
            (PROMPT, {"size": 1}),
            (PROMPT, {"clicks": {"foreground": [(2, 2, 3)], "background": [(9, 9, 9)]}}),
            (PROMPT, {"size": -1}),
            (PROMPT, {"size": -2}),
        ]
    )
    assert at.params["size"] == {"1": 1, "2": -2}
    assert folded([(PROMPT, {"size": 1}), (PROMPT, {"reset": True, "label": "liver"})]).params == {"label": "liver"}
