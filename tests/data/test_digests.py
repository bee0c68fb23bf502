"""A file is hashed once as long as it is the same, and whoever reads an image by its manifest reads those bytes."""

import os
from unittest import mock

import numpy as np
import pytest

from dermjax.data import digests, images
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError


@pytest.fixture
def old(tmp_path):
    """A manifest of an image that has not changed for a while."""
    path = tmp_path / "a.png"
    path.write_bytes(images.encode_png(np.zeros((8, 8, 3), np.uint8)))
    known = {"label": "a", "split": "train", "source": "s", "image_manipulation": "none"}
    return Manifest(
        labels=("a",), root=tmp_path, records=(Record(image="a.png", sha256=digests.sha256(path), **known),)
    )


def test_a_file_is_hashed_once_until_it_changes(old, monkeypatch):
    monkeypatch.setattr(digests, "RACE", 0)
    (record,), path = old.records, old.root / "a.png"
    with mock.patch.object(digests, "sha256", wraps=digests.sha256) as hashed:
        assert old.path(record) == old.path(record) == path and hashed.call_count == 1
        content, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
        path.write_bytes(content[:-1] + b"\0")
        os.utime(path, ns=times)  # the same size and time of change, as a copy may have
        with pytest.raises(UserError, match=r"a\.png: not the bytes that the manifest names"):
            old.path(record)
        assert hashed.call_count == 2
        (path.parent / "b.png").write_bytes(content)
        os.utime(path.parent / "b.png", ns=times)
        os.replace(path.parent / "b.png", path)
        assert old.path(record) == path and hashed.call_count == 3


def test_a_file_that_has_just_changed_is_hashed_again(old):
    (record,), path = old.records, old.root / "a.png"
    for _ in range(20):  # faster than the clock of the file system ticks
        path.write_bytes(images.encode_png(np.zeros((8, 8, 3), np.uint8)))
        old.path(record)
        path.write_bytes(images.encode_png(np.ones((8, 8, 3), np.uint8)))
        with pytest.raises(UserError, match="not the bytes"):
            old.path(record)


def test_what_is_no_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path, told in ((tmp_path / "pipe.png", "a named pipe"), (tmp_path, "a folder"), ("/dev/zero", "a device")):
        with pytest.raises(UserError, match=f"{told} and no file"):
            digests.cached_sha256(path)
    with pytest.raises(UserError, match=r"gone\.png: cannot be read \(No such file"):
        digests.cached_sha256(tmp_path / "gone.png")
