"""The plan of a synthetic data set: which images are requested, with which words, seed and sampler.

A plan says how many images a class gets and what is assigned to them: samplers, prompts, and words for the gaps of the
prompts, by weights and quotas or as the images of a real data set have them. Its requests are a list, always the same
for the same plan. More images a class add requests and change none. What a plan cannot request is a UserError of one
line that names the key.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from pathlib import Path

from dermjax.config_file import LARGEST_SEED
from dermjax.data import records, templates
from dermjax.data.records import Record
from dermjax.data.templates import LABEL, PromptWords
from dermjax.diffusion import samplers
from dermjax.errors import UserError
from dermjax.sampling.init_images import in_turns
from dermjax.sampling.requests import Request, SamplerSettings, names_folder

SAMPLER, PROMPT = "sampler", "prompt"  # assigned as words are
IMAGES = "images"  # of a quota
TAKEN = (LABEL, PROMPT, SAMPLER, IMAGES)  # names that no gap can have
EXAMPLES = 3  # prompts a class in the table
MOST = 10**7  # images of a plan, whose requests are all in memory
Choices = Mapping[str, Mapping[str, float]]  # gap -> word -> weight


@dataclass(frozen=True)
class Quota:
    """At least this many images have these words, gap -> word."""

    words: Mapping[str, str]
    images: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is requested; the fields are the keys of config.plan, see configs/generate.py.

    prompts: label -> the templates of its prompts. words: gap -> word -> weight. What stands several times in a list
    has as many shares. A quota is {"images": 100, gap: word, …}, for one class where it names a "label". images_of: how
    many images a class gets where that is not images_per_class. match is a manifest, or "": image n of a class is to be
    like one of its training images, which take turns in a shuffled order; their attributes fill the gaps that have no
    words. With `contrast` the prompts of the other classes, in turns, stand in for the negative prompt, so that
    guidance leads away from what the classes have in common to what tells them apart. The seeds count up from `seed`,
    one an image: over the classes first, so that image n of a class keeps its seed in a larger plan.
    """

    prompts: Mapping[str, Sequence[str]]
    words: Choices
    quotas: Mapping[str, Mapping[str, str | int]]
    match: str
    negative_prompt: str
    contrast: bool
    samplers: Sequence[str]
    images_per_class: int
    images_of: Mapping[str, int]
    steps: int
    spacing: str
    guidance: float
    guidance_rescale: float
    guidance_interval: Sequence[float]
    deep_cache: int
    seed: int

    @property
    def counts(self) -> dict[str, int]:
        """How many images each class gets."""
        return {label: self.images_of.get(label, self.images_per_class) for label in self.prompts}

    def settings(self) -> list[SamplerSettings]:
        """Returns the settings of each of the samplers; UserError for what one of them cannot work with."""
        settings = [
            SamplerSettings(
                sampler=samplers.get_sampler(name).name,
                steps=self.steps,
                spacing=self.spacing,
                guidance=float(self.guidance),
                guidance_rescale=float(self.guidance_rescale),
                guidance_interval=tuple(map(float, self.guidance_interval)),
                deep_cache=self.deep_cache,
            )
            for name in self.samplers
        ]
        for each in settings:
            each.check("plan.")
        return settings

    def requests(self) -> list[Request]:
        """Returns the requests, class by class; UserError where nothing, or what no sampler or gap can do, is asked."""
        self._check_images()
        self.check_words()
        in_turn = self.settings()
        settings, turns = {each.sampler: each for each in in_turn}, Counter(each.sampler for each in in_turn)
        alike = self._alike()
        requests = []
        for place, label in enumerate(sorted(self.prompts)):
            choices = {SAMPLER: turns, PROMPT: Counter(self.prompts[label]), **self.words}
            others = [(other, each) for other in sorted(self.prompts) if other != label for each in self.prompts[other]]
            for n, assigned in enumerate(assign(choices, self._reserved(label), self.counts[label])):
                known = PromptWords(label, assigned, alike[label][n % len(alike[label])] if self.match else None)
                if self.contrast:
                    other, template = others[n // len(turns) % len(others)]
                    negative = templates.fill_contrast(template, replace(known, label=other))
                else:
                    negative = templates.fill(self.negative_prompt, known)
                requests.append(
                    Request(
                        image=f"images/{label}/{n:05d}.png",
                        label=label,
                        prompt=templates.check_filled(templates.fill(assigned[PROMPT], known), assigned[PROMPT]),
                        negative=negative,
                        seed=self.seed + n * len(self.prompts) + place,
                        words=known.used(assigned[PROMPT]),
                        **vars(settings[assigned[SAMPLER]]),
                    )
                )
        return requests

    def _check_images(self) -> None:
        """Refuses a plan that requests no images that could be named and told apart."""
        wordless = [label for label, each in self.prompts.items() if not each or not _are_texts(each)]
        strange = [label for label, count in self.images_of.items() if type(count) is not int or count < 0]
        if strange:
            label = strange[0]
            raise UserError(f"plan.images_of.{label} = {self.images_of[label]!r}: give a whole number, 0 or more")
        folders = [label for label in self.prompts if not isinstance(label, str) or not names_folder(label)]
        unknown = sorted(set(self.images_of) - set(self.prompts))
        counts = self.counts.values()
        if not self.prompts or not self.samplers or min(counts) < 0 or not sum(counts):
            raise UserError("plan asks for nothing: give prompts, samplers and images_per_class of at least 1")
        if sum(counts) > MOST:
            raise UserError(f"plan asks for {sum(counts):,} images; a plan has {MOST:,} at most, and another seed more")
        if wordless:
            raise UserError(f"plan.prompts.{wordless[0]}: not a list of prompts; give at least one")
        if folders:
            raise UserError(f"plan.prompts: label {folders[0]!r} cannot name a folder; give another")
        if unknown:
            known = ", ".join(self.prompts)
            raise UserError(f"plan.images_of.{unknown[0]}: plan.prompts has no such class, only {known}")
        last = self.seed + max(counts) * len(self.prompts) - 1
        if self.seed < 0 or last > LARGEST_SEED:
            raise UserError(
                f"plan.seed = {self.seed}: the seeds run to {last}; they must lie within 0 and {LARGEST_SEED}"
            )

    def check_words(self) -> None:
        """Refuses gaps that nothing fills, words that no prompt has, and quotas that cannot be met."""
        if self.guidance == 1:
            guided = ("negative_prompt", "contrast", "guidance_rescale", "guidance_interval")
            idle = [name for name in guided if getattr(self, name)]
            if idle:
                raise UserError(f"plan.{idle[0]} does nothing at plan.guidance = 1; give more, or leave {idle[0]} out")
        if self.contrast and (self.negative_prompt or len(self.prompts) < 2):
            raise UserError(
                "plan.contrast takes the other classes' prompts: leave negative_prompt empty, name two classes"
            )
        gaps = {gap for each in self.prompts.values() for template in each for gap in templates.gaps(template)}
        unknown = sorted((gaps | set(templates.gaps(self.negative_prompt))) - {LABEL, *self.words})
        if unknown and not self.match:
            known = ", ".join(f"{{{gap}}}" for gap in (LABEL, *self.words))
            raise UserError(f"plan.prompts: nothing fills {{{unknown[0]}}}; there are {known}; plan.match knows more")
        for gap, weights in self.words.items():
            if not isinstance(weights, Mapping) or not all(type(each) in (int, float) for each in weights.values()):
                raise UserError(f"plan.words.{gap} = {weights!r}: give each word a weight, such as {{'large': 2}}")
            if gap in TAKEN:
                raise UserError(f"plan.words.{gap}: this name is taken; call the gap something else")
            if gap not in gaps:
                raise UserError(f"plan.words.{gap}: no prompt has {{{gap}}}; put it in one, or leave its words out")
            bad = [word for word, weight in weights.items() if not 0 <= weight < inf]
            if bad:
                raise UserError(f"plan.words.{gap}.{bad[0]} = {weights[bad[0]]}: a weight is 0 or more")
            if not sum(weights.values()):
                raise UserError(f"plan.words.{gap}: no word has a weight above 0")
        for name, quota in self.quotas.items():
            self._check_quota(f"plan.quotas.{name}", quota)
        for label, count in self.counts.items():
            reserved = sum(quota.images for quota in self._reserved(label))
            if reserved > count:
                raise UserError(
                    f"plan.quotas ask for {reserved} images of {label}, the plan has {count}; make it larger"
                )

    def _check_quota(self, key: str, quota: Mapping[str, str | int]) -> None:
        if not isinstance(quota, Mapping) or type(quota.get(IMAGES)) is not int or quota[IMAGES] < 0:
            raise UserError(f"{key}.images: say how many, such as 100")
        if LABEL in quota and quota[LABEL] not in self.prompts:
            raise UserError(f"{key}.label = {quota[LABEL]!r}: the classes are {', '.join(self.prompts)}")
        for gap in sorted(set(quota) - {LABEL, IMAGES}):
            if gap not in self.words:
                raise UserError(f"{key}.{gap} = {quota[gap]!r}: plan.words has no such gap")
            if quota[gap] not in self.words[gap]:
                raise UserError(f"{key}.{gap} = {quota[gap]!r}: plan.words.{gap} has {', '.join(self.words[gap])}")

    def _reserved(self, label: str) -> list[Quota]:
        """Returns the quotas that a label's images must meet."""
        return [
            Quota({gap: word for gap, word in quota.items() if gap not in (LABEL, IMAGES)}, quota[IMAGES])
            for quota in self.quotas.values()
            if quota.get(LABEL, label) == label
        ]

    def _alike(self) -> dict[str, list[Record]]:
        """Returns the training images of `match` for each label in a shuffled order, {} for "" that matches none."""
        if not self.match:
            return {}
        manifest, alike = records.read(Path(self.match)), {}
        for label in self.prompts:
            alike[label] = in_turns(manifest, label)  # as init images do, so that a prompt is of the one it begins at
            if not alike[label]:
                raise UserError(f"plan.match {self.match}: no training image is labelled {label!r}, as the plan asks")
        return alike


def _are_texts(prompts: object) -> bool:
    """Returns whether these are several prompts, and not one text, whose letters would be taken for prompts."""
    return isinstance(prompts, list | tuple) and all(isinstance(each, str) for each in prompts)


def table(requests: Sequence[Request], size: int, batch: int, devices: int) -> str:
    """Returns what a plan makes: a column a class, a row a sampler and a word, then examples of prompts."""
    first, labels = requests[0], sorted({request.label for request in requests})

    def row(title: str, chosen: Sequence[Request]) -> tuple[str, ...]:
        counts = Counter(request.label for request in chosen)
        return (title, *(str(counts[label]) for label in labels), str(len(chosen)))

    rows = [("", *labels, "all"), row("images", requests)]
    for sampler in sorted({request.sampler for request in requests}):
        rows.append(row(sampler, [request for request in requests if request.sampler == sampler]))
    for gap in sorted({gap for request in requests for gap, _ in request.words}):
        by_word: dict[str, list[Request]] = {}
        for request in requests:
            by_word.setdefault(dict(request.words).get(gap, ""), []).append(request)
        for word in sorted(by_word, key=lambda word: (-len(by_word[word]), word)):
            rows.append(row(f"{gap} {word or '(none)'}", by_word[word]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
               for row in rows]  # fmt: skip
    settings = (
        f"{size} px, {first.steps} steps, guidance {first.guidance:g}, seeds from {min(r.seed for r in requests)}"
    )
    shared = f"batches of {batch} on {devices} device{'s' if devices > 1 else ''} of this process"
    examples = []
    for label in labels:
        pairs = dict.fromkeys((request.prompt, request.negative) for request in requests if request.label == label)
        for prompt, negative in list(pairs)[:EXAMPLES]:
            examples.append(f"{label}: {prompt}" + (f"   not: {negative}" if negative else ""))
        if len(pairs) > EXAMPLES:
            examples.append(f"{label}: and {len(pairs) - EXAMPLES} more prompts")
    return "\n".join([f"{settings}, {shared}", *aligned, *examples])


def assign(choices: Choices, quotas: Sequence[Quota], count: int) -> list[dict[str, str]]:
    """Returns the word of every gap for each of `count` images.

    The share of a word is its weight over those of its gap, that of several words the product of theirs. Image by image
    and gap by gap the word is taken that is furthest behind its shares: alone, in pairs and all at once. So after any
    number of images each word and each pair have had theirs to within a few images. The images of the quotas come
    first; the rest make the shares of all right again, as far as they can. Nothing is drawn at random.
    """
    shares = {
        gap: {word: weight / sum(weights.values()) for word, weight in weights.items() if weight}
        for gap, weights in choices.items()
    }
    reserved = [quota.words for quota in quotas for _ in range(quota.images)]
    counts: Counter = Counter()
    assigned = []
    for n in range(count):
        fixed = reserved[n] if n < len(reserved) else {}
        words: dict[str, str] = {}
        for gap, share in shares.items():
            behind = {word: _behind(counts, shares, words, gap, word, n) for word in share}
            words[gap] = fixed[gap] if gap in fixed else max(behind, key=behind.__getitem__)  # the first of equals
        gaps = list(words.items())
        counts.update(gaps)
        counts.update((*first, *second) for place, second in enumerate(gaps) for first in gaps[:place])
        counts.update(tuple(gaps[:place]) for place in range(1, len(gaps) + 1))
        assigned.append(words)
    return assigned


def _behind(counts: Counter, shares: Choices, words: Mapping[str, str], gap: str, word: str, n: int) -> float:
    """Returns how many images a word is behind its shares: alone, beside each word of image n, and beside all."""
    share = shares[gap][word]
    others = {gap_: shares[gap_].get(word_, 0) for gap_, word_ in words.items()}  # a quota's word may have no share
    alone = share * (n + 1) - counts[gap, word]
    beside = sum(others[other] * share * (n + 1) - counts[other, words[other], gap, word] for other in words)
    beside_all = prod(others.values()) * share * (n + 1) - counts[(*words.items(), (gap, word))]
    return round(alone + beside + beside_all, 9)  # equals are equal in spite of rounding
