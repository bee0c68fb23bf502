"""Lines and TensorBoard's events of a run say what cannot be written, and do not wait for it."""

import resource

import numpy as np
import pytest

from dermjax import __main__
from dermjax.training.writers import Writer


def test_events_without_room_are_an_error_of_the_disk(tmp_path):
    """TensorBoardX writes in a thread of its own: it ended, and the eleventh event after that waited for ever."""
    writer, before = Writer(tmp_path, -1), resource.getrlimit(resource.RLIMIT_FSIZE)
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError) as error:
            writer.write(0, {"loss": 1.0, "samples": image})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        writer.close()
    assert "make room, then the same command" in __main__._mendable(error.value)
