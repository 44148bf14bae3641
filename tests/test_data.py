"""Batches and augmentation: which images an epoch takes, and how they are transformed."""

import pytest
import torch
import torch.nn.functional as F
from conftest import DIGITS, FEWEST, read_metrics, run, same
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine as affine_one_by_one

from data import Dataset, Split, TrainLoader, affine, random_affine


def numbered(count):
    """`count` images and labels; every pixel of an image is its label, or the last byte of it."""
    labels = torch.arange(count)
    return labels.byte().view(-1, 1, 1, 1).expand(-1, 1, 28, 28), labels


def test_batches_hold_every_image_once_in_a_new_order_each_epoch():
    torch.manual_seed(0)
    loader, orders = TrainLoader(*numbered(103), 10), []
    for epoch in (1, 2, 3):
        batches = list(loader.batches(epoch))
        assert [len(index) for index, _, _ in batches] == [10] * 10 + [3]
        for index, images, labels in batches:
            assert torch.equal(labels, index) and images.shape == (len(index), 1, 28, 28)
            torch.testing.assert_close(images[:, 0, 5, 5], index / 255)
        orders.append([int(label) for _, _, labels in batches for label in labels])
        assert sorted(orders[-1]) == list(range(103))
    assert orders[0] != orders[1] != orders[2]


def test_the_first_epoch_takes_its_share_at_random_and_later_ones_30_percent_of_theirs_and_the_hardest():
    """100 of 100,000 images: 30 random ones are hardly ever among the hardest."""
    torch.manual_seed(0)
    count, drawn, loader = 100_000, [], TrainLoader(*numbered(100_000), 64, first_share=0.2, later_share=0.001)
    ranks = torch.randperm(count)  # 0 is the hardest
    loader.hardness = 1.0 / (1 + ranks)
    first = ranks[loader.select(1)]
    assert len(first.unique()) == len(first) == 20_000 and abs(first.float().mean() / count - 0.5) < 0.01
    for epoch in (2, 3):
        selected = ranks[loader.select(epoch)].tolist()
        assert len(set(selected)) == len(selected) == 100
        hardest, others = (list(filter(test, selected)) for test in (lambda n: n < 70, lambda n: n >= 70))
        assert len(hardest) == 70 and min(others) > 200
        assert abs(sum(others) / 30 / count - 0.5) < 0.2
        assert hardest != sorted(hardest) and max(map(selected.index, others)) > 80 > min(map(selected.index, hardest))
        drawn.append(set(others))
    assert not drawn[0] & drawn[1]
    loader.hardness.zero_()  # all are equal: a file may be sorted by class
    assert abs(loader.select(2).float().mean() / count - 0.5) < 0.1


def test_the_hardness_of_an_image_is_its_loss_over_the_mean_of_its_batch():
    loader = TrainLoader(*numbered(8), 4)
    loader.record(torch.tensor([6, 1, 3]), torch.tensor([4.0, 1.0, 1.0]))
    loader.record(torch.tensor([3, 7]), torch.tensor([0.03, 0.01]))
    loader.record(torch.tensor([0, 2]), torch.zeros(2))
    assert loader.hardness.tolist() == pytest.approx([0, 0.5, 0, 1.5, 0, 0, 2, 0.5])
    loader.memory = 0.75
    loader.record(torch.tensor([6, 7]), torch.tensor([3.0, 1.0]))
    assert loader.hardness[[3, 6, 7]].tolist() == pytest.approx([1.5, 0.75 * 2 + 0.25 * 1.5, 0.75 * 0.5 + 0.25 * 0.5])


@pytest.mark.parametrize(("first", "later"), [(1.0, 1.0), (0.8, 0.2), (1e-9, 1.0), (1.0, 1e-9), (0.11, 0.9)])
@pytest.mark.parametrize("fewest", [0, 60, 1000])
def test_a_run_takes_its_shares_or_in_their_proportion_the_fewest_images_evenly(monkeypatch, first, later, fewest):
    shares, selected = (first, later, later), []
    for least in (0, fewest):
        monkeypatch.setattr(TrainLoader, "FEWEST", least)
        torch.manual_seed(0)
        loader = TrainLoader(*numbered(50), 9, 3, first, later)
        loader.hardness = torch.rand(50)
        selected.append([torch.cat(loader.indices(epoch)) for epoch in (1, 2, 3)])
    assert same(*selected) == (fewest <= 50 * sum(shares)) and loader.steps(0) == 0
    for epoch, (share, index) in enumerate(zip(shares, selected[1]), 1):
        times = index.bincount(minlength=50)
        assert times.sum() == max(1, round(max(50 * sum(shares), fewest) * share / sum(shares)))
        assert times.max() - times.min() <= 1
        assert loader.steps(epoch) == loader.steps(epoch - 1) + -(-len(index) // 9)


def test_few_images_train_a_net_to_97_percent(monkeypatch, tmp_path):
    monkeypatch.setattr(TrainLoader, "FEWEST", FEWEST)
    assert run("--recipe", "fast", *DIGITS, "--target", "none", "--threads", 1, "--out", tmp_path) == 0
    assert read_metrics(tmp_path)["final_test_accuracy"] >= 97


@pytest.mark.parametrize("margin", [0, 3])
def test_affine_equals_torchvision_image_by_image_and_a_margin_leaves_the_central_part(margin):
    torch.manual_seed(0)
    images, uniform = F.pad(torch.rand(20, 1, 20, 20), (4, 4, 4, 4)), torch.rand(5, 20) * 2 - 1
    angle, scale, shear = 20 * uniform[0], 1 + 0.2 * uniform[3], 10 * uniform[4]
    translate = (3 * uniform[1:3]).round()  # torchvision shifts by whole pixels only
    ours, central = affine(images, angle, translate, scale, shear, margin), slice(margin, 28 - margin)
    for i, image in enumerate(images):
        amounts = angle[i].item(), translate[:, i].tolist(), scale[i].item(), [shear[i].item(), 0.0]
        theirs = affine_one_by_one(image, *amounts, interpolation=InterpolationMode.BILINEAR)
        torch.testing.assert_close(ours[i], theirs[:, central, central], rtol=0, atol=1e-4)


def test_random_amounts_fill_the_ranges_of_their_settings_independently_of_each_other(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("data.affine", lambda images, *amounts: amounts)
    ranges, images = {"rotation": 20.0, "translate": 0.1, "scale": 0.2, "shear": 15.0}, torch.zeros(2000, 1, 28, 28)
    angle, translate, scale, shear, margin = random_affine(images, **ranges, margin=3)
    drawn = torch.stack([angle, *translate, scale - 1, shear]) / torch.tensor([20.0, 2.8, 2.8, 0.2, 15.0])[:, None]
    assert drawn.abs().max() < 1.001 and drawn.amin(1).max() < -0.98 and drawn.amax(1).min() > 0.98
    assert drawn.mean(1).abs().max() < 0.1 and drawn.std(1).sub(3**-0.5).abs().max() < 0.05  # uniform
    assert (torch.corrcoef(drawn) - torch.eye(5)).abs().max() < 0.1 and margin == 3


def test_a_dataset_moves_with_all_its_splits_and_is_evaluated_on_held_out_images_if_there_are_any():
    train, test, holdout = (Split(*numbered(count)) for count in (30, 20, 10))
    plain, held = (Dataset("name", "sum", train, test, held_out) for held_out in (None, holdout))
    assert plain.evaluation is test and held.evaluation is holdout
    for dataset in (plain, held):
        moved = dataset.to("meta")
        assert moved[:2] == ("name", "sum") and (moved.holdout is None) == (dataset.holdout is None)
        assert all(tensor.device.type == "meta" for split in filter(None, moved[2:]) for tensor in split)
