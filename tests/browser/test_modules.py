"""Our modules alone, run by Node: the mask's decoder against the encoder, the placing of slices, and the texts."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rayapp.web
from rayapp.imaging import mask_codec
from tests.imaging.grids import labels

MODULES = Path(rayapp.web.__file__).parent / "ohif"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="no Node.js")


def run(script: str, given: Any) -> Any:
    """The result of the script, a function of the modules and of the given values."""
    program = f"""
        import * as mask from '{(MODULES / "mask.mjs").as_uri()}';
        import * as curves from '{(MODULES / "curves.mjs").as_uri()}';
        import * as grid from '{(MODULES / "grid.mjs").as_uri()}';
        import * as history from '{(MODULES / "history.mjs").as_uri()}';
        import * as server from '{(MODULES / "server.mjs").as_uri()}';
        import * as stored from '{(MODULES / "stored.mjs").as_uri()}';
        import * as strokes from '{(MODULES / "strokes.mjs").as_uri()}';
        import * as words from '{(MODULES / "words.mjs").as_uri()}';
        const given = JSON.parse(await new Response(process.stdin).text());
        const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer;
        let said;
        try {{ said = await ({script})(given); }} catch (error) {{ said = {{ error: error.message }}; }}
        console.log(JSON.stringify(said));
    """
    assert NODE is not None
    done = subprocess.run(
        [NODE, "--input-type=module", "-e", program],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


_DECODE = """async packed => {
    let held = null;
    for (const one of packed) held = await mask.decode(bytes(one), held);
    return { shape: held.shape, labels: Array.from(held.labels) };
}"""


def text(packed: bytes) -> str:
    return base64.b64encode(packed).decode()


@pytest.mark.parametrize("most", [1, 5, 255, 40_000])
def test_masks_come_out_as_they_went_in_also_as_changes(most: int):
    first = labels((17, 5, 9), most, np.uint16)
    second = first.copy()
    second[3:9, 1:4, 2:7] = labels((6, 3, 5), most, np.uint16)
    second[0, 0, 0] = 0
    said = run(_DECODE, [text(mask_codec.encode(first)), text(mask_codec.encode(second, first))])
    assert said["shape"] == list(first.shape)
    np.testing.assert_array_equal(np.reshape(said["labels"], first.shape, order="F"), second)
    unchanged = run(_DECODE, [text(mask_codec.encode(second)), text(mask_codec.encode(second, second))])
    assert unchanged["labels"] == said["labels"]


@pytest.mark.parametrize(
    ("packed", "told"),
    [
        (b"", "did not send a packed mask"),
        (b"RMSK" + bytes([2]) + bytes(60), "did not send a packed mask"),
        (mask_codec.encode(labels((4, 3, 5)))[:-1], "does not match"),
    ],
)
def test_what_is_no_mask_is_refused(packed: bytes, told: str):
    assert told in run(_DECODE, [text(packed)])["error"]


@pytest.mark.parametrize("most", [0, 1, 5, 255])
def test_a_mask_that_is_sent_is_read_as_it_was(most: int):
    array = labels((17, 5, 9), most, np.uint8) if most else np.zeros((17, 5, 9), np.uint8)
    script = "given => mask.toText(given.shape, Uint8Array.from(given.labels))"
    said = run(script, {"shape": array.shape, "labels": array.ravel(order="F").tolist()})
    np.testing.assert_array_equal(mask_codec.from_text(said, array.shape), array)


_SPLIT = """given => {
    const [before, screen, labels, drawn] = given.map(values => Uint8Array.from(values));
    const now = strokes.split(before, screen, labels, drawn);
    return [Array.from(now.labels), Array.from(now.strokes)];
}"""


def test_what_is_painted_while_an_answer_is_not_shown_yet_takes_nothing_of_the_answer_back():
    before = [0, 0, 0, 0, 1, 1, 254, 253]  # on the screen when it was written last
    screen = [0, 2, 254, 253, 1, 0, 2, 253]  # painted over since
    labels = [1, 1, 1, 0, 1, 1, 1, 1]  # with an answer that is not on the screen
    drawn = [0, 0, 0, 3, 4, 3, 1, 2]
    assert run(_SPLIT, [before, screen, labels, drawn]) == [[1, 2, 1, 0, 1, 0, 2, 1], [0, 0, 1, 2, 4, 3, 0, 2]]


_NAMED = "given => stored.named(given.names, Uint16Array.from(given.labels), ['liver', 'spleen'])"


@pytest.mark.parametrize(
    ("names", "labels", "said"),
    [
        ({}, [0, 1, 2, 7], {"liver": 1, "spleen": 2, "segment 7": 7}),
        ({"background": 0, "spleen": 1, "lesion": 4}, [0, 1, 2], {"spleen": 1, "lesion": 4, "segment 2": 2}),
        ({"liver": 1}, [0, 1, 255], {"liver": 1, "not annotated": 255}),
        ({"liver": 1, "last": 255}, [255], {"liver": 1, "last": 255}),
    ],
)
def test_every_value_of_a_label_gets_a_name_and_so_is_kept(names: dict, labels: list, said: dict):
    assert run(_NAMED, {"names": names, "labels": labels}) == said


def test_where_nobody_looked_is_saved_as_that():
    script = "given => Array.from(stored.unnamed(given.names, Uint8Array.from(given.labels)))"
    given = {"names": ["liver", "not annotated", "spleen"], "labels": [0, 1, 2, 3]}
    assert run(script, given) == [0, 1, 255, 3]
    assert run(script, {**given, "names": ["liver", "spleen", "lesion"]}) == [0, 1, 2, 3]


_COUNT = """async ({ shape, states }) => {
    const volumes = states.map(values => Uint8Array.from(values));
    const work = new history.History(shape, volumes[0]);
    const counts = [work.counts.slice(0, 4)];
    for (const volume of volumes.slice(1)) {
        work.add(volume, work.strokes, { group: '' });
        counts.push(work.counts.slice(0, 4));
    }
    for (const kind of ['undo', 'undo', 'redo']) {
        const edit = (kind === 'undo' ? work.done : work.undone).at(-1);
        work[kind](await work.open(edit, kind === 'undo' ? 'before' : 'after'));
        counts.push(work.counts.slice(0, 4));
    }
    return counts.map(one => Array.from(one));
}"""


def test_voxels_are_counted_from_the_changed_boxes_alone_also_when_undone():
    rng = np.random.default_rng(3)
    states = [rng.integers(0, 4, 60) for _ in range(3)]
    counts = [np.bincount(states[at], minlength=4).tolist() for at in (0, 1, 2, 1, 0, 1)]
    assert run(_COUNT, {"shape": [3, 4, 5], "states": [state.tolist() for state in states]}) == counts


_OUTLINE = """({ worlds, image }) => {
    const back = grid.inverse(image.affine);
    const labelmap = { indexAt: world => grid.indexInside(back, image.shape, world) };
    return curves.outline({ data: { contour: { polyline: worlds } } }, labelmap);
}"""


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_curve_lies_between_voxel_centres_on_one_slice(axis: int):
    turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    flat = np.stack([4.3 + 3 * np.cos(turns), 5.1 + 3.3 * np.sin(turns)], axis=1)
    drawn = np.insert(flat, axis, 6.02, axis=1)
    worlds = (np.column_stack([drawn, np.ones(24)]) @ GRID.T)[:, :3] * [-1, -1, 1]
    image = {"shape": (17, 19, 18), "affine": GRID.tolist()}
    said = np.array(run(_OUTLINE, {"worlds": [*worlds.tolist(), worlds[-1].tolist()], "image": image}))
    assert said.shape == (24, 3)
    assert (said[:, axis] == 6).all()
    np.testing.assert_allclose(np.delete(said, axis, axis=1), flat, atol=6e-4)


def test_a_curve_may_go_to_the_images_border_and_no_further():
    image = {"shape": (17, 19, 18), "affine": np.eye(4).tolist()}
    square = np.array([[-0.5, -0.5, 3], [16.5, -0.5, 3], [16.5, 18.5, 3], [-0.5, 18.5, 3]])
    for curve, inside in ((square, True), (square + np.array([0.02, 0, 0]), False)):
        worlds = (curve * [-1, -1, 1]).tolist()
        said = run(_OUTLINE, {"worlds": worlds, "image": image})
        assert said == (curve.tolist() if inside else None)


_PLACE = """({ planes, image }) => {
    const places = grid.placed(planes, image);
    const flat = Array.from({ length: image.shape.reduce((a, b) => a * b) }, (_, at) => at);
    const slices = places.map(place => new Array(place.rows * place.columns));
    grid.scatter(flat, places, slices);
    const again = new Array(flat.length);
    grid.gather(slices, places, again);
    const [width, height, depth] = image.shape;
    const held = flat.map(at => [at % width, Math.floor(at / width) % height, Math.floor(at / width / height)])
      .map((voxel, at) => slices[grid.sliceWith(places, image.shape, voxel)].includes(at));
    return { slices, same: again.every((value, at) => value === at), held: held.every(Boolean) };
}"""


def planes_of(shape: tuple[int, int, int], affine: np.ndarray) -> list[dict[str, Any]]:
    """Slices along i of rows along k backwards, which is none of the orders that one would think of."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    right, down = lps[:3, 1], -lps[:3, 2]
    return [
        {
            "imagePositionPatient": (lps @ [i, 0, shape[2] - 1, 1])[:3].tolist(),
            "rowCosines": (right / np.linalg.norm(right)).tolist(),
            "columnCosines": (down / np.linalg.norm(down)).tolist(),
            "columnPixelSpacing": float(np.linalg.norm(right)),
            "rowPixelSpacing": float(np.linalg.norm(down)),
            "columns": shape[1],
            "rows": shape[2],
        }
        for i in reversed(range(shape[0]))
    ]


GRID = np.array([[0.0, -1.6, 0.0, 20.0], [1.5, 0.0, 0.0, -7.0], [0.0, 0.0, 2.4, 4.0], [0, 0, 0, 1]])


def test_slices_are_placed_by_their_positions_alone():
    shape = (4, 3, 5)
    said = run(_PLACE, {"planes": planes_of(shape, GRID), "image": {"shape": shape, "affine": GRID.tolist()}})
    flat = np.arange(60).reshape(shape, order="F")
    expected = [flat[i, :, ::-1].T.ravel().tolist() for i in reversed(range(shape[0]))]
    assert said == {"slices": expected, "same": True, "held": True}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"imagePositionPatient": [0.3, 0.2, 0.1]}, "do not lie on"),
        ({"imagePositionPatient": [900.0, 7.0, 4.0]}, "do not lie on|outside"),
        ({"columns": 2}, "the viewer shows"),
    ],
)
def test_slices_that_are_not_the_images_are_refused(change: dict[str, Any], told: str):
    shape = (4, 3, 5)
    planes = [{**plane, **change} for plane in planes_of(shape, GRID)]
    said = run(_PLACE, {"planes": planes, "image": {"shape": shape, "affine": GRID.tolist()}})
    assert any(part in said["error"] for part in told.split("|"))


LITERAL = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"|`[^`\n]*`")
COMMENT = re.compile(r"/\*.*?\*/|(?<!:)//[^\n]*", re.DOTALL)


@pytest.mark.parametrize("path", sorted(MODULES.glob("*.mjs")), ids=lambda path: path.name)
def test_texts_for_people_are_in_words_alone(path: Path):
    literals = LITERAL.findall(COMMENT.sub("", path.read_text()))
    sentences = [text for text in literals if re.search("[a-z]+ [a-z]+", text)]
    assert (sentences != []) == (path.name == "words.mjs"), sentences


_STREAMED = """async ({ connections }) => {
    const asked = [];
    const streamEvents = { end: 'end', problem: 'problem' };
    const config = { routes: { interaction_stream: '/{interaction_id}' }, streamEvents };
    globalThis.window = { config: { rayapp: config } };
    globalThis.sessionStorage = { getItem: () => null };
    globalThis.setTimeout = done => queueMicrotask(done);
    globalThis.fetch = async (url, { headers, body }) => {
        const texts = connections[asked.length];
        asked.push({ last: headers['Last-Event-ID'] ?? null, ...JSON.parse(body) });
        if (!texts) throw new TypeError('away');
        return new Response(new ReadableStream({ start(to) {
            texts.forEach(text => to.enqueue(new TextEncoder().encode(text)));
        }, pull: to => to.error(new TypeError('broken')) }));
    };
    const masks = [];
    let error = null;
    try {
        const work = new server.Interaction('i', 'm');
        for await (const { mask } of work.stream({ clicks: {} }, new AbortController().signal)) {
            masks.push(Array.from(mask.labels));
        }
    } catch (caught) {
        error = caught.message;
    }
    return { masks, error, lasts: asked.map(one => one.last), requests: new Set(asked.map(one => one.request)).size };
}"""


def _event(number: int, labels: np.ndarray, onto: np.ndarray | None = None) -> str:
    interaction = {"mask": f"{number}", "onto": "" if onto is None else f"{number - 1}"}
    data = {"params": {"interaction": interaction}, "mask": text(mask_codec.encode(labels, onto))}
    return f"event: mask\ndata: {json.dumps(data)}\nid: {number}\n\n"


def test_an_answer_that_breaks_off_is_gone_on_with_behind_the_last_mask():
    coarse, fine = np.zeros((3, 2, 2), np.uint8), np.zeros((3, 2, 2), np.uint8)
    coarse[1, 0, 0], fine[2, 1, 1] = 1, 1
    first, second = _event(1, coarse), _event(2, fine, coarse)
    whole = {"masks": [each.ravel(order="F").tolist() for each in (coarse, fine)], "error": None, "requests": 1}
    end = "event: end\ndata: {}\n\n"
    said = run(_STREAMED, {"connections": [[first], None, [second], [end]]})
    assert said == {**whole, "lasts": [None, "1", "1", "2"]}
    said = run(_STREAMED, {"connections": [[first]]})
    assert (said["masks"], said["lasts"]) == (whole["masks"][:1], [None, "1", "1", "1"])
    assert said["error"] == "the connection was lost before the last mask"
    assert run(_STREAMED, {"connections": []})["lasts"] == [None]


def test_no_two_buttons_have_one_key():
    said = run("() => Object.values(words.BUTTONS).map(button => button.key).filter(Boolean)", None)
    assert len(said) == len(set(said)) > 10
