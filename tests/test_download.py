"""A download is whole or leaves nothing, whatever the servers answer."""

import contextlib
import gzip
import hashlib
import http.server
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import assert_refused
from torchvision.datasets import MNIST

from experiment import sources
from experiment.datasets import FILES
from experiment.errors import DownloadError


@contextlib.contextmanager
def serve(files):
    """URL of a mirror on this machine with `files`, by name: bytes, or what answers, given the request's handler."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = files.get(self.path.strip("/"))
            if callable(content) and self.command == "GET":
                return content(self)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


@pytest.fixture
def packed(mnist_dir, monkeypatch):
    """What a mirror of the small data set holds: bytes by name; torchvision expects their checksums."""
    packed = {f"{name}.gz": gzip.compress((mnist_dir / name).read_bytes()) for name in FILES}
    sums = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]
    monkeypatch.setattr(MNIST, "resources", sums)
    return packed


@pytest.fixture
def get(tmp_path, monkeypatch):
    """get(*mirrors): download the small data set to tmp_path/data."""

    def get(*mirrors):
        monkeypatch.setattr(MNIST, "mirrors", mirrors)
        return sources.download(tmp_path / "data")

    return get


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_downloads_at_once_leave_whole_files_and_nothing_else(packed, get, mnist_dir, tmp_path, monkeypatch):
    last, both_are_there = f"{FILES[3]}.gz", threading.Barrier(2, timeout=60)
    written, real, raw = set(), sources.replace_file, tmp_path / "data" / "MNIST" / "raw"
    monkeypatch.setattr(sources, "replace_file", lambda *file: written.add(file[1]) or real(*file))

    def wait(handler):
        both_are_there.wait()
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(packed[last])

    with serve({**packed, last: wait}) as mirror, ThreadPoolExecutor(2) as pool:
        assert list(pool.map(get, [mirror] * 2)) == [{name: raw / name for name in FILES}] * 2
    assert contents(raw) == contents(mnist_dir)
    assert written == set(contents(mnist_dir).values())  # each as a whole


def other_pixel(content):
    content = gzip.decompress(content)
    return gzip.compress(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [(other_pixel, "corrupted"), (lambda content: content[:-9], "corrupted"), (lambda content: None, "404")],
)
def test_a_bad_mirror_is_named_or_the_next_one_taken(tmp_path, packed, get, mnist_dir, damage, expected):
    third = f"{FILES[2]}.gz"  # some are downloaded before it
    with serve({**packed, third: damage(packed[third])}) as bad, serve(packed) as good:
        with pytest.raises(DownloadError) as error:
            get(bad)
        for text in (bad, expected, *FILES, str(tmp_path / "data"), "--dataset digits"):
            assert text in str(error.value)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "data").exists()
        get(bad, good)
    assert contents(tmp_path / "data" / "MNIST" / "raw") == contents(mnist_dir)


def test_a_server_of_something_else_ends_it(packed, get, tmp_path):
    files = {f"{FILES[0]}.gz": lambda handler: handler.wfile.write(b"no HTTP\n")}
    with serve(files) as mirror, pytest.raises(DownloadError, match="no HTTP"):
        get(mirror)
    assert not (tmp_path / "data").exists()


def test_no_network_and_no_data(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "below" / "work"  # ../shared/mnist is not there either
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    expected = "MNIST was not found", "127.0.0.1:9", "Connection refused", *FILES, "data/MNIST/raw", "--dataset digits"
    assert_refused(capsys, [], *expected, code=DownloadError.exit_code)
    assert list(folder.iterdir()) == []
