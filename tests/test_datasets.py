"""Data in MNIST's and other formats, found and read or refused; scikit-learn's digits; images held out."""

import gzip
import re

import numpy as np
import pytest
import torch
from conftest import SMALL, assert_refused, run, same
from PIL import Image

from data import Dataset, Split
from experiment.datasets import FILES, hold_out, load_data, load_mnist
from experiment.errors import DataError
from experiment.settings import Recipe, Settings
from photo import prepare
from study.photographs import printed


def load(folder, **options):
    return load_data(Settings(Recipe(batch_size=50), data_dir=str(folder), **options))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", ["MNIST/raw/{}.gz", "raw/{}", "{}.gz", "raw/emnist-digits-{}"])
def test_files_are_found_and_read_as_torchvision_and_others_leave_them(mnist_dir, place, packed):
    """Some programs unpack x.gz to a folder x, or to a file x.gz; EMNIST's images are transposed."""
    (mnist_dir / place).parent.mkdir(parents=True, exist_ok=True)
    contents, emnist = [], "emnist" in place
    for name in FILES:
        contents.append((mnist_dir / name).read_bytes())
        file = mnist_dir / place.format(name.replace("t10k", "test") if emnist else name)
        (mnist_dir / name).rename(file)
        file.write_bytes(gzip.compress(contents[-1]) if packed else contents[-1])
        if file.suffix:
            file.with_suffix("").mkdir()
    dataset = load(mnist_dir)
    items = [bytes((t.mT if emnist and t.ndim > 1 else t).byte().flatten()) for t in (*dataset.train, *dataset.test)]
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
        (mnist_dir / name).write_bytes((mnist_dir / name).read_bytes()[:-1] + b"\1")
        sums.add(load(".").sha256)
    assert len(sums) == 5 and load(".", holdout=20).sha256 in sums


def put(position, value):
    return lambda content: content[:position] + value + content[position + len(value) :]


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        (FILES[0], lambda content: content[:-1], "found 54895 bytes that … expected 54896 bytes and [2051, 70"),
        (FILES[0], lambda content: content + b"x", "found 54897 bytes"),
        (FILES[0], lambda content: content[:9], "found 9 bytes"),
        (FILES[3], put(2, b"\x09"), "numbers [2305, 30], expected 38 bytes and [2049, 30]"),
        (FILES[2], put(8, b"\0\0\0\x20"), "numbers [2051, 30, 32, 28], expected 23536 bytes and [2051, 30, 28, 28]"),
        (FILES[0], put(4, b"\xff\xff\xff\xff"), "found 54896 bytes that … expected 3367254359296 bytes"),
        (FILES[1], put(4, bytes(4)), "numbers [2049, 0], expected 9 bytes and [2049, 1]"),
        (FILES[1], put(20, b"\x0a"), "expected whole numbers from 0 to 9"),
        (FILES[3], lambda content: put(7, b"\x1d")(content)[:-1], "(30, 28, 28) and labels uint8 (29,), expected"),
        (f"{FILES[0]}.gz", lambda content: gzip.compress(content)[:-9], "Compressed file ended before"),
        (f"{FILES[1]}.gz", lambda content: put(10, b"\xff")(gzip.compress(content)), "while decompressing data"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(mnist_dir, tmp_path, capsys, name, damage, expected):
    path = (mnist_dir / name.removesuffix(".gz")).rename(mnist_dir / name)
    path.write_bytes(damage(path.read_bytes()))
    argv, expected = ["--data-dir", mnist_dir, "--out", tmp_path / "run"], [str(path), *expected.split(" … ")]
    assert_refused(capsys, argv, *expected, "replace the")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def arrays(mnist_dir):
    """The data in mnist_dir, by Keras's names."""
    tensors = [tensor for split in load(mnist_dir)[2:4] for tensor in split]
    return {name: tensor.squeeze().numpy() for name, tensor in zip(("x_train", "y_train", "x_test", "y_test"), tensors)}


def write(kind, folder, images, labels):
    """`folder`, with images and labels as train.csv, or as pictures by class, every second one black on white."""
    folder.mkdir(parents=True)
    if kind == "csv":
        np.savetxt(folder / "train.csv", np.c_[labels, images.reshape(-1, 784)], "%d", ",", header="label", comments="")
    for i, (image, label) in enumerate(zip(images, labels) if kind == "pictures" else ()):
        (folder / str(label)).mkdir(exist_ok=True)
        Image.fromarray(255 - image if i % 2 else image).save(folder / str(label) / f"{i:02}.png")
    return folder


def test_npz_csv_and_pictures_by_class_give_what_idx_files_give(mnist_dir, arrays, tmp_path):
    expected, held = load(mnist_dir), load(mnist_dir, holdout=20)
    np.savez(tmp_path / "mnist.npz", **arrays)
    assert same(load(tmp_path)[1:], expected[1:])
    file = write("csv", tmp_path / "csv", arrays["x_train"], arrays["y_train"]) / "train.csv"
    assert same(load(file, holdout=20)[2:], (held.train, held.holdout, None))  # which are its test images
    for part in ("train", "test"):
        write("pictures", tmp_path / part, arrays[f"x_{part}"], arrays[f"y_{part}"])
    (tmp_path / "mnist.npz").unlink()
    for found, (images, labels) in zip(load(tmp_path)[2:4], expected[2:4]):
        order = labels.argsort(stable=True)
        assert same(found, Split(images[order], labels[order]))
    printed("9", "DejaVuSans", 80).save(tmp_path / "test" / "9" / "large.GIF")
    np.testing.assert_array_equal(load(tmp_path).test.images[-1, 0], prepare(tmp_path / "test" / "9" / "large.GIF"))
    (tmp_path / "test" / "9").rename(tmp_path / "test" / "10")
    with pytest.raises(DataError, match=f"{tmp_path / 'test'}: found .*, expected whole numbers from 0 to 9"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "pictures"])
def test_where_there_are_no_test_images_held_out_ones_take_their_place(kind, arrays, tmp_path, capsys):
    folder = write(kind, tmp_path / "data", arrays["x_train"], arrays["y_train"])
    argv = [*SMALL, "--data-dir", folder, "--batch-size", 25, "--epochs", 2]
    assert_refused(capsys, argv, "has no labelled test images; hold some out: --holdout 14")
    assert run(*argv, "--holdout", 20, "--out", tmp_path) == run("--evaluate", tmp_path / "last.pt") == 0
    *_, last, evaluated = re.findall(r"^Test set: .*", output := capsys.readouterr().out, re.M)
    assert "50 training and 20 test images\n" in output and evaluated == last


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        ("y_test", None, "mnist.npz cannot be read ('y_test … expected x_train, y_train, x_test, y_test"),
        ("x_train", lambda x: x / 255, "mnist.npz: found images float64 (70, 28, 28) … expected whole numbers from 0"),
        ("x_test", lambda x: np.int64(x) + 1, "mnist.npz: found images int64 (30, 28, 28) … expected whole numbers"),
        ("x_test", lambda x: x[:, 1:], "mnist.npz: found images uint8 (30, 27, 28) … expected (N, 28, 28) and (N,)"),
        ("y_train", lambda y: y - 1, "mnist.npz: found … labels int64 (70,), expected whole numbers from 0 to 9"),
        ("x_train", lambda x: x // 128, "mnist.npz: no pixel exceeds 1; expected … multiply by 255"),
        ("train.csv", f"label\n7,256{',0' * 783}", "train.csv cannot be read ( … '256' … expected a header, then rows"),
        ("train.csv", f"label\n7,x{',0' * 783}", "train.csv cannot be read ( … 'x' … expected a header, then rows of"),
        ("train.csv", "label,pixel0\n", "train.csv cannot be read (loadtxt: input contained no data … expected"),
        ("train/a/x.png", "", "train cannot be read (invalid literal … 'a'); expected folders 0 to 9 with pictures"),
        ("train/00/x.txt", "", "train cannot be read (Found no valid file for … 00 … expected folders 0 to 9"),
        ("train/3/x.png", "seven", "train/3/x.png cannot be read (cannot identify image file … ; expected a picture"),
    ],
)
def test_damage_in_other_formats_is_named_with_what_was_expected(arrays, tmp_path, capsys, name, damage, expected):
    if name in arrays:
        array = arrays.pop(name)
        np.savez(tmp_path / "mnist.npz", **arrays, **({name: damage(array)} if damage else {}))
    for file in ("train/3/x.png", name) if isinstance(damage, str) else ():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(damage)
    assert_refused(capsys, ["--data-dir", tmp_path], *f"{tmp_path.name}/{expected}".split(" … "))


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


def test_both_parts_have_every_class_or_the_error_names_the_numbers_that_work():
    dataset = numbers(torch.tensor([2, 0, 1, 2, 0, 1, 2]))
    for count in (3, 4):
        parts = hold_out(dataset, count, seed=0)
        assert [set(part.labels.tolist()) for part in (parts.train, parts.holdout)] == [{0, 1, 2}] * 2
    for count in (0, 2, 5, 6, 7):
        with pytest.raises(DataError, match=f"^--holdout {count}: expected 3 to 4 of the 7 training images"):
            hold_out(dataset, count, seed=0)
