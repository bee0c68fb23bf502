"""The DreamBooth loss (Ruiz et al. 2023, arXiv 2208.12242) on cached moments and contexts.

Instance and class images share one batch, one forward pass and one weighted mean. A batch holds
`moments` [B, 2, h, w, 2 Z] (image and mirror image), `prompt` int32 [B] (row of the prompts), `weight` [B] and, from
the loop, `index` int32 [B].
A text encoder that is wholly frozen is not here at all, its contexts are; one that is tuned reads the tokens anew.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dermjax.diffusion import objective, schedule
from dermjax.models.stable_diffusion import Params, StableDiffusion


def loss(
    sd: StableDiffusion,
    assembled: Callable[[dict, dict], Params],
    *,
    timestep_bias: float,
    prompt_dropout: float,
    offset_noise: float,
    snr_gamma: float,
    huber: float,
):
    """Returns the loss of `training.loop`.

    constants hold what is frozen and, of P prompts and the empty one after them, either `contexts` [P + 1, N, D] or,
    where the text encoder is tuned, `tokens` int32 [P + 1, N]. `assembled(params, constants)` gives the networks'
    parameters.
    """
    alpha_bar = schedule.alphas_cumprod(sd.configs["scheduler"])

    def of(params: Params, variables, constants, batch, key):
        h, w, doubled = batch["moments"].shape[2:]
        keys = jax.vmap(lambda k: jax.random.split(k, 6))(objective.example_keys(key, batch["index"]))
        uniform = jax.vmap(jax.random.uniform)
        mirrored = uniform(keys[:, 0]) < 0.5
        moments = jnp.where(mirrored[:, None, None, None], batch["moments"][:, 1], batch["moments"][:, 0])
        draw, noise = (objective.normal(keys[:, i], (h, w, doubled // 2)) for i in (1, 2))
        noise = objective.offset(keys[:, 5], noise, offset_noise)
        latents = sd.sample_latents(moments.astype(jnp.float32), draw)
        t = objective.times(keys[:, 3], len(alpha_bar), timestep_bias)
        tuned = assembled(params, constants)
        said = constants["contexts" if "contexts" in constants else "tokens"]
        # now and then no prompt, so that guidance still has something to push away from
        prompt = jnp.where(uniform(keys[:, 4]) < prompt_dropout, len(said) - 1, batch["prompt"])
        context = said[prompt] if "contexts" in constants else sd.encode_text(tuned, said[prompt])
        value = objective.denoising(lambda x, t: sd.unet(tuned, x, t, context), sd.prediction, alpha_bar,
                                    latents, noise, t, batch["weight"], snr_gamma=snr_gamma, huber=huber)  # fmt: skip
        return value, (variables, {})

    return of
