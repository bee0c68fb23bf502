"""PyTorch's files without PyTorch: genuine ones are read, and whatever asks for more than tensors is refused unrun."""

import collections
import os
import pickle
import random
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from dermjax.errors import UserError
from dermjax.weights import torch_pickle
from dermjax.weights.tensor_files import open_file


class Payload:
    """What a poisoned checkpoint holds: unpickled by Python, it would run a command."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.system, (f"touch {self.folder}/ran",)


def zipped(path, pickled: bytes, storages: dict[str, bytes] | None = None, compression=zipfile.ZIP_STORED):
    """A file as torch.save writes them, around any pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)


def legacy(path, pickled: bytes):
    """The same in the form before 1.6."""
    frame = [pickle.dumps(torch_pickle.MAGIC, 2), pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2)]
    path.write_bytes(b"".join([*frame, pickled, pickle.dumps([], 2)]))


def reference(shape, strides, first, size, dtype="FloatStorage") -> bytes:
    """The pickle {"a": tensor} over one storage "0", by its opcodes."""
    numbers = lambda values: b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"  # noqa: E731
    storage = b"(S'storage'\nctorch\n%s\nS'0'\nS'cpu'\nI%d\ntQ" % (dtype.encode(), size)
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"I%d\n" % first + numbers(shape) + numbers(strides)
    return b"(dS'a'\n" + rebuild + b"I00\nccollections\nOrderedDict\n(tRtRs."


@pytest.mark.parametrize("form", [zipped, legacy])
def test_a_payload_is_refused_and_not_run(tmp_path, form):
    path = tmp_path / "model.ckpt"
    form(path, pickle.dumps({"state_dict": {"a": Payload(tmp_path)}}, 2))
    with pytest.raises(UserError, match=r"asks for (posix|nt)\.system, which no file of weights needs") as error:
        open_file(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [
    "builtins\neval", "builtins\ngetattr", "os\nsystem", "collections\nOrderedDict.__init__.__globals__",
    "torch\nload", "numpy\nload", "subprocess\nPopen", "torch._utils\n_import_dotted_name", "pickle\nloads",
])  # fmt: skip
def test_no_other_name_is_known(tmp_path, name):
    zipped(tmp_path / "x.pt", f"c{name}\n(S'1'\ntR.".encode())
    with pytest.raises(UserError, match="asks for"):
        open_file(tmp_path / "x.pt")


def test_nothing_is_imported_for_what_is_allowed(tmp_path):
    """A callback that training leaves is passed over without its package being there."""
    callback = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
    zipped(tmp_path / "x.ckpt", b"(dS'callbacks'\n(d" + callback + b"I1\nss.")
    assert open_file(tmp_path / "x.ckpt")[0] == {}


def test_views_of_a_storage(tmp_path):
    values = np.arange(12, dtype="<f4")
    zipped(tmp_path / "x.pt", reference((2, 3), (1, 2), 4, 12), {"0": values.tobytes()})
    tensors, _ = open_file(tmp_path / "x.pt")
    np.testing.assert_array_equal(tensors["a"].read(), [[4, 6, 8], [5, 7, 9]])
    zipped(tmp_path / "y.pt", reference((0, 3), (3, 1), 0, 12), {"0": values.tobytes()})
    assert open_file(tmp_path / "y.pt")[0]["a"].read().shape == (0, 3)


@pytest.mark.parametrize(
    "shape, strides, first", [((2, 7), (7, 1), 0), ((3,), (1,), 10), ((3,), (-1,), 5), ((2,), (1,), -1)]
)
def test_a_view_beyond_its_storage_is_refused(tmp_path, shape, strides, first):
    zipped(tmp_path / "x.pt", reference(shape, strides, first, 12), {"0": bytes(48)})
    with pytest.raises(UserError, match="does not fit into its storage"):
        open_file(tmp_path / "x.pt")


@pytest.mark.parametrize("damage, said", [
    (lambda path: zipped(path, reference((2,), (1,), 0, 12), {"0": bytes(4)}), "compressed or short"),
    (lambda path: zipped(path, reference((2,), (1,), 0, 12), {"0": bytes(48)}, zipfile.ZIP_DEFLATED), "compressed"),
    (lambda path: zipped(path, reference((2,), (1,), 0, 12)), "damaged"),
    (lambda path: zipped(path, b"\x80\x02}q"), "damaged"),
    (lambda path: path.write_bytes(torch_pickle.ZIP + b"\x00" * 40), "damaged"),
    (lambda path: legacy(path, b"\x80\x02}q"), "damaged"),
    (lambda path: path.write_bytes(torch_pickle.LEGACY), "damaged"),
])  # fmt: skip
def test_damage_is_one_line(tmp_path, damage, said):
    path = tmp_path / "x.ckpt"
    damage(path)
    with pytest.raises(UserError, match=said) as error:
        open_file(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("form", [True, False], ids=["zip", "legacy"])
def test_what_pytorch_saves(tmp_path, form):
    """Every type, a transposed tensor, tensors that share a storage, a parameter, nested dictionaries."""
    torch = pytest.importorskip("torch")
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    base = torch.arange(24.0).reshape(4, 6)
    content = {f"kinds{i}": torch.arange(5).to(kind) for i, kind in enumerate(kinds)}
    content |= {"base": base, "rows": base[1:3], "columns": base.T, "scalar": torch.tensor(2.5)}
    content |= {"parameter": torch.nn.Parameter(base + 1), "ordered": collections.OrderedDict(a={"b": base * 2})}
    content |= {"step": 7, "name": "mole"}
    path = tmp_path / "x.pt"
    torch.save(content, path, _use_new_zipfile_serialization=form)
    tensors, texts = open_file(path)
    assert texts == {"step": "7", "name": "mole"}
    expected = {name: each for name, each in content.items() if isinstance(each, torch.Tensor)}
    expected["ordered.a.b"] = base * 2
    assert tensors.keys() == expected.keys()
    for name, theirs in expected.items():
        ours = tensors[name]
        assert ours.shape == tuple(theirs.shape) and ours.dtype.name == str(theirs.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(ours.read().astype(np.float64), theirs.detach().to(torch.float64).numpy())


def test_a_legacy_file_that_ends_early_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(100)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(content[:-8])
    with pytest.raises(UserError, match="it ends early"):
        open_file(tmp_path / "x.pt")
    assert struct.unpack("<q", content[-408:-400]) == (100,)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_flipped_bytes_are_a_tensor_or_one_line(tmp_path, form):
    """Whatever byte is wrong: the file is read, or refused by name; no traceback, and no crash when it is mapped."""
    path, rng = tmp_path / "x.pt", random.Random(0)
    if form == "zip":
        zipped(path, reference((2, 3), (1, 2), 4, 12), {"0": bytes(48)})
    elif form == "legacy":
        legacy(path, reference((2, 3), (1, 2), 4, 12).replace(b"I12", b"I0"))
    else:
        save_file({"a": np.zeros((2, 3), np.float32)}, path, metadata={"name": "mole"})
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            for tensor in open_file(path)[0].values():
                if tensor.size < 1000:
                    tensor.read()
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 50
