"""The autoencoder is tuned on the user's images first: it learns, stops and goes on, and the tuned model has it."""

from unittest import mock

import jax
import numpy as np
import pytest

from dermjax.data import records
from dermjax.training import writers
from dermjax.tuning import autoencoder, concepts
from dermjax.tuning import run as tuning
from dermjax.tuning.autoencoder import picture_batches
from dermjax.tuning.setup import read_setup
from dermjax.weights import diffusers

pytestmark = pytest.mark.usefixtures("no_transfers")
FEW = {"vae.steps": 6, "vae.batch": 2, "vae.rate": 3e-3}


def moved(folder, base):
    """What of the autoencoder differs from the base model's, by its first names."""
    _, tuned = diffusers.read(folder / "model")
    _, before = diffusers.read(base)
    return {
        name for name in before["vae"]
        if any((a != b).any() for a, b in zip(jax.tree.leaves(tuned["vae"][name]), jax.tree.leaves(before["vae"][name]),
                                              strict=True))
    }  # fmt: skip


@pytest.mark.parametrize(
    "mode, parts",
    [
        pytest.param("full", {"encoder", "quant_conv", "decoder", "post_quant_conv"}, marks=pytest.mark.slow),
        ("decoder", {"decoder", "post_quant_conv"}),
    ],
)
def test_the_tuned_model_has_the_tuned_part(base, config, tmp_path, capsys, mode, parts):
    tuning.run(config(**FEW | {"tuned.vae": mode}), tmp_path)
    assert moved(tmp_path, base) == parts
    curve = writers.read(tmp_path / "autoencoder" / "metrics.jsonl")
    assert curve[-1]["psnr"] > curve[0]["psnr"] and np.isfinite(curve[-1]["gradients"])
    said = capsys.readouterr().out
    assert "6 autoencoder steps" in said and "tune: held-out images come back at" in said


@pytest.mark.slow
def test_beside_a_lora_it_is_a_folder_of_its_own(base, config, tmp_path):
    theirs = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    tuning.run(config(**FEW | {"tuned.unet": "lora", "tuned.vae": "decoder", "save_model": False}), tmp_path)
    assert not (tmp_path / "model").exists() and "AutoencoderKL.from_pretrained" in (tmp_path / "README.md").read_text()
    vae = theirs.AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert all(torch.isfinite(each).all() for each in vae.parameters())


@pytest.mark.slow
def test_a_killed_one_ends_as_if_it_had_not_been(config, tmp_path, killed_at_its_first_checkpoint):
    settings = config(**FEW | {"tuned.vae": "full", "save_every": 2})
    tuning.run(settings, tmp_path / "whole")

    killed_at_its_first_checkpoint(tuning.run, settings, tmp_path / "killed")
    tuning.run(settings, tmp_path / "killed")
    (_, ours), (_, whole) = (diffusers.read(tmp_path / name / "model") for name in ("killed", "whole"))
    jax.tree.map(np.testing.assert_array_equal, ours, whole)


def test_it_learns_photographs_and_not_what_a_model_drew(preserving, tmp_path, monkeypatch):
    """Class images came out of an autoencoder: it would learn its own faults."""
    shown = mock.Mock(side_effect=StopIteration)
    monkeypatch.setattr(autoencoder, "picture_batches", shown)
    asked = preserving(**{"tuned.vae": "decoder"})
    work = read_setup(asked, tmp_path / "words")
    with pytest.raises(StopIteration):
        autoencoder.tune(work, asked, tmp_path)
    sources, epoch = shown.call_args.args
    assert len(work.training.sources) == 10 and epoch.tolist() == list(range(8))
    assert [record.synthetic for _, record in sources] == [False] * 8


def test_pictures_are_each_shown_once_an_epoch_and_the_same_whoever_makes_them(manifest):
    known = records.read(manifest)
    shown = concepts.training(known, dict.fromkeys(known.labels, "x"), repeats={}, balance=False, prior="",
                              prior_weight=1.0)  # fmt: skip
    number = len(shown.sources)

    def pictures(rows):
        return picture_batches(shown.sources, shown.epoch, size=16, batch=2, rows=np.array(rows), seed=0)

    whole, half, states = pictures([0, 1]), pictures([1]), []
    batches = [(states.append(whole.get_state()), next(whole)["image"])[1] for _ in range(number)]  # two epochs
    np.testing.assert_array_equal(next(half)["image"], batches[0][1:])
    means = np.concatenate(batches).mean((1, 2)).round(4)
    assert len(np.unique(means[:number], axis=0)) == len(np.unique(means, axis=0)) == number
    again = pictures([0, 1])
    again.set_state(states[2])
    np.testing.assert_array_equal(next(again)["image"], batches[2])
