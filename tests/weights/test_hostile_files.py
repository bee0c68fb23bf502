"""Files that are made to hang, to fill the memory or to end in a traceback: refused in one line, at once."""

import json
import math
import pickle
import resource
import struct
import time
import zipfile

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open

from dermjax.errors import UserError
from dermjax.weights import torch_pickle
from dermjax.weights.safetensors import MOST_ELEMENTS
from dermjax.weights.tensor_files import open_file, weight_files

MIB = 2**20
SECONDS = 2.0  # of a core; under one on a free one


def archive(path, pickled, compression=zipfile.ZIP_STORED, **members):
    """A zip as torch.save writes them, around any pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        for name, content in members.items():
            file.writestr(f"archive/{name}", content)


def legacy(path, pickled):
    """The same in the form before 1.6."""
    frame = [pickle.dumps(torch_pickle.MAGIC, 2), pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2)]
    path.write_bytes(b"".join([*frame, pickled, pickle.dumps([], 2)]))


def tensor(shape: bytes, strides: bytes, size: bytes = b"I2\n", first: bytes = b"I0\n", key: bytes = b"S'0'\n"):
    """The pickle {"a": tensor} over a storage of two floats, by its opcodes."""
    storage = b"(S'storage'\nctorch\nFloatStorage\n" + key + b"S'cpu'\n" + size + b"tQ"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + first + b"(" + shape + b"t(" + strides + b"t"
    return b"(dS'a'\n" + rebuild + b"I00\nccollections\nOrderedDict\n(tRtRs."


def laughs(levels: int) -> bytes:
    """Dictionaries each of which holds the one before it twice."""
    content = {}
    for _ in range(levels):
        content = {"a": content, "b": content}
    return pickle.dumps(content, 2)


def tuples(levels: int) -> bytes:
    """A key whose hash takes two to the power of `levels` steps."""
    made = b")" + b"\x86".join([b"2"] * levels) + b"\x86"
    return b"}" + made + b"K\x01s."


def deep(levels: int) -> bytes:
    """Dictionaries in dictionaries."""
    return b"\x80\x02" + b"}X\x01\x00\x00\x00a" * levels + b"}" + b"s" * levels + b"."


COLLIDING = b"}(" + b"".join(pickle.LONG1 + b"\x14" + (n * (2**61 - 1)).to_bytes(20, "little") + b"N"
                             for n in range(1, 20000)) + b"u."  # fmt: skip
LONG = b"X" + struct.pack("<I", 2**16) + b"x" * 2**16  # a text, put into the memo as 0
HOSTILE = {
    "billion laughs": laughs(60),
    "deep": deep(100_000),
    "a list given to a stand-in a thousand times": b"(" + b"N" * 10**5 + b"lq\x000"
    + b"ccollections\nOrderedDict\nh\x00\x85R0" * 10**4 + b"N.",
    "a text as the members of a call": LONG + b"q\x000" + b"cbuiltins\nset\nh\x00R0" * 10**4 + b"N.",
    "long names": b"}" + LONG + b"q\x00" + b"}s" + b"0}" + b"h\x00}s" * 100 + b".",
    "bytes that are not there": b"\x80\x05\x96" + struct.pack("<Q", 2**36) + b".",
    "text that is not there": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b".",
    "a frame that is not there": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N" * 10 + b"}}s.",
    "three million dictionaries": b"(" + b"}" * (3 * 10**6) + b"l.",
    "a state for a function": b"ctorch._utils\n_rebuild_tensor_v2\nN}X\x01\x00\x00\x00aNs\x86b.",
    "a state for a stand-in's class": b"cbuiltins\nset\nN}X\x01\x00\x00\x00aNs\x86b.",
    "a reference to a text": LONG + b"q\x000" + b"h\x00Q.",
    "10^15 elements of one": tensor(b"I%d\n" % 10**15, b"I0\n"),
    "10^15 elements, no stride in two axes": tensor(b"I%d\nI%d\n" % (10**8, 10**7), b"I0\nI0\n"),
    "no elements, and 10^30": tensor(b"I0\nL%dL\n" % 10**30, b"I1\nI1\n"),
    "a shape of floats": tensor(b"F2.0\n", b"I1\n"),
    "a shape of truth": tensor(b"I01\n", b"I1\n"),
    "a shape of texts": tensor(b"S'2'\n", b"I1\n"),
    "a stride of floats": tensor(b"I2\n", b"F1.0\n"),
    "a first element of floats": tensor(b"I2\n", b"I1\n", first=b"F0.0\n"),
    "a storage of a float": tensor(b"I2\n", b"I1\n", size=b"F2.0\n"),
    "a storage of less than nothing": tensor(b"I2\n", b"I1\n", size=b"I-2\n"),
    "a storage named by a dictionary": tensor(b"I2\n", b"I1\n", key=b"}"),
    "fewer strides than axes": tensor(b"I1\nI2\n", b"I1\n"),
    "a hundred axes": tensor(b"I1\n" * 100, b"I1\n" * 100),
}  # fmt: skip
HARMLESS = {  # left out, as everything that is no tensor with a name
    "a memo of 64 GB": b"Nr\xff\xff\xff\x7fN.",
    "keys that collide": COLLIDING,
    "a key of tuples": tuples(60),
    "a number of a million digits": b"}X\x01\x00\x00\x00a\x8b" + struct.pack("<I", 400_000) + b"\x7f" * 400_000 + b"s.",
    "truth": b"}X\x01\x00\x00\x00a\x88s.",
}


def at_once(path) -> str:
    """What is said of a file that is refused within SECONDS, with little memory and in one line."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UserError) as error:
        open_file(path)
    assert time.process_time() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB
    said = str(error.value)
    assert str(path) in said and said.isprintable() and len(said) < len(str(path)) + 600
    return said


@pytest.mark.parametrize("form", [archive, legacy])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused_at_once(tmp_path, kind, form):
    path = tmp_path / "x.pt"
    form(path, HOSTILE[kind], **({"data/0": bytes(8)} if form is archive else {}))
    assert "damaged, or not a file of PyTorch" in at_once(path)


@pytest.mark.parametrize("form", [archive, legacy])
@pytest.mark.parametrize("kind", HARMLESS)
def test_what_is_left_out_takes_no_time(tmp_path, kind, form):
    form(tmp_path / "x.pt", HARMLESS[kind])
    began = time.process_time()
    tensors, texts = open_file(tmp_path / "x.pt")
    assert not tensors and texts in ({}, {"a": "True"}) and time.process_time() - began < SECONDS


@pytest.mark.parametrize("member", ["data.pkl", "byteorder"])
def test_a_member_that_unfolds_to_a_thousand_times_its_size(tmp_path, member):
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        if member != "data.pkl":
            file.writestr("archive/data.pkl", b"}.")
        with file.open(f"archive/{member}", "w", force_zip64=True) as stream:
            for _ in range(300):
                stream.write(b"}" * MIB)
    assert "is compressed" in at_once(path)


def test_a_long_pickle_is_refused_before_it_is_read(tmp_path):
    archive(tmp_path / "x.pt", b"B" + struct.pack("<I", 100 * MIB) + bytes(100 * MIB) + b".")
    assert "more than 16 MiB" in at_once(tmp_path / "x.pt")


def test_a_stand_in_is_as_it_was_after_all_of_them(tmp_path):
    """No state that a file gives reaches what the next file is read with."""
    values = np.arange(2, dtype="<f4")
    archive(tmp_path / "x.pt", tensor(b"I2\n", b"I1\n"), **{"data/0": values.tobytes()})
    np.testing.assert_array_equal(open_file(tmp_path / "x.pt")[0]["a"].read(), values)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pytorch_is_read(tmp_path, protocol):
    torch = pytest.importorskip("torch")
    content = {"state_dict": {f"layer.{n}": torch.full((2, 3), float(n)) for n in range(300)}, "step": 3}
    content["state_dict"]["expanded"] = torch.arange(77).expand((1, -1))
    torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol)
    tensors, texts = open_file(tmp_path / "x.pt")
    assert len(tensors) == 301 and texts == {"step": "3"}
    np.testing.assert_array_equal(tensors["layer.7"].read(), np.full((2, 3), 7, np.float32))


ONE = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def spelt(first: int, last: int, shape=(1,), dtype="F32") -> str:
    return json.dumps({"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]})


HEADERS = {
    "twice": (f'{{"a":{ONE},"a":{spelt(4, 8)}}}', 8, "invalid offset for tensor `a`"),
    "metadata twice": (f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{ONE}}}', 4, "duplicate field `__metadata__`"),
    "a field twice": (f'{{"a":{{"dtype":"F16",{ONE[1:]}}}', 4, "duplicate field `dtype`"),
    "shared bytes": (f'{{"a":{ONE},"b":{ONE}}}', 4, "invalid offset for tensor"),
    "half shared": (f'{{"a":{spelt(0, 8, (2,))},"b":{spelt(4, 12, (2,))}}}', 12, "invalid offset for tensor `b`"),
    "a hole": (f'{{"a":{ONE},"b":{spelt(8, 12)}}}', 12, "invalid offset for tensor `b`"),
    "a hole at the start": (f'{{"a":{spelt(4, 8)}}}', 8, "invalid offset for tensor `a`"),
    "nothing within another": (f'{{"a":{ONE},"e":{spelt(2, 2, (0,))}}}', 4, "invalid offset for tensor `e`"),
    "bytes behind": (f'{{"a":{ONE}}}', 8, "bytes where its header promises"),
    "half a surrogate pair": (f'{{"\\ud800":{ONE}}}', 4, "unexpected end of hex escape"),
    "no UTF-8": ('{"\udce9":' + ONE + "}", 4, "invalid UTF-8 in header"),
    "three ends": ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}}', 4, "invalid length 3"),
    "an unknown type": (f'{{"a":{spelt(0, 5, (2,), "X7")}}}', 5, "a tensor is of the type X7"),
}  # fmt: skip


def headed(path, text: str, size: int):
    header = text.encode("utf-8", "surrogateescape")
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_safetensors_refuses_is_refused(tmp_path, kind):
    text, size, said = HEADERS[kind]
    headed(tmp_path / "x.safetensors", text, size)
    with pytest.raises(SafetensorError):
        safe_open(tmp_path / "x.safetensors", "np").__enter__()
    assert said in at_once(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "shape", [[MOST_ELEMENTS, 2], [1] * 100, [0, 10**30], [True], [1.0], ["1"], "1", None, {"1": 1}]
)
def test_a_shape_that_no_array_has_is_refused(tmp_path, shape):
    known = isinstance(shape, list) and all(type(n) is int for n in shape)
    entry = {"dtype": "U8", "shape": shape, "data_offsets": [0, math.prod(shape) if known else 1]}
    headed(tmp_path / "x.safetensors", json.dumps({"a": entry}), 1)
    said = "bytes where its header promises" if shape == [MOST_ELEMENTS, 2] else "its header is damaged"
    assert said in at_once(tmp_path / "x.safetensors")


def test_order_and_empty_tensors_are_free(tmp_path):
    """As in the package: the order of names says nothing, and what is empty lies anywhere between the others."""
    text = f'{{"__metadata__":null,"e":{spelt(4, 4, (0, 3))},"b":{spelt(4, 8)},"a":{ONE}}}'
    headed(tmp_path / "x.safetensors", text, 8)
    with safe_open(tmp_path / "x.safetensors", "np") as theirs:
        assert set(theirs.keys()) == open_file(tmp_path / "x.safetensors")[0].keys() == {"a", "b", "e"}


@pytest.mark.parametrize("dtype, size", [("F4", 1), ("F6_E2M3", 3), ("C64", 16)])
def test_a_type_that_is_not_known_is_refused_when_it_is_read(tmp_path, dtype, size):
    shape = (4,) if dtype == "F6_E2M3" else (2,)
    text = f'{{"a":{spelt(0, size, shape, dtype)},"b":{spelt(size, size + 4)}}}'
    headed(tmp_path / "x.safetensors", text, size + 4)
    tensors, _ = open_file(tmp_path / "x.safetensors")
    assert tensors["b"].read() == [0] and tensors["a"].shape == shape
    with pytest.raises(UserError, match=rf"x\.safetensors: a is of the type {dtype}, which dermjax does not read"):
        tensors["a"].read()


@pytest.mark.parametrize("dtype", ["U16", "U32", "U64", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"])
def test_types_that_only_others_have(tmp_path, dtype):
    size = {"U16": 2, "U32": 4, "U64": 8}.get(dtype, 1)
    headed(tmp_path / "x.safetensors", f'{{"a":{spelt(0, size, (1,), dtype)}}}', size)
    assert np.isfinite(open_file(tmp_path / "x.safetensors")[0]["a"].read().astype(np.float32)).all()


@pytest.mark.parametrize("name", ["model\x00.safetensors", "model\ud800.safetensors", "", "..", "a/..", ".", 7, None])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_an_index_with_a_name_that_no_file_has(tmp_path, name, suffix):
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    (tmp_path / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match=r"index\.json: no weight_map with the files of the tensors; fetch") as error:
        weight_files(tmp_path, "")
    assert str(error.value).isprintable()
