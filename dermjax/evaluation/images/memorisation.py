"""Whether a model has memorised its training images: copies among what it draws, and the loss attack on the model.

Copies are told by what a frozen network sees. Two photographs of one lesion, and a photograph and its altered copy,
look alike to the network; photographs of different lesions hardly ever do. The limit between them is read off held-out
photographs: how near they come to the nearest training image, though they copy none. How many copies lie beyond the
limit is measured on copies that are made: training images, altered.

The attack: whoever has the model and a photograph can add noise to it and see how well the model takes it away; what it
has learnt it knows better (Matsumoto et al. 2023, arXiv 2302.03262; Carlini et al. 2023, arXiv 2301.13188). Members are
training images, the others held-out images of the same source, with the same noise, times and prompts. An attacker's
AUROC of 0.5 is chance. What matters more is the share of members that is found at hardly any false alarm.

Shapes: N and M images, D features, in a space of the training images (`features.Space`); K draws, [B, h, w, Z] latents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import beta

from dermjax.data import images, tokens
from dermjax.data.images import to_model
from dermjax.data.records import Manifest, Record
from dermjax.diffusion import schedule
from dermjax.evaluation import intervals
from dermjax.evaluation.intervals import Estimate
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.progress import bar
from dermjax.weights.textual_inversion import spell_stored

NUMERIC_VERSION = 1  # of `losses`, besides the networks' own: words of several vectors, spelt out
LEAST_FOUND = 0.2  # share of known copies without which a share of copies means nothing
HELD_OUT_BEYOND = 0.01  # share of held-out images that lie beyond the limit
BATCH = 16
FALSE_ALARMS = (0.01, 0.001)  # rates at which found members are counted
ENOUGH = 10  # false alarms that an interval needs
RESAMPLES = 2000


@dataclass(frozen=True)
class Limit:
    """The cosine similarity beyond which an image is called a copy, and how often that is right.

    false_alarms of `held_out` images that copy nothing, found of `known` copies, lie beyond it.
    """

    similarity: float
    false_alarms: int
    held_out: int
    found: int
    known: int


def similarity_limit(held_out: np.ndarray) -> float:
    """The similarity to the nearest training image beyond which HELD_OUT_BEYOND of held-out images lie."""
    return float(np.quantile(held_out, 1 - HELD_OUT_BEYOND, method="higher"))


def limit(held_out: np.ndarray, known_copies: np.ndarray) -> Limit:
    """The limit of held-out images, and what it knows; both are similarities to the nearest training image."""
    similarity = similarity_limit(held_out)
    return Limit(
        similarity=similarity,
        false_alarms=int((held_out > similarity).sum()),
        held_out=len(held_out),
        found=int((known_copies > similarity).sum()),
        known=len(known_copies),
    )


def share_of_copies(beyond: int, n: int, limit: Limit) -> Estimate:
    """The share of copies among n images of which `beyond` lie beyond the limit, corrected for what the limit misses.

    Rogan and Gladen 1978: (beyond / n - a) / (b - a), a and b the shares of non-copies and copies beyond the limit.
    Its interval is drawn from what is known of the three shares: Jeffreys' posterior of two of them and, as the limit
    is the k-th largest of the held-out images themselves, Beta(k, m + 1 - k) of a. It holds where images that copy
    nothing lie as near to training images as held-out ones, and copies as near as those that were made.
    """
    if limit.found / limit.known < LEAST_FOUND:
        note = f"of {limit.known} known copies this network recognises {limit.found}: it cannot tell"
        return Estimate(value=beyond / n, n=n, low=None, high=None, note=note)
    rng = np.random.default_rng(0)

    def drawn(count: int, total: int) -> np.ndarray:
        return beta.rvs(count + 0.5, total - count + 0.5, size=20_000, random_state=rng)

    def corrected(observed: np.ndarray, false: np.ndarray, true: np.ndarray) -> np.ndarray:
        return np.clip((observed - false) / np.maximum(true - false, 1e-9), 0, 1)

    rank, held_out = limit.false_alarms + 1, limit.held_out
    value = corrected(*map(np.array, (beyond / n, rank / (held_out + 1), limit.found / limit.known)))
    false = beta.rvs(rank, held_out + 1 - rank, size=20_000, random_state=rng)
    spread = corrected(drawn(beyond, n), false, drawn(limit.found, limit.known))
    low, high = intervals.bounds(spread)
    return Estimate(value=float(value), n=n, low=low, high=high, note="corrected for misses")


@dataclass(frozen=True)
class Attack:
    """What an attacker reaches: AUROC, and the share of members found by rate of false alarms."""

    auroc: Estimate
    found: dict[float, Estimate]


@dataclass(frozen=True)
class Scores:
    """A score of each image, float [n], and the unit that it is drawn with, see `findings.units`."""

    values: np.ndarray
    units: np.ndarray

    def resample(self, rng: np.random.Generator) -> np.ndarray:
        """The scores of as many units, drawn with replacement."""
        _, unit = np.unique(self.units, return_inverse=True)
        times = np.bincount(rng.integers(0, unit.max() + 1, unit.max() + 1), minlength=unit.max() + 1)
        return np.repeat(self.values, times[unit])


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
    tokenizer = tokens.load_tokenizer(sd.tokenizer, *sd.text_limits)
    texts = tokens.tokenize(tokenizer, spell_stored([prompts[each] for each in labels], tokenizer))

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
    values = []
    with bar(len(records), "losses", "images", 0) as progress:
        for start in range(0, len(records), BATCH):
            some = records[start : start + BATCH]
            rows = [*some, *[some[-1]] * (BATCH - len(some))]
            pixels = to_model(np.stack([images.load(manifest.path(record), size) for record in rows]))
            context = contexts[[labels.index(record.label) for record in rows]]
            seeds = np.array([int(record.sha256[:8], 16) for record in rows], np.uint32)
            values.append(np.asarray(of_batch(params, pixels, context, seeds), np.float64)[: len(some)])
            progress.update(len(some))
    return np.concatenate(values)


def attack(members: Scores, others: Scores, seed: int) -> Attack:
    """What the scores of members and of others give away; the higher the score, the more it speaks for a member.

    Intervals: a bootstrap over the units of both. Few others cannot show a low rate of false alarms: below one false
    alarm there is no share, below ENOUGH no interval.
    """
    rng = np.random.default_rng(seed)
    areas, shares_found = [], {rate: [] for rate in FALSE_ALARMS}
    for _ in range(RESAMPLES):
        drawn = members.resample(rng), np.sort(others.resample(rng))
        areas.append(_area(*drawn))
        for rate, values in shares_found.items():
            values.append(_found(*drawn, rate))
    ordered, n = np.sort(others.values), len(members.values)
    estimates = {
        rate: _estimate(_found(members.values, ordered, rate), values, n, _too_few(rate, len(ordered)))
        for rate, values in shares_found.items()
    }
    return Attack(auroc=_estimate(_area(members.values, ordered), areas, n + len(ordered), ""), found=estimates)


def _area(members: np.ndarray, others: np.ndarray) -> float:
    """The chance that a member has the higher score, ties counted half; `others` ascend."""
    below = np.searchsorted(others, members, "left") + np.searchsorted(others, members, "right")
    return float(below.mean() / (2 * len(others)))


def _found(members: np.ndarray, others: np.ndarray, rate: float) -> float:
    """The share of members above the score that an unseen other is above with a chance of at most `rate`.

    `others` ascend; of n, the k-th largest is passed by an unseen one with a chance of k / (n + 1).
    """
    k = max(1, int(rate * (len(others) + 1)))
    return float((members > others[-k]).mean())


def _too_few(rate: float, others: int) -> str:
    """Why a share of members found at a rate of false alarms has no interval, or nothing."""
    if rate * (others + 1) < 1:
        return f"{others} held-out images cannot show {100 * rate:g} % of false alarms"
    few = f"{others} held-out images have {rate * others:.0f} false alarms at {100 * rate:g} %: too few for an interval"
    return few if rate * others < ENOUGH else ""


def _estimate(value: float, resampled: list[float], n: int, note: str) -> Estimate:
    if note:
        return Estimate(value=value, n=n, low=None, high=None, note=note)
    low, high = intervals.bounds(resampled)
    return Estimate(value=value, n=n, low=low, high=high, note="")
