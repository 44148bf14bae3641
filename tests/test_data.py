"""Batches and augmentation: every image once, and transformed as torchvision transforms it."""

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine as affine_one_by_one

import data
from data import Dataset, Loader, RandomAffine, Split, TrainLoader, affine


def numbered(count):
    """`count` images and labels; every pixel of an image is its label."""
    labels = torch.arange(count)
    return labels.byte().view(-1, 1, 1, 1).expand(-1, 1, 28, 28), labels


def test_shuffled_batches_give_every_image_once_in_a_new_order_each_epoch():
    torch.manual_seed(0)
    loader, epochs = TrainLoader(*numbered(103), 10), []
    for _ in range(3):
        batches, count = [], len(loader)
        for images, labels in loader:
            loader.record(torch.ones(len(labels)))
            batches.append((images, labels))
        assert len(batches) == count == 11
        for images, labels in batches:
            assert images.dtype == torch.float32 and images.shape == (len(labels), 1, 28, 28)
            torch.testing.assert_close(images[:, 0, 5, 5], labels / 255)
        epochs.append(torch.cat([labels for _, labels in batches]))
        assert torch.equal(epochs[-1].sort().values, torch.arange(103))
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_unshuffled_batches_keep_the_order_and_the_uneven_tail():
    loader = Loader(*numbered(103), 50)
    for _ in range(2):
        batches = [labels for _, labels in loader]
        assert [len(labels) for labels in batches] == [50, 50, 3]
        assert torch.equal(torch.cat(batches), torch.arange(103))


def epoch_of(loader, loss):
    """The labels of the images in an epoch, with `loss(labels)` recorded for each batch."""
    batches = []
    for _, labels in loader:
        loader.record(loss(labels.float()))
        batches.append(labels)
    return torch.cat(batches)


def test_later_epochs_are_the_hardest_images_and_some_at_random():
    """Images 0 to 199, of which the first epoch shows 160; the higher the number, the harder."""
    torch.manual_seed(0)
    loader = TrainLoader(*numbered(200), 9, first_share=0.8, later_share=0.2)
    steps, seen, selected = [len(loader)], epoch_of(loader, lambda labels: labels + 1.0), []
    assert len(set(seen.tolist())) == len(seen) == 160
    loader.hardness = torch.where(loader.hardness > 0, torch.arange(200) + 1.0, 0)
    hardest = set(seen.sort().values[-28:].tolist())
    for _ in range(3):
        losses = loader.hardness.clone()
        steps.append(len(loader))
        selected.append(epoch_of(loader, lambda labels, losses=losses: losses[labels.long()]).tolist())
        assert len(set(selected[-1])) == len(selected[-1]) == 40 and hardest < set(selected[-1])
        assert [label for label in selected[-1] if label in hardest] != sorted(hardest, reverse=True)  # shuffled
        loader.hardness = losses
    others = [set(labels) - hardest for labels in selected]
    assert others[0] != others[1] and any(label < 120 for label in others[0])
    assert any(loader.hardness[label] == 0 for labels in others for label in labels)  # never trained on before
    assert steps == [18, 5, 5, 5] and sum(steps) == loader.steps(4)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_images_of_a_large_file_are_read_in_blocks(share, monkeypatch):
    """Of 1024 neighbours, in the time in which 64 such blocks are read; a batch has images of many of them."""
    monkeypatch.setattr(data, "LARGE", 200_000 * 784)
    torch.manual_seed(0)
    loader = TrainLoader(*numbered(200_000), 64, share, share)
    first = loader.epoch_indices()
    loader.hardness = torch.rand(200_000)
    for indices in first, loader.epoch_indices():
        assert len(indices.unique()) == len(indices) == 200_000 * share
        places = [(indices // 1024 == block).nonzero() for block in range(200_000 // 1024)]
        assert max(place.max() - place.min() for place in places) < 1.05 * 64 * 1024 * share
        assert all(len(batch.unique()) > 30 for batch in (indices[:8192] // 1024).split(64))
        assert (indices[:8192] // 1024).max() - (indices[:8192] // 1024).min() > 128  # not 64 neighbouring blocks
        assert not torch.equal(indices[:64].sort().values, first[:64].sort().values) or indices is first
    small = TrainLoader(*numbered(199_999), 64).epoch_indices()
    assert len((small[:4096] // 1024).unique()) == 196


def test_losses_are_kept_relative_to_their_batch():
    loader = TrainLoader(*numbered(20), 5)
    epoch_of(loader, lambda labels: 100.0 / (1 + labels.sum()) * (1 + labels % 2))
    for index in loader.hardness.split(1):
        assert 0.5 < index < 2
    before = loader.hardness.clone()
    loader.index = torch.tensor([3, 7])
    loader.record(torch.tensor([3.0, 1.0]))
    before[3], before[7] = 1.5, 0.5
    assert torch.equal(loader.hardness, before)


def test_equal_losses_give_images_at_random_and_losses_of_zero_the_easiest():
    """A file may be sorted by class; in a batch of one image each loss is the mean."""
    torch.manual_seed(0)
    loader = TrainLoader(*numbered(200), 1, later_share=0.5)
    epoch_of(loader, torch.ones_like)
    selected = epoch_of(loader, torch.zeros_like)
    assert 80 < selected.float().mean() < 120
    assert loader.hardness.isfinite().all() and (loader.hardness[selected] == 0).all()


def test_a_look_at_a_batch_changes_nothing():
    loader = TrainLoader(*numbered(10), 5, later_share=0.5)
    next(iter(loader))
    assert len(loader) == 2 and len(epoch_of(loader, torch.ones_like)) == 10 and len(loader) == 1


@pytest.mark.parametrize(("share", "count"), [(1e-9, 1), (0.1, 1), (0.11, 2), (1.0, 10)])
def test_no_epoch_is_empty(share, count):
    loader = TrainLoader(*numbered(10), 64, first_share=share, later_share=share)
    for _ in range(3):
        assert len(epoch_of(loader, torch.ones_like)) == count and len(loader) == 1


def random_transforms(count):
    """Images and one random transform for each: the arguments of `affine`."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(count, 1, 28, 28)
    images[:, :, 4:24, 4:24] = torch.rand(count, 1, 20, 20, generator=generator)
    uniform = torch.rand(5, count, generator=generator) * 2 - 1
    # torchvision shifts by whole pixels only
    return images, 20 * uniform[0], (3 * uniform[1:3]).round(), 1 + 0.2 * uniform[3], 10 * uniform[4]


def test_affine_equals_torchvision_image_by_image():
    images, angle, translate, scale, shear = random_transforms(20)
    ours = affine(images, angle, translate, scale, shear)
    for i, image in enumerate(images):
        theirs = affine_one_by_one(
            image,
            angle=angle[i].item(),
            translate=translate[:, i].tolist(),
            scale=scale[i].item(),
            shear=[shear[i].item(), 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        torch.testing.assert_close(ours[i], theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("margin", [1, 4])
def test_a_margin_leaves_the_central_part_of_the_same_result(margin):
    transforms, inside = random_transforms(20), slice(margin, -margin)
    whole, part = affine(*transforms), affine(*transforms, margin=margin)
    torch.testing.assert_close(part, whole[:, :, inside, inside], rtol=0, atol=1e-4)
    results = []
    for pixels in (0, margin):
        torch.manual_seed(0)
        results.append(RandomAffine(10, 0.1, 0.1, 5, margin=pixels)(transforms[0]))
    torch.testing.assert_close(results[1], results[0][:, :, inside, inside], rtol=0, atol=1e-4)


def test_random_amounts_fill_their_ranges_independently_of_each_other():
    """Measured on ramps: the images of x and of y, transformed alike, are the inverse maps of the transforms."""
    count, bounds = 300, torch.tensor([20, 2.8, 2.8, 0.2, 15])[:, None]
    steps = torch.arange(28) - 13.5
    rows = []
    for ramp in (steps.expand(28, 28), steps.expand(28, 28).T):
        torch.manual_seed(0)
        moved = RandomAffine(20, 0.1, 0.2, 15)(ramp.expand(count, 1, 28, 28).contiguous())[:, 0]
        along_x, along_y = moved[:, 14, 14] - moved[:, 14, 13], moved[:, 14, 14] - moved[:, 13, 14]
        rows.append((along_x, along_y, moved[:, 13:15, 13:15].mean((1, 2))))
    (xx, xy, x), (yx, yy, y) = rows
    scale, angle = 1 / torch.hypot(yx, yy), torch.atan2(-yx, yy)
    shear = torch.atan(scale * (xy * angle.cos() - xx * angle.sin()))
    dx, dy = -torch.linalg.solve(torch.stack([xx, xy, yx, yy], 1).view(-1, 2, 2), torch.stack([x, y], 1)).T
    amounts = torch.stack([torch.rad2deg(angle), dx, dy, scale - 1, torch.rad2deg(shear)])
    assert (amounts.abs() < 1.001 * bounds).all()
    assert (amounts.amin(1) < -0.95 * bounds[:, 0]).all() and (amounts.amax(1) > 0.95 * bounds[:, 0]).all()
    assert (amounts.mean(1).abs() < 0.15 * bounds[:, 0]).all()
    assert (torch.corrcoef(amounts) - torch.eye(5)).abs().max() < 0.25


def test_amounts_of_zero_leave_the_images_as_they_are():
    images = torch.rand(8, 1, 28, 28)
    torch.testing.assert_close(RandomAffine(0, 0, 0, 0)(images), images, rtol=0, atol=1e-4)


def test_evaluation_is_on_the_held_out_images_if_there_are_any():
    train, test, holdout = (Split(*numbered(count)) for count in (30, 20, 10))
    plain = Dataset("name", "sum", train, test)
    assert plain.evaluation is test and plain._replace(holdout=holdout).evaluation is holdout


def test_a_dataset_moves_with_all_its_splits():
    train, test, holdout = (Split(*numbered(count)) for count in (30, 20, 10))
    for dataset in (Dataset("name", "sum", train, test), Dataset("name", "sum", train, test, holdout)):
        moved = dataset.to("meta")
        assert moved[:2] == ("name", "sum") and (moved.holdout is None) == (dataset.holdout is None)
        for split in filter(None, moved[2:]):
            assert split.images.device.type == split.labels.device.type == "meta"
