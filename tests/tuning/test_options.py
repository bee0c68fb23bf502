"""Options of `tune` that cannot be meant are one line at the start, before a photograph is decoded."""

from dataclasses import replace

import numpy as np
import pytest

from dermjax import run_folder
from dermjax.data import images
from dermjax.errors import UserError
from dermjax.training import roofline
from dermjax.tuning import latents, plan
from dermjax.tuning import run as tuning
from dermjax.weights import diffusers, model_files

LORA, TEXT = {"tuned.unet": "lora"}, {"tuned.unet": "frozen", "tuned.text_encoder": "lora"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"accumulate": 3}, "batch = 8 in accumulate = 3 parts does not divide; give a multiple of 3"),
        ({"accumulate": -2}, "config.accumulate = -2: give 1 or more"),
        ({"batch": 0}, "config.batch = 0: give 1 or more"),
        ({"mesh.fsdp": 0}, "config.mesh.fsdp = 0: give 1 or more"),
        ({"steps": 0}, "config.steps = 0: give 1 or more"),
        ({"encode_batch": 0}, "config.encode_batch = 0: give 1 or more"),
        ({"size": -8}, "config.size = -8: give 0 or more"),
        ({"rate": -1e-4}, "config.rate = -0.0001: give 0 or more"),
        ({"size": 8}, "config.size = 8: at its depth the UNet would see less than a cell; give 16 or more"),
        ({"save_model": False}, "config.save_model = False leaves the LoRA and the words alone, and config.tuned.unet"),
        ({"prompts.benign": " "}, "prompt ' ': is without a word where it is filled; give words for the class"),
        ({"prompts.benign": "[{site} mole]"}, "prompt '[{site} mole]': is without a word where it is filled"),
        (
            {"prompts.benign": "a <new> mole"},
            "the model has no word <new>; give it in config.words",
        ),
        ({"text_rate": -1.0}, "config.text_rate = -1.0: give 0 or more"),
        ({"warmup": -3}, "config.warmup = -3: give 0 or more"),
        ({"clip": float("nan")}, "config.clip = nan: give 0 or more"),
        ({"weight_decay": float("inf")}, "config.weight_decay = inf: give 0 or more"),
        ({"ema_decay": 1.0}, "config.ema_decay = 1.0: give 0 or more and less than 1"),
        ({"patience": -1}, "config.patience = -1: give 0 or more"),
        ({"patience": 4, "watch_every": 0}, "config.patience needs evaluations on held-out images; give config.watch_"),
        ({"validation_draws": -1}, "config.validation_draws = -1: give 0 or more"),
        ({"vectors": 0}, "config.vectors = 0: give 1 or more"),
        ({"concepts.prior_weight": -1.0}, "config.concepts.prior_weight = -1.0: give 0 or more"),
        ({"loss.timestep_bias": 0.0}, "config.loss.timestep_bias = 0.0: give 0.01 to 100"),
        ({"loss.prompt_dropout": 1.5}, "config.loss.prompt_dropout = 1.5: give 0 to 1"),
        ({"loss.snr_gamma": -5.0}, "config.loss.snr_gamma = -5.0: give 0 or more"),
        ({"loss.huber": -0.1}, "config.loss.huber = -0.1: give 0 or more"),
        ({"samples.images": -1}, "config.samples.images = -1: give 0 or more"),
        ({"samples.prompts": 0}, "config.samples.prompts = 0: give 1 or more"),
        ({"samples.guidance": 0.5}, "config.samples.guidance = 0.5: give 1 or more"),
        ({"samples.steps": 0}, "config.samples.steps = 0: give 1 or more"),
        ({"samples.steps": 5000}, "steps 5000: this sampler takes 1 to 1000 steps"),
        ({"samples.sampler": "Eular"}, "sampler 'Eular' is not known"),
        ({"save_dtype": "float13"}, "config.save_dtype 'float13' is unknown; did you mean float32"),
        ({"save_dtype": "int8"}, "config.save_dtype 'int8' is unknown"),
        ({"schedule": "cosin"}, "config.schedule 'cosin' is unknown; did you mean cosine"),
        ({"cache": __file__}, "test_options.py: is no folder; give one"),
        ({"prompts.benign": "a {label mole"}, "prompt 'a {label mole': a bracket is open; close it"),
        (LORA | {"lora.rank": 0}, "config.lora.rank = 0: give 1 or more"),
        (LORA | {"lora.alpha": 0.0}, "config.lora.alpha = 0.0: give more than 0"),
        (LORA | {"lora.targets": ()}, "config.lora.targets = (): unet has none of them"),
        (TEXT | {"lora.targets": ("time",)}, "config.lora.targets = ('time',): text_encoder has none of them"),
        (LORA | {"tuned.text_encoder": "lora", "lora.targets": ("convolution",)}, "text_encoder has none of them"),
        ({"words.<new>": "mole"}, "config.words.<new>: no prompt says it, so it would not be learnt"),
        ({"concepts.repeats.benign": -1}, "config.concepts.repeats.benign = -1: give a whole number, 0 or more"),
        ({"evidence.minimise": "frechet"}, "most_copies go by config.evidence.features; give the network"),
        ({"evidence.most_copies": 0.1}, "most_copies go by config.evidence.features; give the network"),
        (TEXT | {"tuned.vae": "full"}, "config.tuned.vae = full changes the latents, and config.tuned.unet = frozen"),
        ({"words.<new>": 3}, "config.words.<new> = 3: give a new word and a known one"),
        ({"words. ": "mole"}, "give a new word and a known one"),
        (
            {"words.<a/b>": "mole"},
            "config.words.<a/b>: its vectors go into a/b.safetensors, which is no name of a file",
        ),
        ({"words.<new>": "mole", "words.new>": "mole"}, "config.words.new>: its vectors go into new.safetensors"),
        ({f"words.{'x' * 300}": "mole"}, ".safetensors, which is no name of a file or another word's"),
        ({"prompts.benign": "a {skin tone} mole"}, "a gap is {name}, a clause [text]"),
        ({"concepts.repeats.benign": 10**9}, "config.concepts.repeats.benign = 1000000000: an epoch has 10,000,000 im"),
        ({"concepts.repeats.benign": 1.5}, "config.concepts.repeats.benign = 1.5: give a whole number, 0 or more"),
    ],
    ids=lambda value: " ".join(f"{key}={each}" for key, each in value.items()) if isinstance(value, dict) else "",
)
def test_what_cannot_be_meant_is_one_line_before_anything_is_decoded(config, tmp_path, monkeypatch, changes, told):
    monkeypatch.setattr(images, "load", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(latents.Encoder, "contexts", lambda *_: pytest.fail("encoded"))
    with pytest.raises(UserError) as error:
        tuning.run(config(**changes), tmp_path / "run")
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"samples.steps": 5000}, "steps 5000: this sampler takes 1 to 1000 steps"),
        ({"evidence.features": "nowhere", "watch_every": 2, "validation_draws": 1}, "nowhere"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(config, changes, told):
    with pytest.raises(UserError, match=told):
        tuning.dry_run(config(**changes))


def test_a_model_that_paints_into_pictures_is_one_line_before_anything_is_encoded(config, base, tmp_path):
    sd, _ = diffusers.read(base)
    sd = replace(sd, configs=sd.configs | {"unet": sd.configs["unet"] | {"in_channels": 9}})
    diffusers.write(tmp_path / "model", sd, sd.init(0), dtype=np.float32)
    asked = config(model=str(tmp_path / "model"))
    for refuse in (
        lambda: tuning.run(asked, tmp_path / "run"),
        lambda: tuning.dry_run(asked),
        lambda: plan.planned(asked, plan.described(asked), roofline.parse("h100:1")),
    ):
        with pytest.raises(UserError) as error:
            refuse()
        told = f"model {tmp_path / 'model'}: it paints into pictures (9 channels); tune a model of 4, such as the one"
        assert told in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("changes", "said"), [
    (LORA, True), (TEXT, True), ({"tuned.unet": "frozen", "words.<new>": "mole"}, True), ({}, False),
    (LORA | {"tuned.text_encoder": "full"}, False), (LORA | {"precision": "bfloat16"}, False),
])  # fmt: skip
def test_pure_bfloat16_without_a_network_tuned_whole_is_said_to_be_bfloat16(config, capsys, changes, said):
    tuning.check_options(config(**{"precision": "pure_bfloat16"} | changes))
    told = capsys.readouterr().out
    assert ("precision = pure_bfloat16 is for networks tuned whole; LoRA and words stay float32" in told) == said
    assert told.count("\n") == said


def test_prompts_that_do_not_say_what_they_seem_to_are_told_once(config, capsys):
    tuning.dry_run(config(**{"prompts.benign": "a (mole:1.3)", "prompts.malignant": "a (mole:1.3)"}))
    said = capsys.readouterr().out
    assert said.count("benign and malignant have the same prompts; nothing in a prompt tells which class is") == 1
    assert said.count("weights such as (mole:1.3) are not known here and are read as words") == 1
    tuning.dry_run(config(rate=0.0))
    assert "config.rate = 0: nothing will be learnt" in capsys.readouterr().out
    tuning.dry_run(config())
    assert "the same prompts" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"), [(LORA | {"tuned.vae": "full"}, True), ({"tuned.vae": "full"}, False), (LORA, False)]
)
def test_other_latents_for_a_lora_are_told(config, capsys, changes, said):
    tuning.check_options(config(**changes))
    assert ("changes the latents, which a LoRA learns in part" in capsys.readouterr().out) == said


@pytest.mark.parametrize(
    "changes", [{}, {"prompts.benign": "benign <new>", "samples.steps": 5000}], ids=["no prompt", "later"]
)
def test_a_refused_run_with_new_words_leaves_nothing(config, tmp_path, changes):
    """So that the mended command is not refused as one of another config."""
    asked = config(**{"words.<new>": "mole", "vectors": 3} | changes)
    run_folder.claim(tmp_path / "run", asked.to_dict())
    with pytest.raises(UserError):
        tuning.run(asked, tmp_path / "run")
    run_folder.disclaim(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_trial_of_a_sweep_may_leave_no_model(config, tmp_path, monkeypatch):
    """Its loss is all that is asked of it, also where a network is tuned whole."""
    monkeypatch.setattr(tuning, "read_setup", lambda *_: pytest.fail("passed", pytrace=False))
    with pytest.raises(pytest.fail.Exception, match="passed"):
        tuning.run(config(save_model=False), tmp_path / "run", lambda step, loss: None)


def test_a_finished_run_of_other_inputs_does_not_say_that_there_is_nothing_to_do(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuning.outputs, "is_finished", lambda *_: True)
    monkeypatch.setattr(tuning.outputs, "LEFT", ("checkpoints",))
    base = model_files.digest(model_files.locate(config().model))
    tuning._say_other_causes(tmp_path, tuning._inputs(base, *tuning.read_concepts(config())))
    (tmp_path / "checkpoints").mkdir()
    tuning.run(config(), tmp_path)
    assert "nothing to do" in capsys.readouterr().out
    for changes, told in (
        ({"prompts.benign": "a benign mole"}, "was started from other inputs (prompts"),
        ({"manifest": str(tmp_path / "gone")}, "cannot be compared: manifest"),
    ):
        tuning.run(config(**changes), tmp_path)
        assert told in capsys.readouterr().out


def test_the_batch_of_several_processes_divides_over_all_their_devices(config, monkeypatch):
    asked = []
    monkeypatch.setattr(tuning.jax, "process_count", lambda: 2)
    monkeypatch.setattr(tuning.sharding, "mesh", lambda data, fsdp: asked.append((data, fsdp)))
    monkeypatch.setattr(tuning.sharding, "check_batch", lambda batch, accumulate, mesh: None)
    for data, fsdp in ((0, 1), (0, 2), (2, 1)):
        tuning.check(config(**{"mesh.data": data, "mesh.fsdp": fsdp}))
    assert asked == [(0, 1), (0, 2), (2, 1)]  # one device for data would leave a process without one
