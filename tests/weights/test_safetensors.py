"""safetensors files: equal to the package's in both directions, tensor by tensor, and every way to be broken."""

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dermjax.errors import UserError
from dermjax.weights import safetensors
from dermjax.weights.safetensors import LazyTensor, from_array
from dermjax.weights.tensor_files import open_file, weight_files

ARRAYS = {
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "single": np.linspace(0, 1, 5, dtype=np.float32),
    "scalar": np.array(3, np.int64),
    "empty": np.zeros((0, 4), np.float32),
    "truth": np.array([True, False]),
}


def test_the_package_reads_what_we_write(tmp_path):
    safetensors.write(tmp_path / "x.safetensors", {name: from_array(each) for name, each in ARRAYS.items()}, {"a": "b"})
    theirs = load_file(tmp_path / "x.safetensors")
    assert theirs.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert theirs[name].dtype == array.dtype
        np.testing.assert_array_equal(theirs[name], array)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_we_read_what_the_package_writes(tmp_path):
    save_file(ARRAYS, tmp_path / "x.safetensors", metadata={"a": "b"})
    tensors, texts = open_file(tmp_path / "x.safetensors")
    assert texts == {"a": "b"} and tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(tensors[name].read(), array)


def test_bfloat16_and_views_that_are_not_contiguous(tmp_path):
    array = np.arange(12).reshape(3, 4).astype(ml_dtypes.bfloat16).T
    safetensors.write(tmp_path / "x.safetensors", {"a": from_array(array)}, {})
    read = safetensors.read(tmp_path / "x.safetensors")[0]["a"]
    assert read.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read.read(), array)


def test_tensors_are_fetched_one_by_one(tmp_path):
    """Written, a tensor is fetched when its turn comes; opened, none is."""
    order = []

    def tensor(name):
        return LazyTensor((2,), np.dtype(np.float32), lambda: order.append(name) or np.zeros(2, np.float32))

    safetensors.write(tmp_path / "x.safetensors", {name: tensor(name) for name in "abc"}, {})
    assert order == ["a", "b", "c"]


def header(content: dict) -> bytes:
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text


GOOD = header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})


@pytest.mark.parametrize("content, said", [
    (b"", "is empty"),
    (b"<!DOCTYPE html><html>sign in</html>", "is a web page"),
    (b"\n  <html>", "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265146304\n", "is a git-lfs pointer"),
    (b"\x89PNG\r\n\x1a\n" + bytes(90), "not a readable safetensors or PyTorch file"),
    (GOOD + bytes(4), "fetch the file again"),
    (GOOD + bytes(12), "fetch the file again"),
    (GOOD[:20], "ends early, within its header"),
    (GOOD.replace(b"shape", b"shade") + bytes(8), "its header is damaged"),
    (header({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}}) + bytes(8), "its header is damaged"),
    (header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}) + bytes(8), "its header is damaged"),
    (header({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}) + bytes(8), "its header is damaged"),
    (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}), "its header is damaged"),
    (header({"__metadata__": {"a": 3}}), "its header is damaged"),
    ((2**17).to_bytes(8, "little") + b'{"a":' + b"[" * (2**17 - 5), "its header is damaged"),
])  # fmt: skip
def test_a_broken_file_is_one_line(tmp_path, content, said):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        open_file(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"x\.ckpt: cannot be read \(No such file"):
        open_file(tmp_path / "x.ckpt")


@pytest.mark.parametrize("names, variant, taken", [
    (["model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"], "", ["model.safetensors"]),
    (["model.safetensors", "model.fp16.safetensors"], "fp16", ["model.fp16.safetensors"]),
    (["diffusion_pytorch_model.fp16.safetensors"], "", ["diffusion_pytorch_model.fp16.safetensors"]),
    (["pytorch_model.bin"], "", ["pytorch_model.bin"]),
])  # fmt: skip
def test_the_file_of_a_folder(tmp_path, names, variant, taken):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in weight_files(tmp_path, variant)] == taken


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "model.safetensors.index.fp16.json"])
def test_shards_follow_their_index(tmp_path, index):
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors", "c": "../escaped"}
    (tmp_path / index).write_text(json.dumps({"weight_map": shards}))
    assert weight_files(tmp_path, "") == [tmp_path / name for name in ("escaped", shards["a"], shards["b"])]


def test_no_file_or_several_variants_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no diffusion_pytorch_model\.safetensors or model\.safetensors; fetch"):
        weight_files(tmp_path, "")
    for variant in ("fp16", "non_ema"):
        (tmp_path / f"diffusion_pytorch_model.{variant}.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="there are the variants fp16, non_ema"):
        weight_files(tmp_path, "")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the memory of mapped files")
def test_pages_of_a_file_can_be_forgotten(tmp_path):
    def mapped():
        return int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

    array = np.arange(2**24, dtype=np.float32)
    safetensors.write(tmp_path / "x.safetensors", {"x": safetensors.from_array(array)}, {})
    tensors, _ = safetensors.read(tmp_path / "x.safetensors")
    read, before = tensors["x"].read(), mapped()
    total = float(read.sum(dtype=np.float64))
    assert mapped() - before > 0.9 * array.nbytes
    safetensors.forget_pages(read[1:].reshape(-1))
    assert mapped() - before < 0.1 * array.nbytes
    assert float(read.sum(dtype=np.float64)) == total
    safetensors.forget_pages(array)  # of no file
    assert array[-1] == 2**24 - 1
