"""Every number of every config file has a range: outside of it, it is one line at the start that names the option."""

import importlib
import re
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from dermjax import config_file
from dermjax.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"
STAGES = {
    "classify": "dermjax.classification.run",
    "curate": "dermjax.curation.run",
    "demo": "dermjax.demo",
    "mask": "dermjax.transformation.masks",
    "prepare": "dermjax.preparation.run",
    "pretrain": "dermjax.pretraining.run",
    "study": "dermjax.study.run",
    "sweep": "dermjax.tuning.sweep",
}
VARIANTS = {
    "classify": ("probe", "mobilenetv2", "demo"),
    "curate": ("demo", "calibration"),
    "demo": ("photographs",),
    "evaluate": ("demo", "images"),
    "generate": ("released", "balanced_tones", "tiny", "training", "demo"),
    "mask": (),
    "prepare": ("phantoms", "demo"),
    "pretrain": ("tiny", "smoke", "segmenter"),
    "publish": (),
    "study": ("last", "full", "few", "own", "folds"),
    "sweep": ("full", "tiny"),
    "transform": ("demo",),
    "tune": ("lora", "full", "best", "tiny", "demo", "photographs"),
}


def config(stage, variant=None):
    return runpy.run_path(str(CONFIGS / f"{stage}.py"))["get_config"](*([variant] if variant else []))


def numbers(node, prefix=""):
    """The names of the numbers of a config, with dots."""
    for key, value in node.items():
        if isinstance(value, ConfigDict):
            yield from numbers(value, f"{prefix}{key}.") if key not in config_file.FREE else ()
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}"


def changed(asked, name, value):
    *parents, key = name.split(".")
    node = asked
    for parent in parents:
        node = node[parent]
    with asked.unlocked(), asked.ignore_type():
        node[key] = value
    return asked


@pytest.mark.parametrize(
    ("stage", "variant"), [(stage, each) for stage in VARIANTS for each in (None, *VARIANTS[stage])]
)
def test_every_number_has_a_range_and_lies_in_it(stage, variant):
    asked = config(stage, variant)
    config_file.check(asked)
    known = {key for _, keys in config_file.RANGES.values() for key in keys}
    assert {name.rpartition(".")[2] for name in numbers(asked)} <= known


def test_no_config_is_left_out():
    assert set(VARIANTS) == {path.stem for path in CONFIGS.glob("*.py")}


def test_a_key_has_one_range():
    keys = [key for _, keys in config_file.RANGES.values() for key in keys]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("stage", VARIANTS)
def test_what_is_no_number_is_named(stage):
    for name in numbers(config(stage)):
        for value in (float("nan"), float("inf")):
            with pytest.raises(UserError, match=re.escape(f"config.{name} = {value}: give ")):
                config_file.check(changed(config(stage), name, value))


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("steps", (1, 7), (0, -1)),
        ("accumulate", (1,), (0, -2)),
        ("guidance", (1, 7.5), (0.5, -1)),
        ("warmup", (0, 2), (-1,)),
        ("clip", (0.0, 2.5), (-1e-9,)),
        ("timestep_bias", (0.01, 100), (0.0, -1.0, 1e-30, 1e30)),
        ("views", (1, 1000), (0, 10**6)),
        ("prompt_dropout", (0.0, 0.5, 1.0), (-0.1, 1.01)),
        ("ema_decay", (0.0, 0.999), (1.0, -0.1)),
        ("label_smoothing", (0.0, 0.1), (1.0, 1.5)),
        ("seed", (0, 2**32 - 1), (-1, 2**32)),
        ("sharpness", (-5.0, 5.0), (float("nan"), float("-inf"))),
        ("another", (-5,), (float("inf"),)),
        ("seeds", ((0, 1, 2),), ((0, -1),)),
        ("shots", ((0, 50),), ((50, -50),)),
        ("strengths", ((0.5,),), ((0.5, 0.0),)),
    ],
)
def test_ranges_are_what_they_say(name, inside, outside):
    for value in inside:
        config_file.check(ConfigDict({"a": {name: value}}))
    for value in outside:
        named = value[-1] if isinstance(value, tuple) else value
        with pytest.raises(UserError, match=re.escape(f"config.a.{name} = {named}: give ")):
            config_file.check(ConfigDict({"a": {name: value}}))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("samplers", ("Euler", 3), "3: give texts"),
        ("arms", (None,), "None: give texts"),
        ("guidance_interval", ("a", "b"), "'a': give numbers"),
        ("seeds", (0, "1"), "'1': give numbers"),
    ],
)
def test_a_tuple_of_texts_holds_no_number_nor_the_other_way_round(name, value, told):
    with pytest.raises(UserError, match=re.escape(f"config.a.{name} = {told}")):
        config_file.check(ConfigDict({"a": {name: value}}))


@pytest.mark.parametrize(
    ("stage", "variant"), [(stage, each) for stage in VARIANTS for each in (None, *VARIANTS[stage])]
)
def test_a_config_has_the_keys_and_types_of_its_stage(stage, variant):
    config_file.check_stage(config(stage, variant), stage, "mine.py")


@pytest.mark.parametrize(("stage", "name", "value", "told"), [
    ("prepare", "seed", None, "config.seed = None: give a value like 0"),
    ("prepare", "seed", "many", "config.seed = 'many': give a value like 0"),
    ("prepare", "seed", ..., "config.seed is missing; add it, a value like 0"),
    ("prepare", "ratios", None, "config.ratios = None: give keys and values like {'test': 0.2, 'validation': 0.1}"),
    ("generate", "plan.steps", ..., "config.plan.steps is missing; add it, a value like 20"),
    ("generate", "plan.steps", True, "config.plan.steps = True: give a value like 20"),
    ("generate", "plan.samplers", "Euler", "config.plan.samplers = 'Euler': give a value like ('Euler',"),
    ("curate", "thresholds.bits", ..., "config.thresholds.bits is missing; add it, a value like 46"),
    ("generate", "plan.stepps", 5, "unknown config key config.plan.stepps; there are: batch, "),
    ("prepare", "sede", 5, "unknown config key config.sede; there are: attributes, "),
    ("tune", "words", None, "config.words = None: give keys and values like {}"),
])  # fmt: skip
def test_a_key_that_is_missing_or_of_another_type_is_named(stage, name, value, told, tmp_path, command):
    change = (
        f"del node[{name.rpartition('.')[2]!r}]" if value is ... else f"node[{name.rpartition('.')[2]!r}] = {value!r}"
    )
    (tmp_path / "mine.py").write_text(f"""import runpy
def get_config():
    config = node = runpy.run_path({str(CONFIGS / f"{stage}.py")!r})["get_config"]()
    with config.unlocked(), config.ignore_type():
        for part in {name.split(".")[:-1]}:
            node = node[part]
        {change}
    return config
""")
    code, _, said = command(stage, f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'r'}")
    assert code == 2 and said.count("\n") == 1 and f"mine.py: {told}" in said
    assert not (tmp_path / "r").exists()


def test_users_own_keys_have_no_range():
    config_file.check(ConfigDict({"plan": {"words": {"size": {"steps": 0}}}, "concepts": {"repeats": {"rank": 0}}}))


@pytest.mark.parametrize("given", ["steps=0", "rate=nan", "loss.timestep_bias=0.0", "samples.guidance=0.5"])
def test_a_command_refuses_it(command, tmp_path, given):
    code, _, said = command(
        "tune", f"--config={CONFIGS / 'tune.py'}", f"--config.{given}", f"--workdir={tmp_path / 'r'}"
    )
    assert code == 2 and said.count("\n") == 1 and f"config.{given.partition('=')[0]} = " in said
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("stage", "changes", "told"),
    [
        ("classify", {"size": 0}, "config.size = 0: give the side in pixels"),
        (
            "curate",
            {"size": 50},
            "config.size = 50: images, whatever their own size, are measured at a multiple of 64; give 64 or 128",
        ),
        (
            "curate",
            {"size": 32},
            "config.size = 32: images, whatever their own size, are measured at a multiple of 64; give 64 or 128",
        ),
        ("curate", {"phantoms": 1}, "config.phantoms = 1: give 2 or more"),
        ("demo", {"prepare.ratios.test": 1.0}, "config.prepare: config.ratios (0.1, 1.0): give shares"),
        ("demo", {"tune.rate": -1.0}, "config.tune: config.rate = -1.0: give 0 or more"),
        ("demo", {"generate.plan.spacing": "kerras"}, "config.generate: spacing 'kerras' is not one of"),
        ("demo", {"classify.vit.mixing": "cutmx"}, "config.classify.vit: config.mixing 'cutmx' is unknown; did you"),
        ("mask", {"words": ()}, "config.words: none; give the words"),
        ("prepare", {"images": "phantoms", "ratios.test": float("nan")}, "give shares of 0 or more"),
        ("pretrain", {"autoencoder.crops.size": 264}, "config.autoencoder.crops.size = 264: give a multiple of 8 up"),
        ("pretrain", {"autoencoder.crops.size": 60}, "config.autoencoder.crops.size = 60: give a multiple of 8 up"),
        ("pretrain", {"autoencoder.settle.steps": 0}, "config.autoencoder.settle.steps = 0: give 1 or more"),
        ("pretrain", {"autoencoder.phases": ("crop",)}, "config.autoencoder.phases: config.autoencoder has no 'crop'"),
        ("pretrain", {"autoencoder.crops.sides": (400, 160)}, "config.autoencoder.crops.sides = (400, 160): give the"),
        ("pretrain", {}, "config.autoencoder.crops.weights.features: give the teacher's folder, config.teacher, or 0"),
        ("pretrain", {"teacher": "dinov2"}, "config.photographs_share: give the manifest of the photographs"),
        (
            "pretrain",
            {"teacher": "dinov2", "phantoms": 0},
            "config.phantoms and config.diffusion.images: give 1 or more of both",
        ),
        ("pretrain", {"base": "derm-huge"}, "config.base 'derm-huge' is unknown; did you mean"),
        ("study", {"tune.accumulate": 3}, "config.tune: batch = 16 in accumulate = 3 parts does not divide"),
        ("study", {"generate.plan.deep_cache": 0}, "config.generate: config.plan.deep_cache = 0: give 1 or more"),
        ("study", {"curate.size": 50}, "config.curate: config.size = 50: images, whatever their own size"),
        ("sweep", {"space.lora.rank": (4, 0)}, "config.space.lora.rank = 0: config.lora.rank = 0: give 1 or more"),
        (
            "sweep",
            {"space.optimizer": ("adamw", "adm")},
            "config.space.optimizer = 'adm': config.optimizer 'adm' is unk",
        ),
    ],
)
def test_what_a_stage_checks_is_one_line_before_it_begins(stage, changes, told, tmp_path, monkeypatch):
    module = importlib.import_module(STAGES[stage])
    if stage == "sweep":  # its manifest is looked at first
        monkeypatch.setattr(module.records, "read", lambda path: type("Any", (), {"split": lambda self, name: [1]})())
    asked = config(stage)
    for name, value in changes.items():
        asked = changed(asked, name, value)
    with pytest.raises(UserError) as error:
        module.run(asked.lock(), tmp_path)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
