"""The bundle: text encoder, autoencoder and UNet as pure functions of plain parameter trees, and the presets.

Everything above this file sees Stable Diffusion through here: a frozen description (configs and graph definitions, no
arrays) and `params = {"text_encoder": …, "unet": …, "vae": …}`, nested dicts of float32 arrays. The latent scale and
the meaning of the moments stand here and nowhere else.

Shapes: B batch, H W image, h w latent, Z latent channels, N tokens, D context width.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from dermjax.errors import UserError
from dermjax.models import configs, nnx_tree
from dermjax.models.clip_text import CLIPText
from dermjax.models.nnx_tree import Params
from dermjax.models.unet import UNet
from dermjax.models.vae import VAE

Array = jax.Array
NETWORKS = {"text_encoder": CLIPText, "unet": UNet, "vae": VAE}


@dataclasses.dataclass(frozen=True, eq=False)
class StableDiffusion:
    """One model of the family. `configs` maps text_encoder, unet, vae and scheduler to their config.json contents."""

    configs: dict[str, dict]
    tokenizer: Path  # the folder with vocab.json and merges.txt
    dtype: Any  # of the arithmetic; parameters are float32
    remat: str = "none"  # what training keeps of the UNet's layers: all, none of "blocks", or all but "attention"

    @functools.cached_property
    def networks(self) -> dict[str, nnx_tree.Network]:
        """Each network without its arrays."""
        return {name: self._split(name) for name in NETWORKS}

    @property
    def shapes(self) -> Params:
        """The parameter tree with jax.ShapeDtypeStruct leaves."""
        return {name: network.shapes[0] for name, network in self.networks.items()}

    @property
    def prediction(self) -> str:
        """What the UNet predicts: epsilon, v_prediction or sample."""
        return self.configs["scheduler"].get("prediction_type", "epsilon")

    @property
    def size(self) -> int:
        """The side in pixels of the images this model was made for."""
        return self.configs["unet"]["sample_size"] * self.factor

    @property
    def factor(self) -> int:
        """Pixels a latent cell: 8 for every Stable Diffusion."""
        return 2 ** (len(self.configs["vae"]["block_out_channels"]) - 1)

    @property
    def scale(self) -> float:
        """The factor that gives latents about unit variance; 0.18215 in SD 1.x and 2.x."""
        return self.configs["vae"].get("scaling_factor", 0.18215)

    @property
    def text_limits(self) -> tuple[int, int]:
        """What the text encoder takes: the most tokens of a text, and how many tokens it knows."""
        text = self.configs["text_encoder"]
        return text["max_position_embeddings"], text["vocab_size"]

    def init(self, seed: int) -> Params:
        """Returns freshly drawn parameters, numpy arrays."""
        return nnx_tree.draw(self.shapes, {}, np.random.default_rng(seed))

    def check(self) -> None:
        """Raises UserError where the networks do not belong together or their configs have options that we do not."""
        configs.check_scheduler(self.configs["scheduler"])
        configs.check_context(self.configs["text_encoder"], self.configs["unet"])
        _ = self.shapes  # building the networks refuses options that they do not have
        configs.check_channels(self.configs["unet"], self.configs["vae"])

    def encode_text(self, params: Params, tokens: Array) -> Array:
        """Returns the context [B, C N, D], float32, of tokens int32 [B, C N] in C chunks of N, each read by itself."""
        length = min(tokens.shape[1], self.configs["text_encoder"]["max_position_embeddings"])
        chunks = rearrange(tokens, "B (C N) -> (B C) N", N=length)
        context = self.networks["text_encoder"].merge(params["text_encoder"])(chunks)
        return rearrange(context, "(B C) N D -> B (C N) D", B=tokens.shape[0])

    def unet(self, params: Params, x: Array, t: Array, context: Array) -> Array:
        """Returns the prediction [B, h, w, Z] for noisy latents x at timesteps t [B]."""
        return self.network(params)(x, t, context)

    def network(self, params: Params) -> UNet:
        """Returns the UNet itself, for callers that need its steps apart: the words once a prompt, the depths."""
        return self.networks["unet"].merge(params["unet"])

    def encode(self, params: Params, image: Array) -> Array:
        """Returns moments [B, h, w, 2 Z] (mean, log-variance; not scaled) of images [B, H, W, 3] in [-1, 1]."""
        return self.networks["vae"].merge(params["vae"]).encode(image)

    def sample_latents(self, moments: Array, noise: Array) -> Array:
        """Returns one draw of scaled latents [B, h, w, Z]; `noise` is standard normal of that shape."""
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return (mean + jnp.exp(0.5 * log_variance) * noise) * self.scale

    def reconstruct(self, params: Params, latents: Array) -> Array:
        """Returns images [B, H, W, 3], not clipped, from unscaled latents [B, h, w, Z]: what training compares."""
        return self.networks["vae"].merge(params["vae"]).decode(latents)

    def decode(self, params: Params, latents: Array) -> Array:
        """Returns images [B, H, W, 3] in [-1, 1], clipped, from scaled latents [B, h, w, Z]."""
        return jnp.clip(self.reconstruct(params, latents / self.scale), -1.0, 1.0)

    def _split(self, name: str) -> nnx_tree.Network:
        make = functools.partial(NETWORKS[name], self.configs[name], dtype=self.dtype)
        if name == "unet":
            make = functools.partial(make, remat=self.remat)
        try:
            return nnx_tree.split(make)
        except KeyError as error:
            raise UserError(f"{name}/config.json: {error} is missing") from error


def count(params: Params) -> int:
    """Returns the number of parameters of a tree of arrays or of shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def operations(params: Params, cells: int) -> float:
    """Returns about how many floating-point operations the UNet takes for an image of so many latent cells."""
    return OPERATIONS * count(params["unet"]) * cells


OPERATIONS = 0.25  # a parameter and a latent cell: 0.22 in SD 1.5, 0.28 in derm-tiny

# No timestep_spacing, as in Stable Diffusion's published files: each sampler walks its own, as in diffusers
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

# what the presets' text encoders and UNets have in common
TEXT = {
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "model_type": "clip_text_model",
}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "out_channels": 4,
}

SD15 = {
    "text_encoder": TEXT
    | {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "max_position_embeddings": 77,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "projection_dim": 768,
        "vocab_size": 49408,
    },
    "unet": UNET
    | {
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "scheduler": SCHEDULER | {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
}

# 2.1 at 768 px, which predicts v; 2.0-base and 2.1-base are the same networks at 512 px with epsilon.
SD21 = {
    "text_encoder": SD15["text_encoder"]
    | {
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,  # of OpenCLIP's 24; the last one is not used
        "projection_dim": 512,
    },
    "unet": SD15["unet"]
    | {
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "sample_size": 96,
        "use_linear_projection": True,
    },
    "vae": SD15["vae"] | {"sample_size": 768},
    "scheduler": SCHEDULER | {"prediction_type": "v_prediction"},
}

# derm-tiny: the same architecture at a size that a laptop trains, for images of 128 px (16 x 16 latents). Pretraining
# sets what follows its tokenizer (bos_token_id, eos_token_id, vocab_size) and its latents (scaling_factor).
TINY = {
    "text_encoder": TEXT
    | {
        "hidden_size": 128,
        "intermediate_size": 512,
        "max_position_embeddings": 40,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "projection_dim": 128,
        "vocab_size": 0,
    },
    "unet": UNET
    | {
        "attention_head_dim": 4,
        "block_out_channels": [64, 128, 192],
        "cross_attention_dim": 128,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "layers_per_block": 1,
        "sample_size": 16,
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    },
    "vae": SD15["vae"]
    | {
        "block_out_channels": [16, 32, 64, 96],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "sample_size": 128,
        "scaling_factor": 1.0,
    },
    "scheduler": SCHEDULER | {"prediction_type": "v_prediction", "timestep_spacing": "leading"},
}

# derm-base: for photographs of 256 px (32 x 32 latents). Its UNet is derm-tiny's with a level around it, its text
# encoder the same, its autoencoder twice as wide, so that its training can begin as derm-tiny (`pretraining.growth`).
BASE = {
    "text_encoder": TINY["text_encoder"],
    "unet": TINY["unet"]
    | {
        "block_out_channels": [64, *TINY["unet"]["block_out_channels"]],
        "down_block_types": ["DownBlock2D", *TINY["unet"]["down_block_types"]],
        "sample_size": 32,
        "up_block_types": [*TINY["unet"]["up_block_types"], "UpBlock2D"],
    },
    "vae": TINY["vae"] | {"block_out_channels": [32, 64, 128, 192], "sample_size": 256},
    "scheduler": TINY["scheduler"],
}
