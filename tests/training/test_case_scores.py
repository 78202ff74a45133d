"""The scores of validation cases, the comparison of versions by them, and the page that shows them."""

import csv
import math

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from rayapp.imaging.volume import Volume
from rayapp.training.case_scores import CaseScore, compared, scores_of, write_scores
from rayapp.training.recipe import Evaluation
from rayapp.training.report_page import write_page

LABELS = {"liver": 1, "spleen": 2, "tumour": 3}
SPACING = (0.8, 1.3, 4.0)
AFFINE = np.array([[0, -1.3, 0, 3], [0, 0, 4, -7], [-0.8, 0, 0, 2], [0, 0, 0, 1.0]])


def ball(centre, radius, shape=(60, 40, 14)):
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((x - c) * s) ** 2 for x, c, s in zip(axes, centre, SPACING, strict=True)) < radius**2


def evaluation(truth, predicted, **given):
    volume = Volume(array=np.zeros((1, *truth.shape), np.float32), affine=AFFINE)
    return Evaluation(volume=volume, truth=truth, predictions={"dice": predicted}, name="ct_7", **given)


@pytest.fixture
def shifted():
    """A liver, found 4 mm off along the first axis, and a spleen that was missed."""
    truth = ball((28, 20, 7), 14).astype(np.uint8)
    predicted = ball((33, 20, 7), 14).astype(np.uint8)
    truth[ball((8, 8, 3), 5)] = 2
    return truth, predicted


def test_distances_are_millimetres_as_another_library_measures_them(shifted):
    truth, predicted = shifted
    liver = scores_of(evaluation(truth, predicted), LABELS)[0]
    surfaces = []
    for mask in (truth == 1, predicted == 1):
        image = SimpleITK.GetImageFromArray(mask.astype(np.uint8).transpose(2, 1, 0))
        image.SetSpacing(SPACING)
        away = SimpleITK.Abs(SimpleITK.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True))
        surfaces.append(
            (SimpleITK.GetArrayFromImage(away), SimpleITK.GetArrayFromImage(SimpleITK.LabelContour(image)) > 0)
        )
    (near_truth, of_truth), (near_predicted, of_predicted) = surfaces
    expected = max(np.percentile(near_truth[of_predicted], 95), np.percentile(near_predicted[of_truth], 95))
    assert liver.hd95 == pytest.approx(expected, abs=0.5)
    assert 3 < liver.hd95 <= 4.01


def test_volumes_are_millilitres_and_what_is_absent_from_both_is_left_out(shifted):
    truth, predicted = shifted
    liver, spleen = scores_of(evaluation(truth, predicted), LABELS)
    assert (liver.image, liver.measurement, liver.structure) == ("ct_7", "dice", "liver")
    assert liver.reference == pytest.approx((truth == 1).sum() * 0.8 * 1.3 * 4 / 1000, abs=1e-3)
    assert (spleen.dice, spleen.surface_dice, spleen.volume) == (0, 0, 0)
    assert math.isnan(spleen.hd95)


def test_the_same_mask_has_the_best_scores(shifted):
    truth, _ = shifted
    for score in scores_of(evaluation(truth, truth), LABELS):
        assert (score.dice, score.surface_dice, score.hd95) == (1, 1, 0)


def test_structures_that_nobody_looked_for_have_no_scores(shifted):
    truth, predicted = shifted
    found = scores_of(evaluation(truth, predicted, unsought=(2,)), LABELS)
    assert [score.structure for score in found] == ["liver"]


def test_where_the_size_of_voxels_is_unknown_there_are_no_millimetres(shifted):
    truth, predicted = shifted
    liver = scores_of(evaluation(truth, predicted, placed=False), LABELS)[0]
    assert liver.dice > 0.5
    assert all(math.isnan(value) for value in (liver.surface_dice, liver.hd95, liver.volume, liver.reference))


def test_scores_are_written_as_a_table(shifted, tmp_path):
    scores = scores_of(evaluation(*shifted), LABELS)
    write_scores(scores, tmp_path / "cases.csv")
    with (tmp_path / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["structure"] for row in rows] == ["liver", "spleen"]
    assert float(rows[0]["dice"]) == scores[0].dice
    assert rows[1]["hd95"] == ""


def score(image, dice, structure="liver"):
    return CaseScore(image=image, measurement="dice", structure=structure, dice=dice)


def test_versions_are_compared_image_by_image():
    before = [score(f"ct_{n}", 0.5 + 0.04 * n) for n in range(10)]
    after = [score(f"ct_{n}", 0.51 + 0.04 * n) for n in range(10)]
    found = compared(after, before)
    same = {"difference": 0.01, "low": 0.01, "high": 0.01, "better": 1.0, "images": 10}
    assert found == same, "however much images differ"
    assert compared(before, before)["better"] == 0.0
    noisy = compared(
        [score(f"ct_{n}", 0.5 + (-1) ** n * 0.1) for n in range(10)], [score(f"ct_{n}", 0.5) for n in range(10)]
    )
    assert noisy["low"] < 0 < noisy["high"]


def test_only_what_both_versions_were_measured_on_is_compared():
    found = compared([score("a", 0.9), score("b", 0.2)], [score("a", 0.8), score("c", 0.9)])
    assert (found["images"], found["difference"]) == (1, 0.1)
    assert compared([score("a", 0.9)], [score("c", 0.9)]) is None


def test_the_page_holds_everything_and_nothing_of_it_is_markup(tmp_path):
    picture = tmp_path / "worst-1.png"
    Image.new("RGB", (4, 3)).save(picture)
    write_page(
        tmp_path / "report.html",
        title="Training of <segmentation>",
        facts={"data": {"training": 7, "hash": "SHA256:abc"}},
        scores=[score("ct<1>", 0.8123), score("ct_2", 0.4)],
        reasons={"spacing": "1.5 mm, as most images have"},
        pictures={"ct_2": picture, "gone": tmp_path / "none.png"},
    )
    page = (tmp_path / "report.html").read_text()
    assert "<segmentation>" not in page
    assert "ct<1>" not in page
    for text in ("Training of &lt;segmentation&gt;", "SHA256:abc", "0.812", "1.5 mm, as most images have"):
        assert text in page
    assert page.index("ct_2") < page.index("ct&lt;1&gt;"), "the worst first"
    assert page.count("data:image/png;base64,") == 1
