"""The bound of a step follows from published figures: chips, the links of a slice, and what is sent between slices."""

import pytest

from dermjax.errors import UserError
from dermjax.training import roofline
from dermjax.training.collectives import around_ring

REDUCED = 3.44e9  # bytes of Stable Diffusion 1.5's UNet in float32


def test_every_chip_has_slices_that_its_links_join():
    for name, chip in roofline.CHIPS.items():
        sizes = [each.size for each in roofline.slices(name)]
        assert sizes == sorted(set(sizes))
        assert not chip.ring or sizes[-1] <= chip.joined
        assert roofline.name_of(chip.kind) == name
        # a chip reads its memory far more quickly than it hears of its neighbours, and these than of other slices
        assert chip.bandwidth > roofline.slices(name)[-1].bandwidth > chip.network


@pytest.mark.parametrize(
    "topology, links",
    [("v5e:1x1", 1), ("v5e:2x2", 2), ("v5e:4x4", 2), ("v5e:8x16", 3), ("v5e:16x16", 4), ("v5p:2x2x1", 2),
     ("v5p:2x2x2", 3), ("v5p:2x4x4", 3), ("v5p:4x4x4", 6)],
)  # fmt: skip
def test_a_closed_axis_gives_two_links_and_an_open_one_one(topology, links):
    where = roofline.parse(topology)
    assert where.bandwidth == links * where.chip.link


@pytest.mark.parametrize(
    "kind, name",
    [("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"),
     ("NVIDIA A100 80GB PCIe", "a100"), ("NVIDIA A100-SXM4-40GB", ""), ("NVIDIA H200", "h200"),
     ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", ""), ("cpu", ""), ("NVIDIA H1000", "")],
)  # fmt: skip
def test_a_device_is_known_by_what_jax_calls_it(kind, name):
    assert roofline.name_of(kind) == name


@pytest.mark.parametrize("topology, said", [
    ("v9:4x4", "chip 'v9' is unknown; there are v4, v5e"),
    ("v5e", "one of 1x1, 2x2"),
    ("v5e:4", "one of 1x1, 2x2"),
    ("v5e:0x4", "one of 1x1, 2x2"),
    ("v5p:4x4", "one of 2x2x1"),
    ("v5e:64x64", "256 chips at most"),
    ("h100:eight", "one of 1, 2, 4, 8"),
])  # fmt: skip
def test_what_is_no_slice_is_said_with_those_that_are(topology, said):
    with pytest.raises(UserError, match=said):
        roofline.parse(topology)


def test_the_longest_of_operations_memory_and_links_is_the_bound():
    where = roofline.parse("v5e:4x4")
    each = roofline.bound(where, 197e12, 819e9 / 2, {"all-reduce": around_ring("all-reduce", 1, 16e9 / 15, 16)})
    assert (each.operations, each.traffic, each.links) == pytest.approx((1.0, 0.5, 2e9 / 100e9))
    assert each.overlapped == pytest.approx(1.0) and each.serial == pytest.approx(1.02)


def test_weak_scaling_keeps_what_chips_compute_and_sends_among_more_of_them():
    where = roofline.parse("v5p:2x2x2")
    reduced = {"all-reduce": around_ring("all-reduce", 3, REDUCED / 3, 8)}
    here, many = (roofline.bound(where, 1e13, 1e11, reduced, chips) for chips in (8, 1024))
    assert here == roofline.bound(where, 1e13, 1e11, reduced)
    assert (many.operations, many.traffic) == (here.operations, here.traffic)
    # six links in place of three
    assert many.links == pytest.approx(2 * 1023 / 1024 * REDUCED / 600e9)
    gathered = {"all-gather": around_ring("all-gather", 1, REDUCED, 8)}
    more = roofline.bound(where, 1e13, 1e11, gathered, 1024).links
    assert more == pytest.approx(7 / 8 * REDUCED / 600e9)  # among as many as before


def test_beyond_what_links_join_each_chip_sends_its_share_over_the_network():
    where = roofline.parse("v5e:16x16")
    reduced = {"all-reduce": around_ring("all-reduce", 1, REDUCED, 256)}
    within, beyond = (roofline.bound(where, 1e13, 1e11, reduced, chips).links for chips in (256, 1024))
    assert beyond - within == pytest.approx(2 * 3 / 4 * REDUCED / 256 / 3.125e9)
