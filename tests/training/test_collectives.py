"""What devices send each other is read off a compiled program: of each kind, in loops, and begun before awaited."""

import os
import subprocess
import sys

import pytest

from dermjax.training.collectives import Collective, around_ring, collectives

HEADER = "HloModule jit_step, entry_computation_layout={()->f32[]}, replica_count=1, num_partitions=8\n\n"
ALL = "replica_groups=[1,8]<=[8]"


def program(*lines):
    """A program of one computation, as XLA prints it."""
    return HEADER + "ENTRY %main (p: f32[8]) -> f32[] {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


@pytest.mark.parametrize(
    "line, kind, size, sent",
    [
        (f"%r = f32[1024]{{0}} all-reduce(%p), {ALL}, to_apply=%add", "all-reduce", 4096, 2 * 7 / 8 * 4096),
        (f"%r = (f32[512]{{0:T(512)}}, /*index=1*/bf16[2,8]{{1,0:T(2,128)(2,1)}}) all-reduce(%p, %q), {ALL}",
         "all-reduce", 2048 + 32, 2 * 7 / 8 * 2080),
        ("%r = f32[64]{0} all-gather(%p), replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}",
         "all-gather", 256, 128),
        ("%r = (f32[16]{0}, f32[64]{0}) all-gather-start(%p), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}",
         "all-gather", 256, 192),
        (f"%r = f32[8]{{0}} reduce-scatter(%p), {ALL}, dimensions={{0}}, to_apply=%add", "reduce-scatter", 256, 224),
        (f"%r = s8[8,32]{{1,0}} all-to-all(%p), {ALL}", "all-to-all", 256, 224),
        ("%r = (f32[64]{0}, f32[64]{0}) collective-permute-start(%p), source_target_pairs={{0,1},{1,0}}",
         "collective-permute", 256, 256),
        ("%r = pred[8]{0} all-reduce(%p), replica_groups={}, to_apply=%or", "all-reduce", 8, 14),
        ("%r = f32[1,8]{1,0} reduce-scatter(%p), replica_groups=mesh['data'=4,'fsdp'=2] {'fsdp'}, dimensions={0}",
         "reduce-scatter", 64, 32),
        ("%r = f32[8]{0} all-reduce(%p), replica_groups=mesh['data'=4,'fsdp'=2] {'data','fsdp'}, to_apply=%add",
         "all-reduce", 32, 56),
    ],
)  # fmt: skip
def test_each_kind_sends_what_a_ring_does(line, kind, size, sent):
    assert collectives(program("%p = f32[8]{0} parameter(0)", line)) == {kind: Collective(1, size, sent)}


def test_what_is_awaited_is_not_counted_again():
    begun = f"%s = f32[64]{{0}} all-reduce-start(%p), {ALL}, to_apply=%add"
    assert collectives(program(begun, "%d = f32[64]{0} all-reduce-done(%s)"))["all-reduce"].number == 1


def test_a_loop_s_collectives_count_as_often_as_it_turns():
    """Also where the collective is in a computation that the loop's body calls."""
    text = HEADER + (
        "%wrapped (p: f32[64]) -> f32[8] {\n"
        f"  ROOT %r = f32[8]{{0}} reduce-scatter(%p), {ALL}, dimensions={{0}}, to_apply=%add\n}}\n\n"
        "%body (t: (s32[], f32[64])) -> (s32[], f32[64]) {\n"
        "  %a = ((f32[64]{0}), f32[8]{0}, u32[]) async-start(%x), calls=%wrapped\n"
        f"  %b = f32[64]{{0}} all-reduce(%x), {ALL}, to_apply=%add\n}}\n\n"
        "ENTRY %main (p: f32[64]) -> f32[64] {\n"
        "  %w = (s32[], f32[64]{0}) while(%t), condition=%more, body=%body, "
        'backend_config={"known_trip_count":{"n":"4"}}\n'
        f"  %c = f32[64]{{0}} all-reduce(%y), {ALL}, to_apply=%add\n}}\n"
    )
    found = collectives(text)
    assert found["all-reduce"] == around_ring("all-reduce", 5, 256.0, 8)
    assert found["reduce-scatter"] == around_ring("reduce-scatter", 4, 256.0, 8)


COMPILED = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from dermjax import sharding
from dermjax.training.collectives import collectives
grid = sharding.mesh({data}, {fsdp})
kernel, batch, whole = (NamedSharding(grid, P(*each)) for each in ((None, 'fsdp'), (sharding.AXES,), ()))

def step(w, parts):
    def one(total, x):
        return total + jax.grad(lambda w: jnp.mean((x @ w) ** 2))(w), None
    return w - jax.lax.scan(one, jnp.zeros_like(w), parts)[0]

given = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=kernel)
parts = jax.ShapeDtypeStruct(({parts}, 32, 64), jnp.float32, sharding=NamedSharding(grid, P(None, sharding.AXES)))
found = collectives(jax.jit(step, out_shardings=kernel).lower(given, parts).compile().as_text())
print({{kind: (each.number, each.size) for kind, each in found.items()}})
"""


@pytest.mark.parametrize("data, fsdp, parts", [(8, 1, 1), (8, 1, 3), (4, 2, 1)])
def test_a_step_on_eight_devices_sums_its_gradients(data, fsdp, parts):
    """One kernel of 16 kB: its gradient is summed once, where its parts are a loop once for each."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    code = COMPILED.format(data=data, fsdp=fsdp, parts=parts)
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    found = eval(done.stdout)
    number, size = found["all-reduce"]
    assert (number, size) == (parts, parts * 64 * 64 * 4 / fsdp)
