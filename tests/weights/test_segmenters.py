"""A segmenter's folder: what is written is read, what does not fit is one line."""

import jax
import numpy as np
import pytest

from dermjax.errors import UserError
from dermjax.models import segmenter
from dermjax.models.nnx_tree import draw
from dermjax.weights import safetensors, segmenters


@pytest.fixture
def folder(tmp_path):
    params = draw(segmenter.NETWORK.shapes[0], {}, np.random.default_rng(0))
    segmenters.write(tmp_path / "segmenter", params, {"temperature": 2.0})
    return tmp_path / "segmenter", params


def test_what_is_written_is_read_in_half_precision(folder):
    read, config = segmenters.read(folder[0])
    assert config == {"temperature": 2.0}
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(one, np.float16(other)), read, folder[1])


def test_what_is_missing_or_misshapen_is_named(folder):
    path, _ = folder
    tensors, _ = safetensors.read(path / segmenters.FILE)
    kept = {name: tensor for name, tensor in tensors.items() if name != "conv_out.bias"}
    safetensors.write(path / segmenters.FILE, kept, {})
    with pytest.raises(UserError, match=r"conv_out\.bias"):
        segmenters.read(path)
    (path / segmenters.FILE).unlink()
    with pytest.raises(UserError, match=segmenters.FILE):
        segmenters.read(path)


def test_the_shipped_one_is_small_documented_and_of_this_network():
    params, config = segmenters.read(segmenters.SHIPPED)
    assert config["widths"] == list(segmenter.WIDTHS) and config["temperature"] > 0
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) < 2e6
    assert (segmenters.SHIPPED / segmenters.FILE).stat().st_size < 5e6
    card = (segmenters.SHIPPED / "README.md").read_text().lower()
    assert "research use only" in card and "cc0" in card
