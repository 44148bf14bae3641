"""The data sets: scikit-learn's digits, other data in MNIST's format, and images held out."""

import pytest
import torch
from conftest import DIGITS, assert_refused

from data import Dataset, Split
from experiment.datasets import FILES, find_files, hold_out, load_data, load_digits_28x28, read_files
from experiment.errors import DataError
from experiment.settings import Recipe, Settings


def test_digits_are_real_digits_in_28x28():
    digits = load_data(Settings(dataset="digits"))
    assert digits.name == "digits" and digits.holdout is None
    assert (len(digits.train.images), len(digits.test.images)) == (1437, 360)
    for images, labels in (digits.train, digits.test):
        assert images.shape[1:] == (1, 28, 28) and images.dtype == torch.uint8
        assert len(images) == len(labels) and labels.dtype == torch.int64
        assert images.max() == 255
        box = images[:, :, 4:24, 4:24]
        assert torch.equal(images.sum((1, 2, 3)), box.sum((1, 2, 3)))  # as in MNIST nothing is at the border
    shares = [labels.bincount() / len(labels) for _, labels in (digits.train, digits.test)]
    torch.testing.assert_close(*shares, rtol=0, atol=0.005)
    means = torch.stack([digits.train.images[digits.train.labels == label].float().mean(0) for label in range(10)])
    nearest = torch.cdist(digits.test.images.float().flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == digits.test.labels).float().mean() > 0.85  # the labels are those of the images


def test_other_data_in_mnists_format_is_never_called_mnist(mnist_dir):
    dataset = load_data(Settings(Recipe(batch_size=70), data_dir=str(mnist_dir)))
    assert dataset.name == "small (MNIST format)"
    tensors = [*dataset.train, *dataset.test]
    for found, expected in zip(tensors, read_files(find_files(mnist_dir)), strict=True):
        assert torch.equal(found, expected.view(found.shape))


@pytest.mark.parametrize("name", FILES)
def test_the_check_sum_covers_every_file(mnist_dir, name):
    settings, path = Settings(Recipe(batch_size=70), data_dir=str(mnist_dir)), mnist_dir / name
    before, content = load_data(settings).sha256, path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert load_data(settings).sha256 != before
    path.write_bytes(content)
    assert load_data(settings).sha256 == before


def test_held_out_images_are_a_stratified_partition_fixed_by_the_seed():
    numbers = torch.arange(1437)  # each image is its number, with the last digit as the label
    test = Split(numbers[:3].view(-1, 1, 1, 1), numbers[:3])
    dataset = Dataset("numbers", "sum", Split(numbers.view(-1, 1, 1, 1), numbers % 10), test)
    first, again, other = (hold_out(dataset, 500, seed) for seed in (1, 1, 2))
    rest, held = first.train, first.holdout
    assert torch.equal(torch.cat([rest.images, held.images]).flatten().sort().values, numbers)
    for images, labels in (rest, held):
        assert torch.equal(images.flatten() % 10, labels)
    assert held.labels.bincount().tolist() == [50] * 10
    assert torch.equal(held.images, again.holdout.images) and torch.equal(rest.images, again.train.images)
    assert not torch.equal(held.images, other.holdout.images)
    assert first.test is test and first.sha256 == dataset.sha256


def test_held_out_digits_are_the_ones_of_the_settings():
    dataset = load_data(Settings(dataset="digits", holdout=200, seed=2**63 - 1))
    expected = hold_out(load_digits_28x28(), 200, 2**63 - 1)
    assert (len(dataset.train.labels), len(dataset.holdout.labels)) == (1237, 200)
    assert torch.equal(dataset.holdout.images, expected.holdout.images)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--batch-size", "1438"], "--batch-size 1438: expected at most 1437"),
        (["--batch-size", "1238", "--holdout", "200"], "--batch-size 1238: expected at most 1237"),
        (["--holdout", "9"], "--holdout 9: expected 10 to 1427"),
        (["--holdout", "1428"], "--holdout 1428: expected 10 to 1427"),
        (["--holdout", "1437"], "--holdout 1437: expected 10 to 1427"),
    ],
)
def test_more_images_than_there_are_is_refused(tmp_path, monkeypatch, capsys, argv, expected):
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, [*DIGITS, *argv], expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("labels", "count", "expected"),
    [
        ([0, 0, 1, 1, 2], 2, "expected no held-out images, since class 2 has a single image of the 5 training images"),
        ([0, 0, 1, 1], 1, "expected 2 to 2, so that each of the 2 classes appears in both parts of the 4"),
        ([0, 0, 1, 1], 3, "expected 2 to 2,"),
    ],
)
def test_an_error_names_a_number_that_works_or_says_that_none_does(labels, count, expected):
    split = Split(torch.zeros(len(labels), 1, 28, 28, dtype=torch.uint8), torch.tensor(labels))
    with pytest.raises(DataError, match=f"^--holdout {count}: {expected}"):
        hold_out(Dataset("small", "", split, split), count, seed=0)
    if len(labels) == 4:
        assert hold_out(Dataset("small", "", split, split), 2, seed=0).holdout.labels.tolist() in ([0, 1], [1, 0])


@pytest.mark.parametrize("count", [10, 1427])
def test_at_the_bounds_every_class_has_an_image_on_both_sides(count):
    dataset = hold_out(load_digits_28x28(), count, seed=0)
    assert len(dataset.holdout.labels) == count and len(dataset.train.labels) == 1437 - count
    for _, labels in (dataset.train, dataset.holdout):
        assert labels.unique().tolist() == list(range(10))
