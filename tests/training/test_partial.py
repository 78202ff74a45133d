"""What was not annotated teaches nothing: unseen voxels and slices, structures that nobody looked for."""

import math

import nibabel
import numpy as np
import pytest
import torch

from rayapp.errors import BadRequest
from rayapp.imaging.unseen import UNSEEN
from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.cases import Case, read_pair
from rayapp.training.click_simulation import corrections, drawn_regions
from rayapp.training.deepgrow_train import foreground, structures
from rayapp.training.feed import batch_of
from rayapp.training.metrics import dice
from rayapp.training.options import Options
from rayapp.training.partial import taught
from rayapp.training.recipe import evaluation_of
from rayapp.training.train_task import Pair

LABELS = {"liver": 1, "spleen": 2}
SHAPE = (9, 7, 5)
AFFINE = np.array([[0, -1.5, 0, 3], [0, 0, 4, -7], [-1, 0, 0, 2], [0, 0, 0, 1.0]])


@pytest.fixture
def pair(tmp_path):
    """Writes an image and a label map of these values and gives them as a pair with this info."""

    def write(labels, **info):
        image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, AFFINE), tmp_path / "image.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), AFFINE), tmp_path / "label.nii.gz")
        return Pair(image=tmp_path / "image.nii.gz", label=tmp_path / "label.nii.gz", info=info)

    return write


@pytest.fixture
def labels():
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[1:5, 2:4, 1:4], drawn[6:8, 1:3, 2:5] = 1, 2
    return drawn


def test_a_voxel_with_the_value_255_was_not_looked_at(pair, labels):
    labels[:, 5:] = UNSEEN
    np.testing.assert_array_equal(read_pair(pair(labels), LABELS).labels, labels)
    np.testing.assert_array_equal(read_pair(pair(labels), None).labels, labels)


def test_a_mask_of_0_and_255_is_a_structure_where_any_value_is_one(pair, labels):
    mask = np.where(labels, 255, 0)
    np.testing.assert_array_equal(read_pair(pair(mask), None).labels, mask)
    with pytest.raises(BadRequest, match="value 255"):
        read_pair(pair(mask), LABELS)


@pytest.mark.parametrize("axis", range(3))
def test_slices_that_were_not_annotated_are_unseen(pair, labels, axis):
    read = read_pair(pair(labels, annotated_slices={"axis": axis, "slices": [2, 3]}), LABELS).labels
    np.testing.assert_array_equal(read.take([2, 3], axis), labels.take([2, 3], axis))
    assert (np.delete(read, [2, 3], axis) == UNSEEN).all()


@pytest.mark.parametrize(
    "said", [3, {"axis": 3, "slices": [0]}, {"axis": 2, "slices": [5]}, {"axis": 2}, {"axis": 0, "slices": ["x"]}]
)
def test_annotated_slices_that_are_none_are_refused_with_an_example(pair, labels, said):
    with pytest.raises(BadRequest, match=r'image .* "annotated_slices" .* must be such as'):
        read_pair(pair(labels, annotated_slices=said), LABELS)


def test_structures_that_nobody_looked_for_are_known(pair, labels):
    labels[labels == 2] = 0
    assert read_pair(pair(labels), LABELS).unsought == ()
    assert read_pair(pair(labels, looked_for=["Liver"]), LABELS).unsought == (2,)
    assert read_pair(pair(labels, looked_for=["liver", "spleen"]), LABELS).unsought == ()
    assert read_pair(pair(labels, looked_for=[]), LABELS).unsought == (2,), "what is there was looked for"
    with pytest.raises(BadRequest, match='"looked_for" of its info must be a list'):
        read_pair(pair(labels, looked_for="liver"), LABELS)


def test_a_label_is_mapped_by_the_names_of_its_info(pair, labels):
    names = [{"name": "spleen", "idx": 1}, {"name": "cyst", "idx": 2}]
    read = read_pair(pair(labels, label_info=names), LABELS).labels
    np.testing.assert_array_equal(read, np.where(labels == 1, 2, 0))


def test_names_of_an_info_that_name_no_structure_change_nothing(pair, labels):
    names = [{"name": "Segment_1", "idx": 1}, {"name": "Segment_2", "idx": 2}]
    np.testing.assert_array_equal(read_pair(pair(labels, label_info=names), LABELS).labels, labels)


@pytest.fixture
def logits():
    return torch.randn((2, 3, *SHAPE), generator=torch.Generator().manual_seed(3), requires_grad=True)


def gradient(loss, logits, labels, unsought):
    counted, known = taught(logits, labels, unsought)
    (found,) = torch.autograd.grad(loss(counted, known[:, None]), logits)
    return found


@pytest.fixture
def loss():
    return BasicTrainTask(labels=LABELS, description="", options=Options()).loss()


def test_unseen_voxels_teach_nothing_and_others_the_same_as_without_them(logits, loss, labels):
    seen = torch.from_numpy(np.stack([labels, labels]))
    partial = seen.clone()
    partial[:, :, 4:] = UNSEEN
    found = gradient(loss, logits, partial, [(), ()])
    assert (found[:, :, :, 4:] == 0).all()
    assert (found[:, :, :, :4] != 0).any()
    other = torch.where(partial == UNSEEN, torch.randint(0, 3, seen.shape, dtype=torch.uint8), seen)
    assert not torch.equal(found, gradient(loss, logits, other, [(), ()]))


def test_a_structure_that_nobody_looked_for_is_not_taught_to_be_absent(logits, loss, labels):
    known = torch.from_numpy(np.where(labels == 2, 0, labels)).expand(2, *SHAPE)
    found = gradient(loss, logits, known, [(2,), ()])
    background = known[0] == 0
    pushes = found[0].movedim(0, -1)[background]
    share = torch.softmax(logits[0].detach(), 0).movedim(0, -1)[background]
    # background and spleen are pushed alike, by their own shares: only liver is ruled out there
    torch.testing.assert_close(pushes[:, 0] / share[:, 0], pushes[:, 2] / share[:, 2], rtol=1e-3, atol=1e-6)
    assert (pushes[:, 1] > 0).all()


def test_without_anything_open_a_loss_sees_what_it_saw(logits, labels):
    known = torch.from_numpy(np.stack([labels, labels]))
    counted, same = taught(logits, known, [(), ()])
    assert counted is logits
    assert same is known


def test_open_voxels_and_structures_do_not_count_in_scores(labels):
    predicted = labels.copy()
    predicted[:, 5:] = 1
    truth = labels.copy()
    truth[:, 5:] = UNSEEN
    assert dice(predicted, truth, 2) == [1.0, 1.0]
    scores = dice(predicted, truth, 2, unsought=(2,))
    assert scores[0] == 1.0
    assert math.isnan(scores[1])


def test_a_validation_leaves_out_what_nobody_looked_for(labels):
    task = BasicTrainTask(labels=LABELS, description="", options=Options())
    truth = torch.from_numpy(np.where(labels == 2, 0, labels))
    evaluation = evaluation_of(torch.zeros(1, *SHAPE), truth, {"dice": labels}, (2,))
    assert task.tally(iter([evaluation])).means() == {"dice": {"mean": 1.0, "liver": 1.0}}


def test_simulated_clicks_correct_nothing_where_nobody_looked(labels):
    truth = labels.copy()
    truth[:, 4:] = UNSEEN
    predicted = np.where(truth == UNSEEN, 1, truth).astype(np.uint8)
    rng = np.random.default_rng(0)
    assert list(drawn_regions(truth, predicted, 3, count=3, rng=rng)) == []
    assert list(corrections(truth, predicted, 3, count=3, rng=rng)) == []


def test_deepgrow_keeps_unseen_voxels_unseen_and_makes_no_structure_of_them(labels):
    labels[0] = UNSEEN
    assert structures(torch.from_numpy(labels)) == [1, 2]
    truth = foreground(torch.from_numpy(labels), 2).numpy()
    np.testing.assert_array_equal(truth, np.where(labels == UNSEEN, UNSEEN, labels == 2))


def test_a_batch_says_of_each_image_what_is_open(labels):
    example = (torch.zeros(1, *SHAPE), torch.from_numpy(labels))
    assert batch_of([example, example]).unsought == ()
    assert batch_of([example, example], [(2,), ()]).unsought == [(2,), ()]
    assert Case(image=example[0], labels=example[1]).unsought == ()
