"""A download is whole or leaves nothing, whatever the servers answer."""

import contextlib
import gzip
import hashlib
import http.server
import queue
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import assert_refused

from experiment import download as module
from experiment.datasets import FILES, load_mnist
from experiment.download import MIRRORS, download
from experiment.errors import DownloadError


@contextlib.contextmanager
def serve(files):
    """URL of a mirror on this machine with `files`, by name: bytes, or what answers, given the request's handler."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = files.get(self.path.strip("/"))
            if callable(content):
                return content(self)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


@pytest.fixture
def packed(mnist_dir):
    """What a mirror of the small data set holds: bytes by name."""
    return {f"{name}.gz": gzip.compress((mnist_dir / name).read_bytes()) for name in FILES}


@pytest.fixture
def get(mnist_dir, tmp_path):
    """get(*mirrors): download the small data set to tmp_path/data."""
    folder, sha256 = tmp_path / "data", load_mnist(mnist_dir).sha256
    return lambda *mirrors, **options: download(FILES, folder, sha256, mirrors, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_each_file_is_written_as_a_whole(packed, get, mnist_dir, monkeypatch):
    written, real = [], module.replace_file
    monkeypatch.setattr(module, "replace_file", lambda *file: written.append(file[1]) or real(*file))
    with serve(packed) as mirror:
        get(mirror)
    assert written == [(mnist_dir / name).read_bytes() for name in FILES]


def test_two_downloads_at_once_leave_the_files_and_nothing_else(packed, get, mnist_dir, tmp_path):
    last, both_are_there = f"{FILES[3]}.gz", threading.Barrier(2, timeout=60)

    def wait(handler):
        both_are_there.wait()
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(packed[last])

    with serve({**packed, last: wait}) as mirror, ThreadPoolExecutor(2) as pool:
        assert list(pool.map(get, [mirror] * 2)) == [{name: tmp_path / "data" / name for name in FILES}] * 2
    assert contents(tmp_path / "data") == contents(mnist_dir)


def other_pixel(content):
    content = gzip.decompress(content)
    return gzip.compress(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (other_pixel, "the files have another checksum"),
        (lambda content: content[:-9], "end-of-stream"),
        (lambda content: content[:10] + b"\xff" + content[11:], "while decompressing data"),
        (lambda content: None, "404"),
        (lambda content: lambda handler: handler.wfile.write(b"no HTTP\n"), "no HTTP"),
    ],
)
def test_a_bad_mirror_is_named_or_the_next_one_taken(tmp_path, packed, get, mnist_dir, damage, expected):
    third = f"{FILES[2]}.gz"  # some are downloaded before it
    with serve({**packed, third: damage(packed[third])}) as bad, serve(packed) as good:
        with pytest.raises(DownloadError) as error:
            get(bad)
        for text in (f"{bad}: ", expected, *FILES, str(tmp_path / "data"), "--dataset digits"):
            assert text in str(error.value)
        assert not (tmp_path / "data").exists()
        get(bad, good)
    assert contents(tmp_path / "data") == contents(mnist_dir)


def test_an_endless_body_and_a_gzip_bomb_are_cut_off(tmp_path, monkeypatch):
    cut, content = queue.SimpleQueue(), bytes(100_000)

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(1000):  # more than all buffers hold
                handler.wfile.write(content)
            cut.put(False)
        except ConnectionError:
            cut.put(True)

    with serve({"endless.gz": endless, "bomb.gz": gzip.compress(content)}) as mirror:
        bomb = ["bomb"], tmp_path, hashlib.sha256(content[8:]).hexdigest(), [mirror]
        assert download(*bomb) == {"bomb": tmp_path / "bomb"}
        monkeypatch.setattr(module, "LIMIT", len(content) - 1)
        with pytest.raises(DownloadError, match="another checksum"):
            download(*bomb)
        with pytest.raises(DownloadError, match="Not a gzipped file"):
            download(["endless"], *bomb[1:])
        assert cut.get(timeout=60)


def test_no_network_and_no_data(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "below" / "work"  # ../shared/mnist is not there either
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    nobody = urllib.request.ProxyHandler(dict.fromkeys(("http", "https"), "http://127.0.0.1:9"))
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(urllib.request, "_opener", urllib.request.build_opener(nobody))
    expected = "MNIST was not found", *MIRRORS, "Connection refused", *FILES, "data/MNIST/raw", "--dataset digits"
    assert_refused(capsys, [], *expected, code=DownloadError.exit_code)
    assert list(folder.iterdir()) == []
