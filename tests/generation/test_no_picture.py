"""What is no picture is never written: numbers that overflowed, and words that the text encoder has no row for."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dermjax.errors import UserError
from dermjax.sampling.text_to_image import check_drawn, pixels
from dermjax.weights import lora, textual_inversion
from dermjax.weights.textual_inversion import Embedding

FEW = {
    "plan.images_per_class": 1,
    "plan.batch": 2,
    "plan.steps": 2,
    "plan.samplers": "('Euler',)",
    "precision": "float32",
}
GENERATE = Path(__file__).parents[2] / "configs" / "generate.py"


def generate(command, workdir, **config):
    flags = [f"--config.{key}={value}" for key, value in (FEW | config).items()]
    return command("generate", f"--config={GENERATE}", f"--workdir={workdir}", *flags)


def refused(answer, workdir: Path, *said: str):
    """Exit code 2, one line that says it, no image and no manifest."""
    code, _, error = answer
    assert code == 2 and all(each in error for each in said) and error.count("\n") == 1, error
    assert not list(workdir.rglob("*.png")) and not (workdir / "manifest.jsonl").exists()


@pytest.fixture
def copied(small_model, tmp_path):
    return shutil.copytree(small_model[2], tmp_path / "model")


@pytest.mark.parametrize("network, name, value", [
    ("unet", "conv_in.weight", np.inf), ("vae", "decoder.conv_out.bias", np.nan),
    ("text_encoder", "text_model.final_layer_norm.bias", np.nan), ("vae", "decoder.conv_out.bias", 1e9),
])  # fmt: skip
def test_a_damaged_model_makes_no_images(command, copied, tmp_path, network, name, value):
    (path,) = (copied / network).glob("*.safetensors")
    tensors = load_file(path)
    tensors[name][...] = value
    save_file(tensors, path)
    said = (f"{network}/{name} holds NaN or infinity",)
    if np.isfinite(value):
        said = ("images/", "which is no picture and is not written; its weights, a LoRA or an embedding are damaged")
    refused(generate(command, tmp_path / "run", model=copied), tmp_path / "run", *said)


def test_a_lora_that_overflows_makes_no_images(command, small_model, tmp_path):
    _, params, folder = small_model
    fresh = lora.init({"unet": params["unet"]}, 2, seed=0)
    lora.write_kohya(tmp_path / "x.safetensors", lora.uniform(fresh, 2.0), dtype=np.float32)
    tensors = {name: np.full_like(each, 1e30) if "lora_up" in name else each
               for name, each in load_file(tmp_path / "x.safetensors").items()}  # fmt: skip
    save_file(tensors, tmp_path / "x.safetensors")
    answer = generate(command, tmp_path / "run", model=folder, lora=tmp_path / "x.safetensors")
    refused(answer, tmp_path / "run", "the model made one colour everywhere (0, 0, 0), which is no picture")


def test_a_token_without_a_row_is_refused_before_anything_is_made(command, copied, tmp_path):
    (copied / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<mole>": 49408}))
    answer = generate(command, tmp_path / "run", model=copied)
    refused(answer, tmp_path / "run", "tokenizer: '<mole>' would be row 49408 of the text encoder, which has 49408")
    assert "cpu device" not in answer[1]


def test_two_words_of_one_file_are_both_known(command, small_model, tmp_path):
    """And a LoRA given as PEFT's folder; the manifest names what made its images."""
    save_file({"<mole>": np.ones((2, 16), np.float32), "<nevus>": np.ones((1, 16), np.float32)},
              tmp_path / "words.safetensors")  # fmt: skip
    one, other = textual_inversion.read(tmp_path / "words.safetensors")
    assert isinstance(one, Embedding) and {one.token, other.token} == {"<mole>", "<nevus>"}
    _, params, folder = small_model
    fresh = lora.init({"unet": params["unet"]}, 2, seed=0)
    (tmp_path / "peft").mkdir()
    lora.write_peft(tmp_path / "peft" / "adapter_model.safetensors", lora.uniform(fresh, 2.0), dtype=np.float32)
    words = {"embeddings": f"('{tmp_path}/words.safetensors',)"}
    words |= {"plan.prompts.benign": "('a <mole>',)", "plan.prompts.malignant": "('a <nevus>',)"}
    code, _, error = generate(command, tmp_path / "run", model=folder, lora=tmp_path / "peft", **words)
    assert code == 0, error
    records = [json.loads(line) for line in (tmp_path / "run" / "manifest.jsonl").read_text().splitlines()]
    made = [record["generation"] for record in records if "generation" in record]
    assert made and all({"<mole>", "<nevus>"} == set(each["embeddings"]) and each["lora"] for each in made)


def test_an_image_with_any_number_that_is_none_is_black_all_over():
    image = np.linspace(-1, 1, 2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)
    image[1, 3, 3, 2] = np.nan
    made = np.asarray(pixels(jnp.asarray(image)))
    assert made[0].any() and not made[1].any()
    check_drawn(made[0], "x")
    for colour in ((0, 0, 0), (255, 255, 255), (3, 200, 7)):
        with pytest.raises(
            UserError, match=rf"^x: the model made one colour everywhere \({', '.join(map(str, colour))}\)"
        ):
            check_drawn(np.broadcast_to(np.uint8(colour), (4, 4, 3)), "x")
