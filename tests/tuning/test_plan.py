"""`dermjax plan`: the true step for a slice that is not here, its needs, and what is refused."""

import importlib.util
import json
import os
import re
from pathlib import Path

import jax
import pytest

from dermjax.models.stable_diffusion import SD15
from dermjax.training import roofline
from dermjax.tuning import needs, plan
from dermjax.tuning.setup import shaped_setup

CONFIG = Path(__file__).parents[2] / "configs" / "tune.py"
TPU = os.environ.get("TPU_LIBRARY_PATH") or importlib.util.find_spec("libtpu")
compiles = pytest.mark.skipif(not TPU, reason="needs libtpu, the extra plan")


@pytest.fixture
def planned(command, base, tmp_path):
    """planned(topology, flags, …): what `dermjax plan` says of the narrow model, and the rows of plan.json."""

    def run(topology, *given, preset="demo", batch=16):
        code, said, error = command(
            "plan", f"--config={CONFIG}:{preset}", f"--config.model={base}", "--config.size=32",
            f"--config.batch={batch}", f"--topology={topology}", f"--workdir={tmp_path}", *given,
        )  # fmt: skip
        assert (code, error) == (0, "")
        return said, json.loads((tmp_path / "plan.json").read_text())

    return run


def narrow(config, topology, **changes):
    """The forecast of the narrow model on a slice, in bfloat16."""
    asked = config(precision="bfloat16", **changes)
    return plan.planned(asked, plan.described(asked), roofline.parse(topology))


@compiles
def test_the_compiler_of_a_slice_says_what_a_step_needs(config):
    """Four chips, each with every parameter and a quarter of the batch."""
    found = narrow(config, "v5e:2x2", batch=16).needs
    # the gradient of every parameter is summed over the chips once, in float32 although kernels compute in bfloat16
    assert set(found.collectives) == {"all-reduce"}
    assert found.collectives["all-reduce"].size == pytest.approx(found.average, rel=0.01)
    assert found.parameters >= found.average and found.optimizer > found.average
    assert found.fits and found.operations > 0 and found.estimate > 0 and "libtpu" in found.by


@compiles
@pytest.mark.slow
def test_a_slice_is_planned_with_the_smallest_that_fits(planned):
    said, (found,) = planned("v5e:2x2")
    assert (found["slice"], found["mesh"]) == ("v5e:2x2", [4, 1])
    assert "it fits" in said and "nothing here was measured" in said
    assert 0 < found["mfu"] < 1
    assert list(found["scaling"]) == ["4", "8", "16", "32", "64", "128", "256", "512", "1024"]
    assert "smallest      v5e:1x1, by arithmetic about" in said and said.count("plan: v5e") == 1


@compiles
@pytest.mark.slow
def test_collectives_of_a_device_stay_the_same_on_more_chips(config):
    few, many = (narrow(config, topology, batch=batch).needs for topology, batch in (("v5e:2x2", 8), ("v5e:4x4", 32)))
    assert few.collectives["all-reduce"].size == many.collectives["all-reduce"].size


@compiles
@pytest.mark.slow
def test_of_a_lora_the_chips_sum_the_adapters_alone(config):
    """Not the kernels that they change, and once for a batch in two parts."""
    lora = {"tuned.unet": "lora", "lora.rank": 4, "batch": 16}
    for accumulate in (1, 2):
        asked = config(precision="bfloat16", accumulate=accumulate, **lora)
        where = roofline.parse("v5e:2x2")
        state, _ = shaped_setup(asked, plan.described(asked), plan.grid_of(asked, where)).shapes
        found = plan.planned(asked, plan.described(asked), where).needs
        adapters = 4 * sum(leaf.size for leaf in jax.tree.leaves(state.params))
        assert found.collectives["all-reduce"].size == pytest.approx(adapters, rel=0.01)


@compiles
@pytest.mark.slow
def test_parts_of_a_batch_are_counted_each(config):
    """Two parts of eight images are as many operations as sixteen at once; XLA counts the body of a loop once."""
    whole, parts = (narrow(config, "v5e:1x1", batch=16, accumulate=accumulate).needs for accumulate in (1, 2))
    assert parts.operations == pytest.approx(whole.operations, rel=0.2)


@compiles
@pytest.mark.slow
def test_fsdp_divides_what_a_device_holds_and_gathers_it(config):
    whole, divided = (narrow(config, "v5e:2x2", batch=16, **{"mesh.fsdp": fsdp}).needs for fsdp in (1, 4))
    assert divided.optimizer < 0.5 * whole.optimizer
    assert "all-gather" in divided.collectives and "all-gather" not in whole.collectives


@pytest.mark.parametrize("said, bytes_lacking", [
    ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (22.5G) exceeds "
     "available HBM (15.75G).", 22.5 * 2**30),
    ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.00G of 15.75G hbm. Exceeded hbm capacity by "
     "4.25G.", 16 * 2**30),
    ("INTERNAL: something else", None),
])  # fmt: skip
def test_the_compiler_s_words_for_no_room_are_understood(said, bytes_lacking):
    assert needs.without_room(said, held=4 * 2**30) == bytes_lacking


@compiles
@pytest.mark.slow
def test_a_step_without_room_says_how_much_it_would_take(config):
    """512 images of 512 px: more than the 16 GB of a v5e."""
    found = narrow(config, "v5e:1x1", batch=512, size=512)
    assert not found.fits and found.needs.peak > 16 * 2**30


@compiles
@pytest.mark.slow
def test_a_sweep_is_a_table_of_meshes_and_batches(planned):
    said, rows = planned("v5e:2x2", "--sweep")
    asked = [(mesh, batch) for mesh in ([4, 1], [1, 4]) for batch in (8, 16, 32)]
    assert [(row["mesh"], row["batch"]) for row in rows] == asked
    assert said.count("v5e:2x2") >= len(rows) and "images/s at most" in said


@compiles
@pytest.mark.parametrize("topology", ["v5e:3x5", "v4:2x3x5"])
def test_a_slice_that_the_compiler_does_not_know_is_one_line(topology, refused):
    assert "the TPU compiler refuses it" in refused(topology)


def test_gpus_are_planned_by_shapes(planned):
    said, rows = planned("h100:8")
    found = rows[0]["needs"]
    assert found["by"] == "shapes" and found["operations"] > 0
    assert found["collectives"]["all-reduce"] == {
        "number": 2, "size": pytest.approx(found["average"]), "sent": pytest.approx(2 * 7 / 8 * found["average"])
    }  # fmt: skip
    assert "h100:8: 8 chips, mesh 8 x 1, batch 16" in said
    (said_of_one,) = [line for line in said.splitlines() if line.startswith("  smallest      h100:1, by arithmetic")]
    _, (alone,) = planned("h100:1")
    shown = float(re.search(r"about ([\d.]+) ", said_of_one)[1])
    unit = {"kB": 1e3, "MB": 1e6, "GB": 1e9}[re.search(r"about [\d.]+ (.B)", said_of_one)[1]]
    assert shown * unit == pytest.approx(alone["needs"]["peak"], rel=0.1)
    assert "smallest      h100:1, this one" in planned("h100:1")[0]


def test_no_room_is_said_with_the_smallest_slice_that_has_it(command, tmp_path):
    """Stable Diffusion 1.5 in full at 512 px, 256 images: more than one H100 has, less than each of eight."""
    code, said, _ = command("plan", f"--config={CONFIG}:full", "--config.batch=256", "--topology=h100:1",
                            "--config.remat=none")  # fmt: skip
    assert code == 0
    assert "config.model is empty: planned for Stable Diffusion 1.5" in said and "no room" in said
    smallest = next(line for line in said.splitlines() if line.startswith("  smallest"))
    assert 1 < int(smallest.split("h100:")[1].split(",")[0]) <= 8


@pytest.fixture
def refused(command, base):
    """What `dermjax plan` says of a topology and flags that it refuses, in one line."""

    def run(topology, *given):
        code, _, error = command("plan", f"--config={CONFIG}:demo", f"--config.model={base}", "--config.size=32",
                                 *([f"--topology={topology}"] if topology else []), *given)  # fmt: skip
        assert code == 2 and len(error.splitlines()) == 1
        return error

    return run


@pytest.mark.parametrize(
    "topology, given, said",
    [
        ("", [], "--topology is missing"),
        ("v9:4x4", [], "chip 'v9' is unknown"),
        ("h100:3x3", [], "give a slice of h100 as one of 1, 2"),
        ("h100:8", ["--config.batch=12"], "batch = 12 does not divide over 8 devices; give a multiple of 8"),
        ("h100:8", ["--config.mesh.data=16"], "mesh 16 x 1 does not divide h100:8 of 8 chips"),
        ("h100:8", ["--config.mesh.fsdp=3"], "does not divide h100:8 of 8 chips"),
        ("h100:8", ["--config.mesh.data=4"], "does not divide h100:8 of 8 chips"),
        ("h100:8", ["--config.size=30"], "not a multiple of"),
        ("h100:8", ["--config.model=nowhere"], "nowhere"),
        ("h100:8", ["--config.optimizer=sgd"], "config.optimizer 'sgd' is unknown"),
        ("h100:8", ["--config.tuned.unet=frozen"], "nothing is tuned"),
    ],
)
def test_what_cannot_be_planned_is_one_line(topology, given, said, refused):
    assert said in refused(topology, *given)


def test_without_the_compiler_its_extra_is_said(monkeypatch, refused):
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    assert "pip install 'dermjax[plan]'" in refused("v5e:2x2")


def test_weights_need_not_be_there(tmp_path, command):
    """A model's folder with its configs alone, as somebody has who asks before downloading."""
    for name, content in SD15.items():
        (tmp_path / name).mkdir()
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (tmp_path / name / file).write_text(json.dumps(content))
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    code, said, _ = command("plan", f"--config={CONFIG}:paper", f"--config.model={tmp_path}", "--topology=h200:1")
    assert code == 0 and "0.797 M parameters are trained" in said
