"""Names of modules in single LDM files (CompVis' and Stability's `.ckpt` and `.safetensors`), made from our own paths.

LDM numbers the UNet's layers in the order in which they run; the tables below follow our tree block by block and count,
so that they are right for any widths and any number of layers. Sources: the classes of latent-diffusion
(openaimodel.py, diffusionmodules/model.py), CLIP in transformers and OpenCLIP.
"""

from collections.abc import Iterable

from dermjax.weights.torch_layout import Tree, flatten

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer."  # SD 1.x: transformers' text model under its own names
OPEN_CLIP = "cond_stage_model.model."  # SD 2.x

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_LAYERS = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPEN_CLIP_LAYERS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet(tree: Tree) -> dict[str, str]:
    """Returns {our module: its name in LDM, without the prefix} of a UNet's tree; modules are paths without leaf."""
    names = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    n = 1
    for i, block in enumerate(in_order(tree["down_blocks"])):
        for j in range(len(block["resnets"])):
            names[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{n}.0"
            names[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{n}.1"
            n += 1
        if block.get("downsamplers"):
            names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{n}.0.op"
            n += 1
    n = 0
    for i, block in enumerate(in_order(tree["up_blocks"])):
        for j in range(len(block["resnets"])):
            names[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{n}.0"
            names[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{n}.1"
            n += 1
        after = 2 if block.get("attentions") else 1  # the last layer's doubling follows what else is in it
        names[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{n - 1}.{after}.conv"
    return renamed(modules(tree), names, RESNET)


def vae(tree: Tree) -> dict[str, str]:
    """Returns {our module: its name in LDM, without the prefix} of an autoencoder's tree."""
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half, ours, theirs in (("encoder", "down_blocks", "down"), ("decoder", "up_blocks", "up")):
        names |= {
            f"{half}.conv_in": f"{half}.conv_in",
            f"{half}.mid_block.resnets.0": f"{half}.mid.block_1",
            f"{half}.mid_block.attentions.0": f"{half}.mid.attn_1",
            f"{half}.mid_block.resnets.1": f"{half}.mid.block_2",
            f"{half}.conv_norm_out": f"{half}.norm_out",
            f"{half}.conv_out": f"{half}.conv_out",
        }
        blocks = in_order(tree[half][ours])
        for i, block in enumerate(blocks):
            level = i if half == "encoder" else len(blocks) - 1 - i  # LDM counts from the largest image
            for j in range(len(block["resnets"])):
                names[f"{half}.{ours}.{i}.resnets.{j}"] = f"{half}.{theirs}.{level}.block.{j}"
            names[f"{half}.{ours}.{i}.{theirs}samplers.0"] = f"{half}.{theirs}.{level}.{theirs}sample"
    return renamed(modules(tree), names, VAE_LAYERS)


def clip(tree: Tree) -> dict[str, str]:
    """Returns {our module: its name in an SD 1.x file, without the prefix}: the same."""
    return {module: module for module in modules(tree)}


def open_clip(tree: Tree) -> dict[str, str]:
    """Returns {our module: its name in OpenCLIP}; q, k, v, which are one tensor there, and the positions left out."""
    layers = tree["text_model"]["encoder"]["layers"]
    names = {
        "text_model.embeddings.token_embedding": "token_embedding",
        "text_model.final_layer_norm": "ln_final",
        **{f"text_model.encoder.layers.{i}": f"transformer.resblocks.{i}" for i in layers},
    }
    special = ("position_embedding", "q_proj", "k_proj", "v_proj")
    return renamed((path for path in modules(tree) if not path.endswith(special)), names, OPEN_CLIP_LAYERS)


def modules(tree: Tree) -> list[str]:
    """Returns the dotted paths of the modules that hold parameters."""
    return list(dict.fromkeys(path.rpartition(".")[0] for path in flatten(tree)))


def in_order(tree: Tree) -> list[Tree]:
    """Returns the members of a list in our trees, whose keys are "0", "1", …"""
    return [tree[str(i)] for i in range(len(tree))]


def renamed(paths: Iterable[str], names: dict[str, str], layers: dict[str, str]) -> dict[str, str]:
    """Returns each path with its longest beginning in `names` renamed, and the rest where `layers` has it."""
    result = {}
    for path in paths:
        words = path.split(".")
        n = next(n for n in range(len(words), 0, -1) if ".".join(words[:n]) in names)
        name, rest = names[".".join(words[:n])], ".".join(words[n:])
        result[path] = ".".join(filter(None, (name, layers.get(rest, rest))))
    return result
