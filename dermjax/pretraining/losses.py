"""The losses of the parts of a base model, and the normalisation of its latents.

What derm-tiny must keep is the colour, the border and the number of drawn lesions, hairs and rulers, and for these
plain distances on pixels, edges and patch means are enough, given that thin lines weigh more than their few pixels. Of
a photograph they leave a soft copy: derm-base has a perceptual term for what carries the label, and an adversarial one
for the texture of skin.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce

from dermjax.diffusion import objective, schedule
from dermjax.diffusion.objective import example_keys
from dermjax.diffusion.schedule import normal
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.pretraining import discriminator
from dermjax.pretraining.teacher import Teacher
from dermjax.training.step import Loss

LINE = 9  # side in pixels of the window that a thin dark line does not fill: three times the widest hair


def autoencoder_loss(
    sd: StableDiffusion, teacher: Teacher | None, *, kl: float, features: float, adversary: float, **weights: float
) -> Loss:
    """Returns the loss over {"vae"}, or a part of it, and batches of "image" float32 [B, H, W, 3] in [-1, 1].

    It is `distance` to the image with these weights + kl * the divergence of the latents from a standard normal, a mean
    over elements + features * the teacher's distance + adversary * what the discriminator sees, whose own loss is added
    where `params` hold one. What of the autoencoder is not trained is in the constants, as are the teacher's arrays.
    """

    def loss(params: Params, variables: Params, constants: Params, batch: dict, key: jax.Array):
        image, vae = batch["image"], {"vae": constants.get("vae", {}) | params["vae"]}
        mean, log_variance = jnp.split(sd.encode(vae, image), 2, axis=-1)
        again = sd.reconstruct(vae, draw(mean, log_variance, example_keys(key, batch["index"])))
        total, scalars = distance(again, image, **weights)
        divergence = 0.5 * (mean**2 + jnp.exp(log_variance) - 1.0 - log_variance).mean()
        total, scalars = total + kl * divergence, scalars | {"kl": divergence}
        if teacher and features:
            apart = teacher.distance(constants["teacher"], again, image)
            total, scalars = total + features * apart, scalars | {"features": apart}
        if "discriminator" in params:
            fooled, own = discriminator.hinge(params["discriminator"], image, again)
            total, scalars = total + adversary * fooled + own, scalars | {"fooled": fooled, "discriminator": own}
        return total, (variables, scalars)

    return loss


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


def draw(mean: jax.Array, log_variance: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns one draw of latents, [B, h, w, Z], from one key an example."""
    return mean + jnp.exp(0.5 * log_variance) * normal(keys, mean.shape[1:])


def distance(
    again: jax.Array, image: jax.Array, *, lines: float, standout: float, edges: float, patches: float, chroma: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns how far a reconstruction is from its image, both [B, H, W, 3], and figures to log.

    L1 on pixels, each weighted by 1 + lines * `thin_dark` + standout * `contrast` + edges * L1 on differences of
    neighbours + patches * L1 on means of 8 x 8 pixels + chroma * L1 on the two opponent colours of means of 4 x 4
    pixels, weighted by 1 + standout * `contrast`.

    Without the term in chroma, red and blue lesions stay brown for a long time: brown is right in brightness, and hue
    is a small part of the other terms. Without the weight of lines, hairs and the ticks of a ruler vanish: they are few
    pixels, and where a line may be in one of several places the median of L1 is skin. Without the weight of what stands
    out, skin, nine tenths of most images, decides.
    """
    error = again - image
    stands = standout * contrast(image)
    l1 = jnp.abs(error).mean()
    weighted = (jnp.abs(error) * (1 + lines * thin_dark(image) + stands)).mean()
    edge = jnp.abs(jnp.diff(error, axis=1)).mean() + jnp.abs(jnp.diff(error, axis=2)).mean()
    patch = jnp.abs(reduce(error, "B (h 8) (w 8) C -> B h w C", "mean")).mean()
    red, green, blue = jnp.unstack(reduce(error, "B (h 4) (w 4) C -> B h w C", "mean"), axis=-1)
    opponent = jnp.abs(red - green) + jnp.abs(blue - 0.5 * (red + green))
    hue = (opponent * (1 + reduce(stands, "B (h 4) (w 4) 1 -> B h w", "mean"))).mean()
    psnr = -10 * jnp.log10(jnp.square(error / 2).mean())
    total = weighted + edges * edge + patches * patch + chroma * hue
    return total, {"l1": l1, "patch": patch, "hue": hue, "psnr": psnr}


def contrast(image: jax.Array) -> jax.Array:
    """How far each pixel is from the median colour of its image, which is skin: [B, H, W, 3] to [B, H, W, 1]."""
    return jnp.abs(image - jnp.median(image, axis=(1, 2), keepdims=True)).mean(-1, keepdims=True)


def thin_dark(image: jax.Array) -> jax.Array:
    """How much darker each pixel is than both sides of the line it lies on: the black top-hat of the brightness.

    From [B, H, W, 3] in [-1, 1] to [B, H, W, 1] in [0, 2]; 0 inside of anything wider than LINE.
    """
    window, once = (1, LINE, LINE, 1), (1, 1, 1, 1)
    brightness = image.mean(-1, keepdims=True)
    dilated = jax.lax.reduce_window(brightness, -jnp.inf, jax.lax.max, window, once, "SAME")
    return jax.lax.reduce_window(dilated, jnp.inf, jax.lax.min, window, once, "SAME") - brightness


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
