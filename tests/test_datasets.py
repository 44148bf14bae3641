"""MNIST's files, found and read or refused; scikit-learn's digits; images held out."""

import gzip

import pytest
import torch
from conftest import DIGITS, assert_refused, same

from data import Dataset, Split
from experiment.datasets import FILES, hold_out, load_data, load_mnist
from experiment.errors import DataError
from experiment.settings import Recipe, Settings


def load(folder, **options):
    return load_data(Settings(Recipe(batch_size=50), data_dir=str(folder), **options))


@pytest.mark.parametrize(("place", "packed"), [("MNIST/raw", True), ("raw", False), (".", True)])
def test_files_are_found_and_read_as_torchvision_and_others_leave_them(mnist_dir, place, packed):
    """Some programs unpack x.gz to a folder x."""
    (mnist_dir / place).mkdir(parents=True, exist_ok=True)
    contents = []
    for name in FILES:
        contents.append((mnist_dir / name).read_bytes())
        file = (mnist_dir / name).rename(mnist_dir / place / (name + ".gz" * packed))
        if packed:
            file.write_bytes(gzip.compress(contents[-1]))
            file.with_suffix("").mkdir()
    dataset = load(mnist_dir)
    items = [bytes(tensor.flatten().byte()) for tensor in (*dataset.train, *dataset.test)]
    assert items == [content[16 if "images" in name else 8 :] for name, content in zip(FILES, contents)]
    assert dataset.train.images.shape == (70, 1, 28, 28) and dataset.train.labels.dtype == torch.int64


def test_data_is_looked_for_in_data_then_in_shared_and_only_if_complete(mnist_dir, tmp_path, monkeypatch):
    work, shared = tmp_path / "work", tmp_path / "shared" / "mnist"
    (work / "data").mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setattr("experiment.datasets.read_idx_files", lambda paths: [path.resolve() for path in paths.values()])
    shared.parent.mkdir()
    mnist_dir.rename(shared)
    for name in FILES:
        assert load_mnist() == [shared / name for name in FILES]
        (work / "data" / name).write_bytes((shared / name).read_bytes())
    assert load_mnist() == [work / "data" / name for name in FILES]


def test_a_folder_that_is_missing_or_a_file_or_incomplete_is_refused(mnist_dir, tmp_path, capsys):
    assert_refused(capsys, ["--data-dir", tmp_path / "no"], f"--data-dir {tmp_path / 'no'} does not exist")
    assert_refused(capsys, ["--data-dir", mnist_dir / FILES[0]], "is not a directory")
    for name in FILES[1:3]:
        (mnist_dir / name).unlink()
    assert_refused(capsys, ["--data-dir", mnist_dir], f"{mnist_dir} lacks {FILES[1]}, {FILES[2]}; expected these")


def test_other_data_has_the_name_of_its_folder_and_a_check_sum_of_all_files(mnist_dir, tmp_path, monkeypatch):
    for place in ("letters", "words/raw", "lines/MNIST/raw"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        mnist_dir = mnist_dir.rename(tmp_path / place)
        assert load(mnist_dir).name == f"{place.split('/')[0]} (MNIST format)"
    monkeypatch.chdir(mnist_dir)
    assert load(".").name == "lines (MNIST format)"
    with monkeypatch.context() as patch:
        patch.setattr("experiment.datasets.MNIST_SHA256", load(".").sha256)
        assert load(".").name == "mnist"
    sums = {load(".").sha256}
    for name in FILES:
        content = (mnist_dir / name).read_bytes()
        (mnist_dir / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        sums.add(load(".").sha256)
        (mnist_dir / name).write_bytes(content)
    assert len(sums) == 5 and load(".", holdout=20).sha256 in sums


def put(position, value):
    return lambda content: content[:position] + value + content[position + len(value) :]


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        (FILES[0], lambda content: content[:-1], "found only 54879 bytes of data, expected 54880 (70 items"),
        (FILES[0], lambda content: content + b"x", "found more than 54880 bytes"),
        (FILES[0], lambda content: content[:9], "found a header of 9 bytes, expected 16"),
        (FILES[3], put(2, b"\x09"), "found magic number 0x00000901, expected 0x00000801"),
        (FILES[2], put(8, b"\0\0\0\x20"), "found images of 32x28, expected 28x28"),
        (FILES[0], put(4, b"\xff\xff\xff\xff"), "found only 54880 bytes of data, expected 3367254359280 ("),
        (FILES[1], put(4, bytes(4)), "found no items"),
        (FILES[1], put(20, b"\x0a"), "label 12 is 10, expected 0 to 9"),
        (FILES[3], lambda content: content[:7] + b"\x1d" + content[8:-1], "holds 29 labels, but"),
        (f"{FILES[0]}.gz", lambda content: gzip.compress(content)[:-9], "Compressed file ended before"),
        (f"{FILES[1]}.gz", lambda content: put(10, b"\xff")(gzip.compress(content)), "while decompressing data"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(mnist_dir, tmp_path, capsys, name, damage, expected):
    path = (mnist_dir / name.removesuffix(".gz")).rename(mnist_dir / name)
    path.write_bytes(damage(path.read_bytes()))
    assert_refused(capsys, ["--data-dir", mnist_dir, "--out", tmp_path / "run"], str(path), expected, "replace the")
    assert not (tmp_path / "run").exists()


def test_digits_are_real_digits_in_28x28():
    digits = load_data(Settings(dataset="digits"))
    assert digits.name == "digits" and digits.evaluation is digits.test
    assert (len(digits.train.images), len(digits.test.images)) == (1437, 360)
    for images, labels in (digits.train, digits.test):
        assert images.shape == (len(labels), 1, 28, 28) and images.dtype == torch.uint8 and images.max() == 255
        assert images.sum() == images[:, :, 4:24, 4:24].sum()  # as in MNIST nothing is at the border
    means = torch.stack([digits.train.images[digits.train.labels == label].float().mean(0) for label in range(10)])
    nearest = torch.cdist(digits.test.images.float().flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == digits.test.labels).float().mean() > 0.85  # the labels are those of the images


def numbers(labels):
    """A data set whose images are their indices."""
    return Dataset("numbers", "sum", Split(torch.arange(len(labels)), labels), Split(labels, labels))


def test_held_out_images_are_a_stratified_partition_fixed_by_the_seed():
    dataset = numbers(torch.arange(1437) % 10)
    first, again, other = (hold_out(dataset, 500, seed) for seed in (1, 1, 2**63 - 1))
    assert torch.equal(torch.cat([first.train.images, first.holdout.images]).sort().values, torch.arange(1437))
    for images, labels in (first.train, first.holdout):
        assert torch.equal(images % 10, labels)
    assert first.holdout.labels.bincount().tolist() == [50] * 10
    assert same(first, again) and not torch.equal(first.holdout.images, other.holdout.images)
    assert first.test is dataset.test and first.evaluation is first.holdout


def test_both_parts_have_every_class_or_the_error_names_the_numbers_that_work(tmp_path, monkeypatch, capsys):
    dataset = numbers(torch.tensor([2, 0, 1, 2, 0, 1, 2]))
    for count in (3, 4):
        parts = hold_out(dataset, count, seed=0)
        assert [set(part.labels.tolist()) for part in (parts.train, parts.holdout)] == [{0, 1, 2}] * 2
    for count in (0, 2, 5, 6, 7):
        with pytest.raises(DataError, match=f"^--holdout {count}: expected 3 to 4 of the 7 training images"):
            hold_out(dataset, count, seed=0)
    monkeypatch.chdir(tmp_path)
    refused = "--batch-size 1238: expected at most 1237, the number of training images"
    assert_refused(capsys, [*DIGITS, "--batch-size", "1238", "--holdout", "200"], refused)
    assert_refused(capsys, [*DIGITS, "--holdout", "1428"], "--holdout 1428: expected 10 to 1427")
    assert list(tmp_path.iterdir()) == []
