"""What a sampler can be asked for: the settings of a sampler, a request for one image, and batches of requests."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import inf

import numpy as np

from dermjax.diffusion import samplers
from dermjax.diffusion.denoiser import Guidance
from dermjax.errors import UserError

LONGEST_NAME = 200  # bytes of a folder's name; file systems have 255


@dataclass(frozen=True, kw_only=True, order=True)
class SamplerSettings:
    """How an image is sampled; images of equal settings and equally many tokens are made by one compiled function.

    spacing "" is the sampler's and the model's own. guidance 1 is none, guidance_rescale 0 too; guidance_interval: two
    rising sigmas, or () for everywhere (see `Guidance`). deep_cache: evaluations that share the UNet's depths, 1 exact.
    """

    sampler: str
    steps: int
    spacing: str = ""
    guidance: float
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, ...] = ()
    deep_cache: int = 1

    @property
    def settings(self) -> "SamplerSettings":
        """These settings alone, which requests are grouped by."""
        return SamplerSettings(**{name: getattr(self, name) for name in SamplerSettings.__dataclass_fields__})

    def check(self, prefix: str) -> None:
        """Raises UserError, with the prefix before an option's name, for what no sampler can work with."""
        samplers.get_sampler(self.sampler).check(self.spacing)
        low_high = self.guidance_interval
        faults = {
            "steps": (self.steps < 1, "a sampler takes at least 1 step"),
            "guidance": (not 1 <= self.guidance < inf, "give 1 (none) or more"),
            "guidance_rescale": (not 0 <= self.guidance_rescale <= 1, "give 0 (none) to 1"),
            "guidance_interval": (
                bool(low_high) and (len(low_high) != 2 or not 0 <= low_high[0] < low_high[1]),
                "give two rising sigmas, or () for everywhere",
            ),
            "deep_cache": (self.deep_cache < 1, "give 1 (none) or the evaluations that share their depths"),
        }
        for name, (wrong, message) in faults.items():
            if wrong:
                raise UserError(f"{prefix}{name} = {getattr(self, name)}: {message}")

    def weights(self) -> Guidance:
        """Returns guidance as the compiled functions take it."""
        return Guidance(
            scale=np.float32(self.guidance),
            rescale=np.float32(self.guidance_rescale) if self.guidance_rescale else None,
            interval=tuple(map(np.float32, self.guidance_interval)) or None,
        )


@dataclass(frozen=True, kw_only=True)
class Request(SamplerSettings):
    """A request for one image; `image` is its path under the stage's folder, `words` (gap, word) of its prompt."""

    image: str
    label: str
    prompt: str
    negative: str
    seed: int
    words: tuple[tuple[str, str], ...] = ()

    def check(self, prefix: str) -> None:
        """As of settings; a negative prompt that nobody would read is a UserError too."""
        super().check(prefix)
        if self.negative and self.guidance == 1:
            name = f"{prefix}negative_prompt"
            raise UserError(f"{name} does nothing at {prefix}guidance = 1; give more, or leave {name} out")


def names_folder(label: str) -> bool:
    """Returns whether a class can name the folder of its images."""
    plain = isinstance(label, str) and bool(label) and label[0] != "." and "/" not in label and label.isprintable()
    return plain and len(label.encode()) <= LONGEST_NAME


def batches(requests: Collection[Request], size: int, kind: Callable[[Request], tuple]) -> list[list[Request]]:
    """Returns the batches, of at most `size` requests that are of one kind: what one compiled function can make.

    How requests are divided follows from the plan alone, never from what is missing or who makes it: a resumed run, and
    one on other devices, computes the same batches as an uninterrupted one.
    """
    groups = [list(group) for _, group in groupby(sorted(requests, key=kind), key=kind)]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def rounds(batches: Sequence[Sequence[Request]], devices: int, kind: Callable[[Request], tuple]) -> list[list]:
    """Returns the batches in order, as many at a time as there are devices, and each time of one kind."""
    groups = [list(group) for _, group in groupby(batches, key=lambda batch: kind(batch[0]))]
    return [group[start : start + devices] for group in groups for start in range(0, len(group), devices)]
