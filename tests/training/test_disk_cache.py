"""Arrays that are kept on disk are whole, or not there and the disk is what is said."""

import resource

import numpy as np
import pytest

from dermjax import __main__
from dermjax.training import disk_cache

ROOM = 2**18  # bytes a file: what pytest captures stays below


@pytest.mark.parametrize("size", [2 * ROOM, ROOM - 100], ids=["array", "its end"])
def test_an_array_without_room_is_one_line_and_leaves_nothing(tmp_path, size):
    """Written as np.save writes into a file, the first error had no number and the second end was lost in silence."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, before[1]))
    try:
        with pytest.raises(OSError) as error:
            disk_cache.load_or_compute(
                tmp_path, "moments", {"numeric_versions": {"vae": 1}}, lambda: np.ones(size, np.uint8)
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line = __main__._mendable(error.value)
    assert str(tmp_path / "moments_") in line and line.endswith(
        ".npy: File too large; make room, then the same command"
    )
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]  # the causes


@pytest.mark.parametrize("array", [np.ones((3, 4), np.float16).T, np.float32(2), np.zeros((0, 3))], ids=np.shape)
def test_an_array_is_written_as_numpy_writes_it(tmp_path, array):
    np.save(tmp_path / "theirs.npy", array)
    disk_cache.write_array(tmp_path / "ours.npy", array)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


def test_the_first_process_alone_looks_whether_the_array_is_there(tmp_path, monkeypatch):
    """NFS does not show for a while what was looked for in vain, and the others read what the first one has written."""
    causes = {"numeric_versions": {}}
    disk_cache.load_or_compute(tmp_path, "ones", causes, lambda: np.ones(3))
    monkeypatch.setattr(disk_cache.jax, "process_index", lambda: 1)
    monkeypatch.setattr(disk_cache.Path, "exists", lambda path: pytest.fail(f"looked for {path}"))
    assert disk_cache.load_or_compute(tmp_path, "ones", causes, lambda: np.zeros(3)).tolist() == [1, 1, 1]
