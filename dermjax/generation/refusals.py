"""What a plan cannot ask for: a UserError of one line that names the key."""

from collections.abc import Mapping, Sequence
from math import inf

from dermjax.config_file import LARGEST_SEED
from dermjax.data import templates
from dermjax.diffusion.samplers import named
from dermjax.errors import UserError
from dermjax.generation.wording import LABEL

TAKEN = (LABEL, "prompt", "sampler", "images")  # names that are no gap's


def images(
    prompts: Mapping[str, Sequence[str]],
    samplers: Sequence[str],
    counts: Mapping[str, int],
    images_of: Mapping[str, int],
    seed: int,
) -> None:
    """Refuses a plan that asks for no images that could be named and told apart."""
    wordless = [label for label, each in prompts.items() if isinstance(each, str) or not each]
    folders = [label for label in prompts if not label or "/" in label or label.startswith(".")]
    strangers = sorted(set(images_of) - set(prompts))
    if not prompts or not samplers or min(counts.values()) < 0 or not sum(counts.values()):
        raise UserError("plan asks for nothing: give prompts, samplers and images_per_class of at least 1")
    if wordless:
        raise UserError(f"plan.prompts.{wordless[0]}: not a list of prompts; give at least one")
    if folders:
        raise UserError(f"plan.prompts: label {folders[0]!r} cannot name a folder; give another")
    if strangers:
        raise UserError(f"plan.images_of.{strangers[0]}: plan.prompts has no such class, only {', '.join(prompts)}")
    last = seed + max(counts.values()) * len(prompts) - 1
    if seed < 0 or last > LARGEST_SEED:
        raise UserError(f"plan.seed = {seed}: the seeds run to {last}; they must lie within 0 and {LARGEST_SEED}")


def words(
    prompts: Mapping[str, Sequence[str]],
    negative_prompt: str,
    contrast: bool,
    choices: Mapping[str, Mapping[str, float]],
    quotas: Mapping[str, Mapping[str, str | int]],
    counts: Mapping[str, int],
    matched: bool,
) -> None:
    """Refuses gaps that nothing fills, words that nothing asks for, and quotas that cannot be met."""
    if contrast and (negative_prompt or len(prompts) < 2):
        raise UserError("plan.contrast takes the other classes' prompts: leave negative_prompt empty, name two classes")
    said = {gap for each in prompts.values() for template in each for gap in templates.gaps(template)} - {LABEL}
    unknown = sorted((said | set(templates.gaps(negative_prompt)) - {LABEL}) - set(choices))
    if unknown and not matched:
        known = ", ".join(f"{{{gap}}}" for gap in (LABEL, *choices))
        raise UserError(f"plan.prompts: nothing fills {{{unknown[0]}}}; there are {known}; plan.match knows more")
    for gap, weights in choices.items():
        if gap in TAKEN:
            raise UserError(f"plan.words.{gap}: this name is taken; call the gap something else")
        if gap not in said:
            raise UserError(f"plan.words.{gap}: no prompt has {{{gap}}}; put it in one, or leave its words out")
        bad = [word for word, weight in weights.items() if not 0 <= weight < inf]
        if bad:
            raise UserError(f"plan.words.{gap}.{bad[0]} = {weights[bad[0]]}: a weight is 0 or more")
        if not sum(weights.values()):
            raise UserError(f"plan.words.{gap}: no word has a weight above 0")
    for name, quota in quotas.items():
        _quota(name, quota, choices, counts)
    for label, count in counts.items():
        asked = sum(quota["images"] for quota in quotas.values() if quota.get(LABEL, label) == label)
        if asked > count:
            raise UserError(f"plan.quotas ask for {asked} images of {label}, the plan has {count}; make it larger")


def _quota(
    name: str,
    quota: Mapping[str, str | int],
    choices: Mapping[str, Mapping[str, float]],
    counts: Mapping[str, int],
) -> None:
    if not isinstance(quota.get("images"), int) or quota["images"] < 0:
        raise UserError(f"plan.quotas.{name}.images: say how many, such as 100")
    if quota.get(LABEL, next(iter(counts))) not in counts:
        raise UserError(f"plan.quotas.{name}.label = {quota[LABEL]!r}: the classes are {', '.join(counts)}")
    for gap in sorted(set(quota) - {LABEL, "images"}):
        if quota[gap] not in choices.get(gap, {}):
            there = (
                f"plan.words.{gap} has {', '.join(choices[gap])}" if gap in choices else "plan.words has no such gap"
            )
            raise UserError(f"plan.quotas.{name}.{gap} = {quota[gap]!r}: {there}")


def settings(
    names: Sequence[str],
    steps: int,
    spacing: str,
    guidance: float,
    rescale: float,
    interval: Sequence[float],
    deep_cache: int,
) -> None:
    """Refuses settings that no sampler can work with."""
    for name in names:
        named(name).check(spacing)
    if steps < 1:
        raise UserError(f"plan.steps = {steps}: a sampler takes at least 1 step")
    if not 1 <= guidance < inf:
        raise UserError(f"plan.guidance = {guidance}: give 1 (none) or more")
    if not 0 <= rescale <= 1:
        raise UserError(f"plan.guidance_rescale = {rescale}: give 0 (none) to 1")
    if interval and (len(interval) != 2 or not 0 <= interval[0] < interval[1]):
        raise UserError(f"plan.guidance_interval = {tuple(interval)}: give two rising sigmas, or () for everywhere")
    if deep_cache < 1:
        raise UserError(f"plan.deep_cache = {deep_cache}: give 1 (none) or the evaluations that share their depths")
