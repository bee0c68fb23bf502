"""The shipped model looks at the lesion where the word for it stands, and its masks go out with the images."""

import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.data import digests, images, records
from dermjax.data.leaks import training_images
from dermjax.data.phantoms.appearance import ARTEFACTS
from dermjax.data.phantoms.painting import phantom
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.transformation import masks
from dermjax.transformation.masks import cross_attention
from dermjax.weights import model_files

CLEAN = dict.fromkeys(ARTEFACTS, False)
CONFIG = Path(__file__).parents[2] / "configs" / "mask.py"


@pytest.fixture(scope="module")
def phantoms():
    return [phantom(seed, 128, **CLEAN) for seed in range(100, 116)]


@pytest.fixture(scope="module")
def made(phantoms, tmp_path_factory):
    """A manifest of phantoms that says they were generated from their captions."""
    folder = tmp_path_factory.mktemp("made")
    found = []
    for number, each in enumerate(phantoms):
        path = folder / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(images.encode_png(each.image))
        found.append(
            Record(
                image=f"images/{number}.png", sha256=digests.sha256(path), label=each.label, split="train",
                source="test", image_manipulation="synthetic", generation={"prompt": each.caption},
            )
        )  # fmt: skip
    found[3] = replace(found[3], rejected=("blur",))
    records.write(folder / records.FILE, Manifest(labels=("benign", "malignant"), root=folder, records=tuple(found)))
    return folder


def config(made, **changed):
    settings = runpy.run_path(str(CONFIG))["get_config"]()
    settings.model, settings.manifest, settings.batch = "derm-tiny", str(made), 8
    settings.update(changed)
    return settings


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_both_masks_of_every_kept_image_lie_on_its_lesions(made, phantoms, tmp_path):
    masks.run(config(made), tmp_path)
    told = {record.image: record.attributes["masks"] for record in records.read(tmp_path).records}
    assert told.keys() == {f"images/{number}.png" for number in range(16) if number != 3}
    by_kind = {"lesions": [], "attention": []}
    for image, described in told.items():
        truth = phantoms[int(Path(image).stem)].mask
        for kind, found in by_kind.items():
            seen = images.decode(tmp_path / described[kind])
            assert seen.shape == (128, 128, 3) and set(np.unique(seen)) <= {0, 255}
            found.append(overlap(seen[..., 0] > 0, truth))
        assert described["count"] >= 1 and 0 <= described["overlap"] <= 1
    assert np.mean(by_kind["lesions"]) > 0.83
    assert np.mean(by_kind["attention"]) > 0.5  # cells of 8 pixels; a mask of all of the image has 0.1


def test_classical_masks_need_no_model(made, tmp_path):
    (made / training_images.FILE).write_bytes(b"a line\n")
    masks.run(config(made, model="", attention=False), tmp_path)
    (made / training_images.FILE).unlink()
    assert (tmp_path / training_images.FILE).read_bytes() == b"a line\n", "what the generator saw is handed on"
    assert "attention" not in records.read(tmp_path).records[0].attributes["masks"]
    assert not (tmp_path / "attention").exists()


def test_weights_of_a_pixel_are_shares():
    model, params = model_files.read(model_files.locate("derm-tiny"))
    rng = np.random.default_rng(0)
    x, context = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((1, 16, 16, 4), (1, 40, 128)))
    seen = jax.jit(partial(cross_attention, model))(params, x, jnp.array([50.0]), context)
    assert [weights.shape[1] for weights in seen] == [64, 16, 16, 16, 16, 64, 64]
    for weights in seen:
        assert np.asarray(weights.sum(-1)) == pytest.approx(1, abs=1e-5)


def test_words_of_several_tokens_are_found_wherever_they_stand():
    found = masks.locate_words(np.array([0, 5, 6, 7, 5, 6, 2]), [[5, 6], [9]], "")
    assert found.tolist() == [False, True, True, False, True, True, False]


def test_what_cannot_be_masked_is_named(made, tmp_path):
    with pytest.raises(UserError, match=r"none of config\.words is in it"):
        masks.run(config(made, words=("freckle",)), tmp_path)
    with pytest.raises(UserError, match=r"config\.manifest"):
        masks.run(config(""), tmp_path)
    manifest = records.read(made)
    wordless = tuple(replace(record, generation={}) for record in manifest.records)
    records.write(tmp_path / records.FILE, replace(manifest, records=wordless))
    with pytest.raises(UserError, match="no prompt on its record"):
        masks.run(config(tmp_path), tmp_path / "out")


def test_a_model_that_paints_into_pictures_has_no_attention_to_show(made, tmp_path, monkeypatch):
    painting = SimpleNamespace(configs={"unet": {"in_channels": 9}, "vae": {"latent_channels": 4}})
    monkeypatch.setattr(masks, "load_model", lambda *_: SimpleNamespace(sd=painting))
    with pytest.raises(UserError, match=r"^inpainting: paints into pictures.* config\.attention=False"):
        masks.run(config(made, model="inpainting"), tmp_path)
