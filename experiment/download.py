"""MNIST from the first of its mirrors that answers."""

import gzip
import hashlib
import http.client
import io
import os
import tempfile
import urllib.request
import zlib
from pathlib import Path

from experiment.errors import DownloadError, reason
from experiment.files import replace_file, writing

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
LIMIT = 50_000_000  # bytes of a file; the largest has 47,040,016


def download(names, folder, sha256, mirrors=MIRRORS, timeout=30):
    """Download the IDX files `names` from the first of `mirrors` that has them all; returns {name: path}.

    `sha256` is that of all their items; `timeout`, in seconds, applies to each answer of a server.
    """
    reasons = []
    print("MNIST is downloaded (11 MB)", flush=True)
    for mirror in mirrors:
        try:
            contents = [fetch(f"{mirror}{name}.gz", timeout) for name in names]
            items = (content[16 if "idx3" in name else 8 :] for name, content in zip(names, contents))
            if hashlib.sha256(b"".join(items)).hexdigest() != sha256:
                raise OSError("the files have another checksum")
        except (OSError, EOFError, zlib.error, http.client.HTTPException) as error:
            reasons.append(f"{mirror}: {reason(error)}")
            continue
        with writing(folder, "name a folder with MNIST by --data-dir"):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as own:  # two processes may download at once
                for name, content in zip(names, contents):
                    replace_file(Path(own, name), content)
                    os.replace(Path(own, name), folder / name)
        return {name: folder / name for name in names}
    raise DownloadError(
        f"MNIST was not found and could not be downloaded ({'; '.join(reasons)}); "
        f"put {', '.join(names)} into {folder}, or run offline with --dataset digits"
    )


def fetch(url, timeout):
    """The unpacked bytes of the .gz file at `url`, cut off after LIMIT."""
    with urllib.request.urlopen(url, timeout=timeout) as response:
        return gzip.GzipFile(fileobj=io.BytesIO(response.read(LIMIT))).read(LIMIT)
