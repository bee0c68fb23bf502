"""The strength of a LoRA: what PEFT merges and what we merge, wherever PEFT's settings lie and whatever they are."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dermjax.errors import UserError
from dermjax.weights import conversion, inspection, lora
from dermjax.weights import diffusers as folders
from dermjax.weights.torch_layout import flatten, to_torch

pytestmark = pytest.mark.parametrize("twin", ["sd1"], indirect=True)  # one style is enough for what files say
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
SETTINGS = {
    "plain": {"lora_alpha": 16},
    "no alpha": {},
    "rank stabilised": {"lora_alpha": 2, "use_rslora": True},
    "patterns": {
        "lora_alpha": 3,
        "rank_pattern": {"attn1.to_q": 2, r"down_blocks\.0\..*attn2\.to_v": 5},
        "alpha_pattern": {"attn2.to_k": 7, r"mid_block.*to_q": 1, "to_q": 9},
    },
    "patterns, rank stabilised": {
        "lora_alpha": 3,
        "use_rslora": True,
        "rank_pattern": {"to_v": 2},
        "alpha_pattern": {"to_v": 5},
    },
}
PLACES = {
    "as a folder": lambda folder: folder,
    "PEFT's name": lambda folder: folder / "adapter_model.safetensors",
    "another name": lambda folder: (folder / "adapter_model.safetensors").rename(folder / "mole_v2.safetensors"),
    "a folder with another name": lambda folder: (
        (folder / "adapter_model.safetensors").rename(folder / "mole_v2.safetensors") and folder
    ),
}


@pytest.fixture(scope="module")
def model(twin):
    _, folder = twin
    sd, params = folders.read(folder)
    return sd, params


def trained(twin, settings, seed=0):
    """A UNet of PyTorch's with adapters of PEFT's that change it."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    unet = type(twin[0].unet).from_pretrained(twin[1] / "unet")
    adapted = peft.get_peft_model(unet, peft.LoraConfig(r=4, target_modules=ATTENTION, **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapted


def same(params, path, sd, adapted):
    """Whether our merge of the file is PEFT's."""
    equal(params, path, sd, adapted.merge_and_unload().state_dict())


def equal(params, path, sd, theirs):
    """Whether our merge of the file has the tensors of PyTorch's UNet."""
    ours, changed = lora.merge(params, lora.read(path, sd.shapes), 1.0)["unet"], 0
    for name, array in flatten(ours).items():
        key, kernel = to_torch(name, np.asarray(array))
        found = theirs[key].numpy()
        np.testing.assert_allclose(kernel, found, rtol=0, atol=1e-5 * np.abs(found).max(), err_msg=key)
        changed += not np.array_equal(array, flatten(params["unet"])[name])
    assert changed > 30


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_strength_is_pefts(twin, model, tmp_path, settings, capsys):
    adapted = trained(twin, SETTINGS[settings])
    adapted.save_pretrained(tmp_path)
    same(model[1], tmp_path, model[0], adapted)
    assert "nothing says the alpha" not in capsys.readouterr().out


@pytest.mark.parametrize("place", PLACES)
def test_the_settings_are_found_beside_any_name(twin, model, tmp_path, place):
    adapted = trained(twin, SETTINGS["patterns, rank stabilised"])
    adapted.save_pretrained(tmp_path)
    same(model[1], PLACES[place](tmp_path), model[0], adapted)


@pytest.mark.parametrize("name", ["adapter_model.bin", "mole.bin"])
def test_the_settings_beside_a_bin_file(twin, model, tmp_path, name):
    torch = pytest.importorskip("torch")
    adapted = trained(twin, SETTINGS["patterns"])
    adapted.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({key: torch.tensor(each) for key, each in tensors.items()}, tmp_path / name)
    same(model[1], tmp_path / name if name == "mole.bin" else tmp_path, model[0], adapted)


def test_a_file_in_a_folder_may_shout(twin, model, tmp_path):
    trained(twin, {"lora_alpha": 16}).save_pretrained(tmp_path)
    expected = lora.read(tmp_path, model[0].shapes)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "MOLE.SAFETENSORS")
    assert lora.read(tmp_path, model[0].shapes).alphas == expected.alphas


def test_a_folder_of_diffusers_is_its_file(twin, model, tmp_path):
    adapted = trained(twin, {"lora_alpha": 4})
    adapted.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "diffusers").mkdir()
    renamed = {key.replace("base_model.model.", "unet."): each for key, each in tensors.items()}
    save_file(renamed, tmp_path / "diffusers" / "pytorch_lora_weights.safetensors")
    same(model[1], tmp_path / "diffusers", model[0], adapted)


def test_an_alpha_that_nothing_says_is_said(twin, model, tmp_path, capsys):
    trained(twin, {"lora_alpha": 16}).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    read = lora.read(tmp_path, model[0].shapes)
    assert read.alphas == read.ranks
    assert f"nothing says the alpha of {len(read.alphas)} of its {len(read.alphas)} layers" in capsys.readouterr().out


def test_what_the_file_says_goes_before_what_lies_beside(twin, model, tmp_path):
    """kohya's tensors of alpha, and diffusers' metadata, are of the file; a config may be another one's."""
    trained(twin, {"lora_alpha": 16}).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    adapters = lora.read(tmp_path, model[0].shapes)
    lora.write_kohya(tmp_path / "kohya.safetensors", lora.Lora(adapters.adapters, adapters.ranks), dtype=np.float32)
    assert set(lora.read(tmp_path / "kohya.safetensors", model[0].shapes).alphas.values()) == {4.0}
    said = {lora.METADATA: json.dumps({"unet.lora_alpha": 2, "unet.r": 4})}
    save_file(tensors, tmp_path / "diffusers.safetensors", metadata=said)
    assert set(lora.read(tmp_path / "diffusers.safetensors", model[0].shapes).alphas.values()) == {2.0}


@pytest.mark.parametrize("settings", ["plain", "rank stabilised", "patterns"])
def test_the_strength_of_a_network_that_diffusers_saves_by_itself(twin, model, tmp_path, settings, capsys):
    """`save_lora_adapter` writes PEFT's settings into the file without the network's name before them."""
    unet = with_adapter(twin, **SETTINGS[settings])
    unet.save_lora_adapter(tmp_path)
    unet.fuse_lora()
    unet.unload_lora()
    equal(model[1], tmp_path, model[0], unet.state_dict())
    assert "nothing says the alpha" not in capsys.readouterr().out
    _, rows = inspection.describe(tmp_path / "pytorch_lora_weights.safetensors")
    assert dict(rows)["alpha"] == str(SETTINGS[settings]["lora_alpha"])


def test_the_method_of_a_network_that_diffusers_saves_by_itself_is_read(twin, model, tmp_path):
    with_adapter(twin, init_lora_weights="olora").save_lora_adapter(tmp_path)
    with pytest.raises(UserError, match="settings are those of started as olora"):
        lora.read(tmp_path, model[0].shapes)


def with_adapter(twin, **settings):
    """A UNet of diffusers' own with adapters that change it."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    unet = type(twin[0].unet).from_pretrained(twin[1] / "unet")
    unet.add_adapter(peft.LoraConfig(r=4, target_modules=ATTENTION, **settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return unet


def edited(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("changes, said", [
    ({"r": 8}, "has rank 4, its settings say 8"),
    ({"peft_type": "LOHA"}, "settings are those of LOHA, not plain LoRA"),
    ({"use_dora": True}, "settings are those of DoRA, not plain LoRA"),
    ({"init_lora_weights": "pissa_niter_4"}, "settings are those of started as pissa_niter_4"),
    ({"init_lora_weights": "lora_ga"}, "settings are those of started as lora_ga"),
    ({"lora_alpha": 10**400}, "alpha cannot be read"),
    ({"lora_alpha": None}, "alpha cannot be read"),
    ({"lora_alpha": "much"}, "alpha cannot be read"),
    ({"lora_alpha": math.nan}, "alpha is nan"),
    ({"lora_alpha": math.inf}, "alpha is inf"),
    ({"alpha_pattern": ["to_q"]}, "alpha cannot be read"),
    ({"alpha_pattern": {"(": 1}}, "alpha cannot be read"),
    ({"alpha_pattern": {"(a*)*b": 1}}, "could take for ever"),
    ({"alpha_pattern": {".*" * 20 + "!": 1}}, "could take for ever"),
    ({"rank_pattern": 3}, "alpha cannot be read"),
])  # fmt: skip
def test_settings_that_cannot_be_are_one_line(twin, model, tmp_path, changes, said):
    trained(twin, {"lora_alpha": 16}).save_pretrained(tmp_path)
    edited(tmp_path, **changes)
    with pytest.raises(UserError, match=said) as error:
        lora.read(tmp_path, model[0].shapes)
    assert "adapter_model.safetensors: " in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("names, said", [
    ([], "no file of tensors, none named as PEFT or diffusers do"),
    (["a.safetensors", "b.safetensors"], "2 files of tensors, none named"),
])  # fmt: skip
def test_a_folder_without_one_lora_is_one_line(model, tmp_path, names, said):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=said):
        lora.read(tmp_path, model[0].shapes)


def test_an_alpha_tensor_of_nan_is_refused(model, tmp_path):
    sd, params = model
    fresh = lora.init({"unet": params["unet"]}, 2, seed=0)
    lora.write_kohya(tmp_path / "x.safetensors", lora.uniform(fresh, 2.0), dtype=np.float32)
    tensors = load_file(tmp_path / "x.safetensors")
    key = next(name for name in tensors if name.endswith(".alpha"))
    save_file(tensors | {key: np.array(np.nan, np.float32)}, tmp_path / "y.safetensors")
    with pytest.raises(UserError, match=r"1 of .* tensors do not fit the model: .*'s alpha is nan"):
        lora.read(tmp_path / "y.safetensors", sd.shapes)


def test_the_digest_knows_the_settings(twin, tmp_path):
    """Images are made again where a config beside the same file says another strength."""
    trained(twin, {"lora_alpha": 16}).save_pretrained(tmp_path)
    before = lora.digest(tmp_path)
    assert before == lora.digest(tmp_path / "adapter_model.safetensors")
    edited(tmp_path, lora_alpha=8)
    assert lora.digest(tmp_path) != before


@pytest.mark.parametrize("bare", [False, True], ids=["text_model", "bare"])
def test_the_numbered_text_encoder_of_sd_1(twin, model, tmp_path, bare):
    sd, params = model
    targets = ("attention", "feed_forward")
    fresh = lora.init({name: params[name] for name in ("unet", "text_encoder")}, 2, seed=0, targets=targets)
    lora.write_kohya(tmp_path / "x.safetensors", lora.uniform(fresh, 2.0), dtype=np.float32)
    tensors = load_file(tmp_path / "x.safetensors")
    theirs = {name.replace("lora_te_", "lora_te1_"): each for name, each in tensors.items()}
    if bare:
        theirs = {name.replace("text_model_", ""): each for name, each in theirs.items()}
    assert theirs.keys() != tensors.keys()
    save_file(theirs, tmp_path / "y.safetensors")
    one, other = (lora.read(tmp_path / f"{name}.safetensors", sd.shapes) for name in "xy")
    assert one.alphas == other.alphas and flatten(one.adapters).keys() == flatten(other.adapters).keys()
    for name, each in flatten(one.adapters).items():
        np.testing.assert_array_equal(each, flatten(other.adapters)[name])


def test_a_folder_is_inspected_and_converted(twin, tmp_path):
    trained(twin, {"lora_alpha": 16}).save_pretrained(tmp_path / "lora")
    title, rows = inspection.describe(tmp_path / "lora")
    assert title.startswith("LoRA") and dict(rows)["alpha"] == "16"
    to = str(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="made for a model with a context 48 wide"):
        conversion.convert(str(tmp_path / "lora"), to, "none", 1.0, "float32", "found", False, "found")
