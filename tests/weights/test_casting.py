"""Casting is numpy's, bit for bit, whatever the layout."""

import ml_dtypes
import numpy as np
import pytest

from dermjax.weights import torch_layout

HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16)


def same_bits(one: np.ndarray, other: np.ndarray):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8))


@pytest.mark.parametrize("wanted", [np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("given", [np.float16, ml_dtypes.bfloat16])
def test_every_number_of_two_bytes(given, wanted):
    numbers = np.tile(HALVES.view(given), 5)  # enough of them for both cores
    assert numbers.size > torch_layout.LARGE
    with np.errstate(invalid="ignore"):
        same_bits(torch_layout.cast(numbers, np.dtype(wanted)), numbers.astype(wanted))


@pytest.mark.parametrize("ways", [(0, 1, 2, 3), (2, 3, 1, 0)])
@pytest.mark.parametrize("outputs", [3, 1025])
@pytest.mark.parametrize(
    "kinds",
    [
        (np.float16, np.float32),
        (np.float32, np.float16),
        (np.float32, ml_dtypes.bfloat16),
        (ml_dtypes.bfloat16, np.float32),
    ],
)
def test_a_tensor_small_and_large(kinds, outputs, ways):
    given, wanted = map(np.dtype, kinds)
    array = np.random.default_rng(0).normal(size=(outputs, 130, 3, 3)).astype(given).transpose(ways)
    assert (array.size > torch_layout.LARGE) == (outputs > 3)
    made = torch_layout.cast(array, wanted)
    assert made.flags.c_contiguous and made.flags.writeable
    same_bits(made, array.astype(wanted, order="C"))
