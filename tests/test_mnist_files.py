"""MNIST's files: every layout is found, every damage is named, and a download is whole or leaves nothing."""

import contextlib
import gzip
import http.server
import socket
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import assert_refused

from experiment.datasets import FILES, MIRRORS, checksum, data_name, download, find_files, read_files, read_idx
from experiment.errors import DataError, DownloadError, FileError

CPU = ["--device", "cpu"]


def contents(paths):
    return [path.read_bytes() for path in paths]


# Found


@pytest.mark.parametrize("layout", [".", "raw", "MNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("separator", ["-", "."])
def test_layouts_that_people_have(mnist_dir, layout, packed, separator):
    """As torchvision and as other downloads name and place the files; unpackers leave a folder named like a file."""
    expected = read_files(find_files(mnist_dir))
    (mnist_dir / layout).mkdir(parents=True, exist_ok=True)
    for name in FILES:
        content = (mnist_dir / name).read_bytes()
        (mnist_dir / name).unlink()
        target = mnist_dir / layout / (name.replace("-idx", f"{separator}idx") + ".gz" * packed)
        if separator == ".":
            (mnist_dir / layout / name).mkdir()
        target.write_bytes(gzip.compress(content) if packed else content)
    found = read_files(find_files(mnist_dir))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert [tensor.shape for tensor in found] == [(70, 28, 28), (70,), (30, 28, 28), (30,)]


def test_data_is_looked_for_in_data_then_in_shared(mnist_dir, tmp_path, monkeypatch):
    work, shared = tmp_path / "work", tmp_path / "shared" / "mnist" / "MNIST" / "raw"
    work.mkdir()
    monkeypatch.chdir(work)
    assert find_files() is None
    shared.parent.mkdir(parents=True)
    mnist_dir.rename(shared)
    assert [path.set_up() for path in find_files()] == [shared / name for name in FILES]
    (work / "data").mkdir()
    for name in FILES:
        assert find_files()[0].set_up() == shared / FILES[0]  # those of ./data are not all there yet
        (work / "data" / name).write_bytes((shared / name).read_bytes())
    assert [path.set_up() for path in find_files()] == [work / "data" / name for name in FILES]


def test_a_data_dir_that_is_not_there_or_a_file_or_incomplete_is_refused(mnist_dir, tmp_path, capsys):
    assert_refused(capsys, [*CPU, "--data-dir", tmp_path / "no"], f"--data-dir {tmp_path / 'no'} does not exist")
    assert_refused(capsys, [*CPU, "--data-dir", mnist_dir / FILES[0]], "is not a directory")
    for name in (FILES[1], FILES[2]):
        (mnist_dir / name).unlink()
    assert_refused(capsys, [*CPU, "--data-dir", mnist_dir], f"lacks {FILES[1]}, {FILES[2]} ", "put them there")
    (mnist_dir / "t10k-images-idx3-ubyte (1)").touch()
    (mnist_dir / "notes.txt").touch()
    (mnist_dir / f"{FILES[0]}.gz").touch()  # beside the unpacked one
    expected = f"lacks {FILES[1]}, {FILES[2]} ", f"; t10k-images-idx3-ubyte (1) looks like {FILES[2]}: rename it"
    assert_refused(capsys, [*CPU, "--data-dir", mnist_dir], *expected)


@pytest.mark.parametrize(
    ("folder", "name"), [("small", "small"), ("FashionMNIST/raw", "FashionMNIST"), ("letters/MNIST/raw", "letters")]
)
def test_a_data_set_is_named_by_its_folder(tmp_path, monkeypatch, folder, name):
    assert data_name(tmp_path / folder / FILES[0]) == name
    (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / folder)
    assert data_name(Path(FILES[0])) == name


# Read


def set_bytes(position, value):
    return lambda content: content[:position] + value + content[position + len(value) :]


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        (FILES[0], lambda content: content[:-1], "found only 54879 bytes of data, expected 54880"),
        (FILES[0], lambda content: content + b"x", "found more than 54880 bytes"),
        (FILES[0], lambda content: b"", "found magic number 0x, expected 0x00000803"),
        (FILES[0], lambda content: content[:9], "found a header of 9 bytes, expected 16"),
        (FILES[3], set_bytes(2, b"\x09"), "found magic number 0x00000901, expected 0x00000801"),
        (FILES[2], set_bytes(8, b"\0\0\0\x20"), "found images of 32x28, expected 28x28"),
        (FILES[0], set_bytes(4, b"\xff\xff\xff\xff"), "found only 54880 bytes of data, expected"),
        (FILES[1], set_bytes(4, bytes(4)), "found no items"),
        (FILES[1], set_bytes(20, b"\x0a"), "label 12 is 10, expected 0 to 9"),
        (FILES[3], lambda content: content[:7] + b"\x1d" + content[8:-1], "holds 29 labels"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(mnist_dir, tmp_path, capsys, name, damage, expected):
    path = mnist_dir / name
    path.write_bytes(damage(path.read_bytes()))
    argv = [*CPU, "--data-dir", mnist_dir, "--out", tmp_path / "run"]
    assert_refused(capsys, argv, str(path), expected)
    assert not (tmp_path / "run").exists()


def test_a_large_file_is_mapped_instead_of_read(mnist_dir):
    path = mnist_dir / FILES[0]
    read, mapped = read_idx(path, (28, 28)), read_idx(path, (28, 28), map_from=path.stat().st_size)
    assert torch.equal(read, mapped)
    with open(path, "r+b") as file:  # what happens to the file shows in the mapped images alone
        file.seek(16)
        file.write(bytes(28 * 28))
    assert mapped[0].sum() == 0 and read[0].sum() > 0
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(DataError, match="found more than"):
        read_idx(path, (28, 28), map_from=1)


def test_a_file_that_cannot_be_unpacked_or_read_is_named(mnist_dir):
    path = mnist_dir / FILES[0]
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    path = path.with_name(f"{path.name}.gz")
    for content in (packed[:-9], b"not gzip", packed[:100] + b"\0\0\0\0" + packed[104:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{path}.* replace the file"):
            read_files(find_files(mnist_dir))
    paths = find_files(mnist_dir)
    path.unlink()
    with pytest.raises(DataError, match=f"{path} cannot be read"):
        read_files(paths)


# Downloaded


@contextlib.contextmanager
def serve(files, answer=None):
    """URL of a mirror on this machine with `files`, bytes by name; `answer(handler)`, if true, has answered itself."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if answer and answer(self):
                return
            content = files.get(self.path.strip("/"))
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def packed(mnist_dir):
    """What a mirror of the small data set holds: bytes by name."""
    return {f"{name}.gz": gzip.compress((mnist_dir / name).read_bytes()) for name in FILES}


@pytest.fixture
def sha256(mnist_dir):
    return checksum(read_files(find_files(mnist_dir)))


def test_two_downloads_at_once_leave_the_files_and_nothing_else(mnist_dir, tmp_path, packed, sha256):
    both_begin = threading.Barrier(2, timeout=30)

    def wait(handler):
        if handler.path == f"/{FILES[0]}.gz":
            both_begin.wait()

    with serve(packed, wait) as mirror, ThreadPoolExecutor(2) as pool:
        downloads = [pool.submit(download, tmp_path / "data", [mirror], sha256) for _ in range(2)]
        paths = [future.result() for future in downloads]
    raw = tmp_path / "data" / "MNIST" / "raw"
    assert paths[0] == paths[1] == find_files(tmp_path / "data") == [raw / name for name in FILES]
    assert contents(paths[0]) == contents(find_files(mnist_dir))
    assert sorted(path.name for path in raw.iterdir()) == sorted(FILES)


def cut_off(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"less")
    return True


def other_pixel(content):
    content = gzip.decompress(content)
    return gzip.compress(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "answer", "expected"),
    [
        (other_pixel, None, "the files have another checksum"),
        (lambda content: content[:-9], None, "end-of-stream"),
        (lambda content: b"not gzip", None, "Not a gzipped file"),
        (lambda content: gzip.compress(gzip.decompress(content)[:-1]), None, "the files have another checksum"),
        (lambda content: None, None, "404"),
        (lambda content: content, cut_off, "IncompleteRead"),
        (lambda content: content, lambda handler: True, "closed connection without response"),
    ],
    ids=["other pixel", "half", "not gzip", "damaged", "no such file", "cut off", "no answer"],
)
def test_a_bad_mirror_is_named_or_the_next_one_taken(mnist_dir, tmp_path, packed, sha256, damage, answer, expected):
    third = f"{FILES[2]}.gz"  # some are downloaded before it
    files = {**packed, third: damage(packed[third])}
    with serve(files, lambda handler: answer and handler.path == f"/{third}" and answer(handler)) as bad:
        with pytest.raises(DownloadError) as error:
            download(tmp_path / "data", [bad], sha256)
        assert error.value.exit_code == 1
        for text in (f"{bad}: ", expected, *FILES, str(tmp_path / "data/MNIST/raw"), "--dataset digits"):
            assert text in str(error.value)
        assert not (tmp_path / "data").exists()
        with serve(packed) as good:
            paths = download(tmp_path / "data", [bad, good], sha256)
    assert contents(paths) == contents(find_files(mnist_dir))


def test_a_server_that_accepts_and_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        mirror = f"http://127.0.0.1:{server.getsockname()[1]}/"
        reset = threading.Timer(10, server.close)  # who waits longer than asked finds another error
        reset.start()
        with pytest.raises(DownloadError, match=f"{mirror}: .*timed out"):
            download(tmp_path / "data", [mirror], timeout=0.3)
        reset.cancel()
    assert not (tmp_path / "data").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path, packed, sha256):
    (tmp_path / "data").touch()
    with serve(packed) as mirror, pytest.raises(FileError, match=f"{tmp_path / 'data'}.* cannot be written"):
        download(tmp_path / "data", [mirror], sha256)


def test_no_network_and_no_data(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "below" / "work"  # ../shared/mnist is not there either
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("no_proxy", "")
    nobody = urllib.request.ProxyHandler(dict.fromkeys(("http", "https"), "http://127.0.0.1:9"))
    urllib.request.install_opener(urllib.request.build_opener(nobody))
    try:
        expected = [
            "MNIST not found in data or ../shared/mnist",
            *MIRRORS,
            "Connection refused",
            *FILES,
            "data/MNIST/raw",
        ]
        assert_refused(capsys, CPU, *expected, "--dataset digits", code=1)
    finally:
        urllib.request.install_opener(None)
    assert list(folder.iterdir()) == []
