"""The losses of the parts of a base model, and the normalisation of its latents.

Distances on pixels, edges and patches (`reconstruction.distance`) keep what derm-tiny must keep. Of a photograph they
leave a soft copy: derm-base has a perceptual term for what carries the label, the distance of what a frozen DINOv2
sees, and an adversarial one for the texture of skin: a patch discriminator (Isola et al. 2017, arXiv 1611.07004) that
tells real from reconstructed. Neither network ships with the model.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from flax import nnx

from dermjax import reconstruction
from dermjax.diffusion import objective, schedule
from dermjax.diffusion.objective import example_keys
from dermjax.diffusion.schedule import normal
from dermjax.errors import UserError
from dermjax.models import nnx_tree
from dermjax.models.classifier import Classifier
from dermjax.models.layers import conv
from dermjax.models.nnx_tree import Module
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.training.step import Loss
from dermjax.weights import classifiers

GRAIN = 8  # pixels
WIDTHS = (32, 64, 128)
DEPTHS = (2, 4, 6, 8)  # layers whose tokens are compared: texture first, meaning later


@dataclass(frozen=True, eq=False)
class Teacher:
    """A network without its arrays; `params` of the methods are those that `read_teacher` gives."""

    network: Classifier

    def distance(self, params: Params, image: jax.Array, other: jax.Array) -> jax.Array:
        """Returns a scalar, 0 for equal images [B, H, W, 3] in [-1, 1] and about 1 for unrelated ones.

        It is 1 - the correlation of the tokens' features, a mean over tokens and over DEPTHS.
        """
        both = jnp.concatenate([image, other])
        apart = [
            0.5 * jnp.square(jnp.subtract(*jnp.split(jax.nn.standardize(tokens, axis=-1), 2))).mean()
            for tokens in self.network.tokens(params, {}, both, DEPTHS)
        ]
        return sum(apart) / len(apart)


def read_teacher(folder: str, size: int) -> tuple[Teacher, Params]:
    """Returns the teacher in a folder of DINOv2 for images of `size` pixels, a multiple of its patches, and its arrays.

    Raises:
      UserError: the folder holds no DINOv2, or the size is not a multiple of its patches.
    """
    classifier, (params, _) = classifiers.read(Path(folder), ("",), size)
    kind, patch = classifier.config["model_type"], classifier.config.get("patch_size", 1)
    if kind != "dinov2":
        raise UserError(f"config.teacher = {folder} is a {kind}; give a folder of DINOv2")
    if size % patch:
        raise UserError(
            f"config.teacher = {folder} has patches of {patch} pixels; give crops of a multiple, not {size}"
        )
    return Teacher(classifier), params


class Discriminator(Module):
    """Images [B, H, W, 3] to a score for each patch [B, H/8, W/8, 1], higher for a photograph."""

    def __init__(self):
        widths = zip((3, *WIDTHS), WIDTHS, strict=False)
        self.layers = nnx.List(conv(cin, cout, 4, stride=2, padding=1, dtype=jnp.float32) for cin, cout in widths)
        self.head = conv(WIDTHS[-1], 1, 3, padding=1, dtype=jnp.float32)

    def __call__(self, image: jax.Array) -> jax.Array:
        for layer in self.layers:
            image = nnx.leaky_relu(layer(image), 0.2)
        return self.head(image)


@functools.cache
def discriminator() -> nnx_tree.Network:
    """Returns the discriminator without its arrays."""
    return nnx_tree.split(Discriminator)


def init_discriminator(seed: int) -> Params:
    """Returns freshly drawn parameters, numpy arrays."""
    return nnx_tree.draw(discriminator().shapes[0], {}, np.random.default_rng(seed))


def hinge(params: Params, image: jax.Array, again: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the loss of who reconstructed `again`, through which no gradient reaches the discriminator, and its own.

    They are those of the hinge (Lim and Ye 2017, arXiv 1705.02894): the mean of -D(again), and that of
    max(0, 1 - D(image)) + max(0, 1 + D(again)).
    """
    fixed, judge = discriminator().merge(jax.lax.stop_gradient(params)), discriminator().merge(params)
    own = jax.nn.relu(1 - judge(image)).mean() + jax.nn.relu(1 + judge(jax.lax.stop_gradient(again))).mean()
    return -fixed(again).mean(), own


def autoencoder_loss(
    sd: StableDiffusion,
    teacher: Teacher | None,
    *,
    kl: float,
    features: float,
    adversary: float,
    texture: float,
    **weights: float,
) -> Loss:
    """Returns the loss over {"vae"}, or a part of it, and batches of "image" float32 [B, H, W, 3] in [-1, 1].

    It is `reconstruction.learn`'s + features * the teacher's distance + texture * how far `roughness` is off +
    adversary * what the discriminator sees, whose own loss is added where `params` hold one. What of the autoencoder is
    not trained is in the constants, as are the teacher's arrays.
    """

    def loss(params: Params, variables: Params, constants: Params, batch: dict, key: jax.Array):
        image, vae = batch["image"], constants.get("vae", {}) | params["vae"]
        again, total, scalars = reconstruction.learn(sd, vae, batch, key, kl=kl, weights=weights)
        if teacher and features:
            apart = teacher.distance(constants["teacher"], again, image)
            total, scalars = total + features * apart, scalars | {"features": apart}
        if texture:
            apart = jnp.abs(roughness(again) - roughness(image)).mean()
            total, scalars = total + texture * apart, scalars | {"texture": apart}
        if "discriminator" in params:
            fooled, own = hinge(params["discriminator"], image, again)
            total, scalars = total + adversary * fooled + own, scalars | {"fooled": fooled, "discriminator": own}
        return total, (variables, scalars)

    return loss


def roughness(image: jax.Array) -> jax.Array:
    """How much neighbouring pixels differ in each square of GRAIN pixels: [B, H, W, 3] to [B, H / GRAIN, W / GRAIN, 3].

    A distance of pixels rewards a decoder for a smooth mean where it cannot know the grain of the skin; this one asks
    for as much of it as there is, whatever it is.
    """
    down, right = (jnp.abs(jnp.diff(image, axis=axis, append=image.take(jnp.array([-1]), axis))) for axis in (1, 2))
    return reduce(down + right, "B (h a) (w b) C -> B h w C", "mean", a=GRAIN, b=GRAIN)


def diffusion_loss(sd: StableDiffusion, empty: np.ndarray, *, timestep_bias: float, caption_dropout: float) -> Loss:
    """Returns the loss over {"text_encoder", "unet"} and batches of "moments" [B, h, w, 2 Z] and "tokens" [B, N].

    `empty` int32 [1, N] are the tokens of no caption, which stand in place of some.
    """
    alpha_bar = schedule.alphas_cumprod(sd.configs["scheduler"])
    denoising = objective.Objective(sd.prediction, alpha_bar, snr_gamma=0.0, huber=0.0)

    def loss(params: Params, variables: Params, constants: Params, batch: dict, key: jax.Array):
        keys = jax.vmap(lambda k: jax.random.split(k, 4))(example_keys(key, batch["index"]))
        shape = (*batch["moments"].shape[1:3], batch["moments"].shape[3] // 2)
        draw, noise = normal(keys[:, 0], shape), normal(keys[:, 1], shape)
        latents = sd.sample_latents(batch["moments"].astype(jnp.float32), draw)
        t = objective.times(keys[:, 2], len(alpha_bar), timestep_bias)
        dropped = jax.vmap(jax.random.uniform)(keys[:, 3]) < caption_dropout
        context = sd.encode_text(params, jnp.where(dropped[:, None], empty, batch["tokens"]))
        value = denoising.loss(lambda x, t: sd.unet(params, x, t, context), latents, noise, t, jnp.ones(len(t)))
        return value, (variables, {})

    return loss


def normalise(params: Params, moments: jax.Array) -> Params:
    """Returns the autoencoder's parameters with latents of mean 0 and deviation 1 in every channel of `moments`.

    The change is folded into the two 1x1 convolutions beside the latents, so that reconstructions stay the same and
    the scaling factor of the config is 1.
    """
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    centre = mean.mean((0, 1, 2))
    spread = jnp.sqrt(mean.var((0, 1, 2)) + jnp.exp(log_variance).mean((0, 1, 2)))
    channels = len(centre)
    scale = jnp.concatenate([1 / spread, jnp.ones(channels)])
    shift = jnp.concatenate([-centre / spread, -2 * jnp.log(spread)])
    vae = params["vae"]
    before, after = vae["quant_conv"], vae["post_quant_conv"]
    kernel = after["kernel"]  # [1, 1, Z, Z], input channels third
    bias = after["bias"] + jnp.einsum("hwio,i->o", kernel, centre)
    folded = {
        "quant_conv": {"kernel": before["kernel"] * scale[None, None, None, :], "bias": before["bias"] * scale + shift},
        "post_quant_conv": {"kernel": kernel * spread[None, None, :, None], "bias": bias},
    }
    return params | {"vae": vae | folded}
