"""Both sides of every kind of case do their work, at small sizes, and count the same of it."""

import copy
import importlib.util
import json
import sys

import numpy as np
import pytest

from dermjax.bench import ours, run
from dermjax.bench.cases import CASES
from dermjax.models import stable_diffusion

# what a kind is asked for here; Stable Diffusion 1.5 is a network of few channels, derm-tiny itself
SMALL = {
    "matrix": {"side": 32},
    "unet": {"batch": 2, "side": 8, "evaluations": 2},
    "decode": {"pixels": 32},
    "sample": {"steps": 1, "batch": 1, "guidance": 2.0},
    "tune": {"batch": 2, "steps": 1},
    "gradient": {"how": "lora", "batch": 1, "side": 8},
    "classify": {"name": "mobilenetv2", "size": 32, "batch": 2, "steps": 1},
    "batches": {"augment": "strong", "images": 32},
    "prepare": {"images": 2},
    "load": {"dtype": "float16"},
}
QUICK = ("matrix", "unet", "decode", "batches", "load")


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A function from a kind to small settings of it, with the folder that it reads."""
    configs = copy.deepcopy(stable_diffusion.SD15)
    configs["text_encoder"] |= {"intermediate_size": 64, "num_hidden_layers": 1}
    configs["unet"] |= {"attention_head_dim": 2, "block_out_channels": [16, 32], "layers_per_block": 1}
    configs["unet"] |= {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "norm_num_groups": 4}
    configs["unet"] |= {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
    configs["vae"] |= {"block_out_channels": [8] * 4, "layers_per_block": 1, "norm_num_groups": 2}
    for module in (stable_diffusion, ours):
        monkeypatch.setattr(module, "SD15", configs)
    monkeypatch.setattr("dermjax.machine.keep_freed_memory", lambda: None)
    monkeypatch.setattr(run, "PHOTOGRAPHS", 32)

    def of(kind):
        if kind not in run.INPUTS:
            return SMALL[kind]
        return SMALL[kind] | {"folder": str(run.inputs(tmp_path / "inputs", run.INPUTS[kind]))}

    return of


def named(kinds):
    return {each.__name__ for each in kinds}


def marked(kinds):
    return [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in kinds]


@pytest.mark.parametrize("kind", marked(SMALL))
def test_our_side_works(kind, settings):
    work = getattr(ours, kind)(**settings(kind))
    work.run()
    work.run()
    assert work.peak() > 1e6
    assert bool(work.operations) == (kind not in ("batches", "prepare", "load"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", [kind for kind in SMALL if kind != "prepare"])
def test_pytorch_s_side_works(kind, settings, monkeypatch):
    for package in ("torch", "diffusers", "transformers", "peft", "accelerate"):
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location("pytorch_side", run.PYTORCH[-1])
    theirs = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pytorch_side", theirs)  # where the DataLoader's processes look for the data set
    spec.loader.exec_module(theirs)
    given = settings(kind)
    if kind == "load":
        ours.write_random(run.Path(given["folder"]))
    compiles = {case.kind for cases in CASES.values() for case in cases.values() if case.compiles}
    work = getattr(theirs, kind)(**given, **({"compiled": False} if kind in compiles else {}))
    work.run()
    assert work.peak() > 1e6
    assert named(theirs.KINDS) == named(ours.KINDS) - {"prepare"} == set(SMALL) - {"prepare"}


def test_every_case_has_settings_that_its_kind_takes():
    for cases in CASES.values():
        for case in cases.values():
            assert set(case.settings) == set(SMALL[case.kind])
            json.dumps(case.settings)


def test_operations_of_an_evaluation_are_counted_once_each(settings):
    """A loop's body stands once in a program, whatever the number of times it runs."""
    one = ours.unet(batch=1, side=8, evaluations=1).operations
    assert ours.unet(batch=1, side=8, evaluations=3).operations == pytest.approx(3 * one)
    assert ours.unet(batch=2, side=8, evaluations=1).operations == pytest.approx(2 * one, rel=0.01)
    product = ours.operations(lambda a, b: a @ b, np.ones((8, 16), np.float32), np.ones((16, 4), np.float32))
    assert product == pytest.approx(2 * 8 * 16 * 4, rel=0.1)
