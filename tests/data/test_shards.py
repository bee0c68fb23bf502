"""Images in shards are read as files are: their bytes, digests and pixels, through the paths of a manifest."""

import hashlib
import os

import numpy as np
import pytest

from dermjax.data import digests, images, records, shards
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
CONTENTS = [images.encode_png(each) for each in PIXELS]


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "shards" / "000000.tar"
    shards.write(path, [(f"benign/{number}.png", content) for number, content in enumerate(CONTENTS)])
    return path


def test_a_member_is_read_as_a_file(shard):
    for number, content in enumerate(CONTENTS):
        path = shards.locate(shard / "benign" / f"{number}.png")
        assert path.is_file() and path.read_bytes() == content and path.stat().st_size == len(content)
        assert (path.name, path.suffix, path.parent.name) == (f"{number}.png", ".png", "benign")
        assert digests.sha256(path) == digests.cached_sha256(path) == hashlib.sha256(content).hexdigest()
        assert path.parents[1] == shard and path.parents[1].is_file() and (path.parents[2] / shard.name).is_file()
        np.testing.assert_array_equal(images.decode(path), PIXELS[number])
        with images.open_image(path) as image:
            assert image.size == (8, 8)


def test_other_paths_stay_what_they_are(shard):
    folder = shard.parent / "folder.tar"  # of somebody's own
    (folder / "benign").mkdir(parents=True)
    (folder / "benign" / "0.png").write_bytes(CONTENTS[0])
    for path in (folder / "benign" / "0.png", shard, shard.parent / "none.tar" / "0.png"):
        assert not isinstance(shards.locate(path), shards.Member)
    assert shards.container(shard / "benign" / "0.png") == shard
    assert shards.container(shard) == shard


def test_what_is_not_there_or_damaged_is_one_line(shard):
    missing = shards.locate(shard / "benign" / "9.png")
    assert not missing.is_file()
    with pytest.raises(UserError, match=r"9\.png: cannot be read"):
        digests.cached_sha256(missing)
    shard.write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"0\.png: cannot be read"):
        digests.cached_sha256(shards.locate(shard / "benign" / "0.png"))
    with pytest.raises(ValueError, match="read as bytes"):
        shards.locate(shard / "benign" / "0.png").open("w")


def test_a_shard_that_is_written_again_is_read_anew(shard):
    path = shards.locate(shard / "benign" / "1.png")
    assert path.read_bytes() == CONTENTS[1]
    shards.write(shard, [("benign/0.png", CONTENTS[2]), ("benign/1.png", CONTENTS[0])])
    os.utime(shard, ns=(0, 0))
    assert path.read_bytes() == CONTENTS[0]


def test_the_same_files_are_the_same_bytes_and_what_fails_leaves_nothing(shard):
    before = shard.read_bytes()
    shards.write(shard, [(f"benign/{number}.png", content) for number, content in enumerate(CONTENTS)])
    assert shard.read_bytes() == before

    def failing():
        yield "benign/0.png", CONTENTS[0]
        raise OSError(28, "no space")

    with pytest.raises(OSError, match="no space"):
        shards.write(shard, failing())
    assert shard.read_bytes() == before and [path.name for path in shard.parent.iterdir()] == [shard.name]


def test_a_manifest_leads_into_shards(shard, tmp_path):
    given = tuple(
        Record(image=f"shards/000000.tar/benign/{number}.png", sha256=hashlib.sha256(content).hexdigest(),
               label="benign", split="train", source="dermjax", image_manipulation="synthetic")
        for number, content in enumerate(CONTENTS)
    )  # fmt: skip
    records.write(tmp_path / records.FILE, Manifest(labels=("benign",), root=tmp_path, records=given))
    manifest = records.read(tmp_path)
    assert manifest.records == given
    for pixels, record in zip(PIXELS, given, strict=True):
        np.testing.assert_array_equal(images.load(manifest.path(record), 8), pixels)
    shards.write(shard, [("benign/0.png", CONTENTS[1])])
    os.utime(shard, ns=(0, 0))
    with pytest.raises(UserError, match="not the bytes that the manifest names"):
        manifest.path(given[0])
