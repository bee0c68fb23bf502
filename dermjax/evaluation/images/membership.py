"""Whether a tuned model gives away which photographs it was tuned on: the loss attack on diffusion models.

Whoever has the model and a photograph can add noise to it and see how well the model takes it away; what it has learnt
it knows better (Matsumoto et al. 2023, arXiv 2302.03262; Carlini et al. 2023, arXiv 2301.13188). Members are training
images, the others held-out images of the same source, with the same noise, times and prompts. An attacker's AUROC of
0.5 is chance. What matters more is the share of members that is found at hardly any false alarm.

Shapes: N images, K draws, [B, h, w, Z] latents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.data import images, tokens
from dermjax.data.images import to_model
from dermjax.data.records import Manifest, Record
from dermjax.diffusion import schedule
from dermjax.evaluation.intervals import LEVEL, Estimate
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.progress import bar

BATCH = 16
FALSE_ALARMS = (0.01, 0.001)  # rates at which found members are counted
RESAMPLES = 2000


@dataclass(frozen=True)
class Attack:
    """What an attacker reaches: AUROC, and the share of members found by rate of false alarms."""

    auroc: Estimate
    found: dict[float, Estimate]


def losses(
    sd: StableDiffusion, params: Params, manifest: Manifest, records: Sequence[Record], prompts: Mapping[str, str],
    size: int, draws: int,
) -> np.ndarray:  # fmt: skip
    """The denoising loss of each image, the mean over K times evenly spread and K noises of its own: float64 [N].

    Noise follows from an image's digest, so that it is the same for every model. prompts: by label.
    """
    alpha_bar = schedule.alphas_cumprod(sd.configs["scheduler"])
    times = np.int32((np.arange(draws) + 0.5) / draws * len(alpha_bar))
    labels = list(dict.fromkeys(record.label for record in records))
    texts = tokens.tokenize(tokens.load_tokenizer(sd.tokenizer, *sd.text_limits), [prompts[each] for each in labels])

    @jax.jit
    def of_batch(params: Params, image: jax.Array, context: jax.Array, seed: jax.Array) -> jax.Array:
        mean, _ = jnp.split(sd.encode(params, image), 2, axis=-1)
        latents = mean * sd.scale

        def of_time(number: jax.Array, t: jax.Array) -> jax.Array:
            keys = jax.vmap(lambda each: jax.random.fold_in(jax.random.key(each), number))(seed)
            noise = schedule.normal(keys, latents.shape[1:])
            at = jnp.full(len(latents), t)
            x = schedule.add_noise(alpha_bar, latents, noise, at)
            error = sd.unet(params, x, at, context) - schedule.target(sd.prediction, alpha_bar, latents, noise, at)
            return jnp.square(error).mean((1, 2, 3))

        return jax.lax.map(lambda pair: of_time(*pair), (jnp.arange(draws), jnp.asarray(times))).mean(0)

    contexts = np.asarray(jax.jit(sd.encode_text)(params, texts))
    found = []
    with bar(len(records), "losses", "images", 0) as progress:
        for start in range(0, len(records), BATCH):
            some = records[start : start + BATCH]
            rows = [*some, *[some[-1]] * (BATCH - len(some))]
            pixels = to_model(np.stack([images.load(manifest.path(record), size) for record in rows]))
            context = contexts[[labels.index(record.label) for record in rows]]
            seeds = np.array([int(record.sha256[:8], 16) for record in rows], np.uint32)
            found.append(np.asarray(of_batch(params, pixels, context, seeds), np.float64)[: len(some)])
            progress.update(len(some))
    return np.concatenate(found)


def attack(members: np.ndarray, others: np.ndarray, seed: int) -> Attack:
    """What the scores of members and of others give away; the higher the score, the more it speaks for a member.

    Intervals: a bootstrap of both. A rate of false alarms that so few others cannot show has a note in its place.
    """
    rng = np.random.default_rng(seed)
    drawn = [(rng.choice(members, len(members)), np.sort(rng.choice(others, len(others)))) for _ in range(RESAMPLES)]
    ordered = np.sort(others)
    estimates = {}
    for rate in FALSE_ALARMS:
        if rate * len(others) < 1:
            note = f"{len(others)} held-out images cannot show {100 * rate:g} % of false alarms"
            estimates[rate] = Estimate(
                value=_found(members, ordered, rate), n=len(members), low=None, high=None, note=note
            )
        else:
            estimates[rate] = _estimate(
                _found(members, ordered, rate), [_found(*each, rate) for each in drawn], len(members)
            )
    area = _estimate(_area(members, ordered), [_area(*each) for each in drawn], len(members) + len(others))
    return Attack(auroc=area, found=estimates)


def _area(members: np.ndarray, others: np.ndarray) -> float:
    """The chance that a member has the higher score, ties counted half; `others` ascend."""
    below = np.searchsorted(others, members, "left") + np.searchsorted(others, members, "right")
    return float(below.mean() / (2 * len(others)))


def _found(members: np.ndarray, others: np.ndarray, rate: float) -> float:
    """The share of members above the score that at most `rate` of the others are above; `others` ascend."""
    return float((members > others[-1 - int(rate * len(others))]).mean())


def _estimate(value: float, resampled: list[float], n: int) -> Estimate:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=value, n=n, low=float(low), high=float(high), note="")
