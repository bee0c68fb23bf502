"""The table of samplers: their names, how each lays its ladder, its order, its cost and its paper.

The formulas are in `one_step`, `two_stage` and `multistep`, all on the contract `sample(denoise, x, ladder, keys)`.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax

from dermjax.diffusion import ladders
from dermjax.diffusion.denoiser import Denoiser
from dermjax.diffusion.ladders import BENDS, Ladder, Layout
from dermjax.diffusion.multistep import deis, dpmpp_2m, lms, plms, unipc
from dermjax.diffusion.one_step import ancestral, euler, lcm
from dermjax.diffusion.two_stage import dpm2, dpmpp_2s, dpmpp_2s_ancestral, dpmpp_sde, heun
from dermjax.errors import UserError

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A row of the table.

    name is A1111's; aliases are the names of diffusers (its class) and k-diffusion. order: of the formula, without its
    noise. evaluations: of the network in N steps, (a, b) for a N + b. spacing: what the name asked for, "" for nothing.
    """

    name: str
    sample: Callable[[Denoiser, Array, Ladder, Array], Array]
    layout: Layout
    order: int
    noisy: bool
    paper: str
    aliases: tuple[str, ...]
    evaluations: tuple[int, int] = (1, 0)
    spacing: str = ""

    def check(self, spacing: str) -> None:
        """Raises UserError for a spacing that this sampler cannot walk."""
        ladders.check(self.layout, spacing)

    def ladder(self, scheduler: dict, steps: int, spacing: str) -> Ladder:
        """Returns the ladder of this sampler for a model's scheduler; "" is the spacing of its name or of the model.

        Steps out of range and a spacing that it cannot walk are a UserError.
        """
        return ladders.ladder(self.layout, scheduler, steps, spacing or self.spacing)

    def count(self, steps: int) -> int:
        """Returns how often the network is evaluated in a number of steps."""
        a_step, more = self.evaluations
        return a_step * steps + more


def named(name: str) -> Sampler:
    """Returns the sampler of a name or alias, written in any case, "Karras" or "Exponential" after it for its ladder.

    An unknown one is a UserError with the nearest names.
    """
    plain, bend = _key(name), ""
    for suffix in BENDS:
        if plain.endswith(suffix):
            plain, bend = plain.removesuffix(suffix), suffix
    known = {_key(each): sampler for sampler in SAMPLERS.values() for each in (sampler.name, *sampler.aliases)}
    if plain not in known:
        near = [known[key].name for key in difflib.get_close_matches(plain, known, n=5, cutoff=0.5)] or list(SAMPLERS)
        raise UserError(f"sampler {name!r} is not known; did you mean one of: {', '.join(dict.fromkeys(near))}?")
    sampler = known[plain]
    if not bend:
        return sampler
    if not sampler.layout.bends:
        raise UserError(f"sampler {name!r}: {sampler.name} walks whole training times and has no {bend} ladder")
    return replace(sampler, name=f"{sampler.name} {bend.capitalize()}", spacing=bend)


def _key(name: str) -> str:
    """Returns a name without what people write in different ways: case, blanks, "Scheduler", ++ for pp."""
    return re.sub(r"[\s_()-]", "", name.lower()).removesuffix("scheduler").replace("++", "pp")


IN_SIGMA = Layout(spacing="linspace")  # k-diffusion's: written in sigma, at any time
IN_SIGMA_ENDING = Layout(spacing="linspace", ending="final_sigmas_type")
SOLVER = Layout(spacing="linspace", whole=True, spare=True, ending="final_sigmas_type")  # those of DPM-Solver's authors
WHOLE = Layout(spacing="leading", whole=True, bends=False)  # written in alpha_bar

SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        Sampler(
            name="Euler",
            sample=euler,
            layout=IN_SIGMA_ENDING,
            order=1,
            noisy=False,
            paper="Karras et al. 2022, arXiv 2206.00364",
            aliases=("EulerDiscreteScheduler", "k_euler"),
        ),
        Sampler(
            name="Euler a",
            sample=partial(ancestral, eta=1.0),
            layout=IN_SIGMA,
            order=1,
            noisy=True,
            paper="Ho et al. 2020, arXiv 2006.11239, in k-diffusion's form",
            aliases=("EulerAncestralDiscreteScheduler", "euler_ancestral", "k_euler_a"),
        ),
        Sampler(
            name="Heun",
            sample=heun,
            layout=IN_SIGMA,
            order=2,
            noisy=False,
            paper="Karras et al. 2022, arXiv 2206.00364",
            aliases=("HeunDiscreteScheduler", "k_heun"),
            evaluations=(2, -1),
        ),
        Sampler(
            name="LMS",
            sample=lms,
            layout=IN_SIGMA,
            order=4,
            noisy=False,
            paper="Adams and Bashforth 1883, in k-diffusion's form",
            aliases=("LMSDiscreteScheduler", "k_lms"),
        ),
        Sampler(
            name="PLMS",
            sample=plms,
            layout=replace(WHOLE, to_zero=False, ending="set_alpha_to_one"),
            order=4,
            noisy=False,
            paper="Liu et al. 2022, arXiv 2202.09778",
            aliases=("PNDMScheduler",),
            evaluations=(1, 1),
        ),
        Sampler(
            name="DDIM",
            sample=euler,
            layout=replace(WHOLE, ending="set_alpha_to_one"),
            order=1,
            noisy=False,
            paper="Song et al. 2020, arXiv 2010.02502",
            aliases=("DDIMScheduler",),
        ),
        Sampler(
            name="DDPM",
            sample=partial(ancestral, eta=1.0),
            layout=WHOLE,
            order=1,
            noisy=True,
            paper="Ho et al. 2020, arXiv 2006.11239",
            aliases=("DDPMScheduler",),
        ),
        Sampler(
            name="DPM2",
            sample=partial(dpm2, eta=0.0),
            layout=IN_SIGMA,
            order=2,
            noisy=False,
            paper="Lu et al. 2022, arXiv 2206.00927",
            aliases=("KDPM2DiscreteScheduler", "dpm_2", "k_dpm_2"),
            evaluations=(2, -1),
        ),
        Sampler(
            name="DPM2 a",
            sample=partial(dpm2, eta=1.0),
            layout=IN_SIGMA,
            order=2,
            noisy=True,
            paper="Lu et al. 2022, arXiv 2206.00927, in k-diffusion's form",
            aliases=("KDPM2AncestralDiscreteScheduler", "dpm_2_ancestral", "k_dpm_2_a"),
            evaluations=(2, -1),
        ),
        Sampler(
            name="DPM++ 2S",
            sample=dpmpp_2s,
            layout=replace(SOLVER, fixed=True),
            order=2,
            noisy=False,
            paper="Lu et al. 2022, arXiv 2211.01095",
            aliases=("DPMSolverSinglestepScheduler",),
        ),
        Sampler(
            name="DPM++ 2S a",
            sample=dpmpp_2s_ancestral,
            layout=IN_SIGMA,
            order=2,
            noisy=True,
            paper="Lu et al. 2022, arXiv 2211.01095, in k-diffusion's form",
            aliases=("dpmpp_2s_ancestral", "k_dpmpp_2s_a"),
            evaluations=(2, -1),
        ),
        Sampler(
            name="DPM++ 2M",
            sample=partial(dpmpp_2m, eta=0.0),
            layout=SOLVER,
            order=2,
            noisy=False,
            paper="Lu et al. 2022, arXiv 2211.01095",
            aliases=("DPMSolverMultistepScheduler", "k_dpmpp_2m"),
        ),
        Sampler(
            name="DPM++ 2M SDE",
            sample=partial(dpmpp_2m, eta=1.0),
            layout=SOLVER,
            order=2,
            noisy=True,
            paper="Lu et al. 2022, arXiv 2211.01095",
            aliases=("k_dpmpp_2m_sde",),
        ),
        Sampler(
            name="DPM++ SDE",
            sample=dpmpp_sde,
            layout=IN_SIGMA,
            order=2,
            noisy=True,
            paper="Lu et al. 2022, arXiv 2211.01095, in k-diffusion's form",
            aliases=("DPMSolverSDEScheduler", "k_dpmpp_sde"),
            evaluations=(2, -1),
        ),
        Sampler(
            name="UniPC",
            sample=unipc,
            layout=SOLVER,
            order=3,
            noisy=False,
            paper="Zhao et al. 2023, arXiv 2302.04867",
            aliases=("UniPCMultistepScheduler", "uni_pc"),
        ),
        Sampler(
            name="DEIS",
            sample=deis,
            layout=replace(SOLVER, to_zero=False, ending=""),
            order=2,
            noisy=False,
            paper="Zhang and Chen 2022, arXiv 2204.13902",
            aliases=("DEISMultistepScheduler",),
        ),
        Sampler(
            name="LCM",
            sample=lcm,
            layout=Layout(spacing="distilled", fixed=True, whole=True, bends=False),
            order=1,
            noisy=True,
            paper="Luo et al. 2023, arXiv 2310.04378",
            aliases=("LCMScheduler",),
        ),
    )
}


def show() -> None:
    """Prints the table of samplers (`dermjax samplers`)."""
    header = ("sampler", "order", "evaluations", "noise", "also called", "paper")
    rows = [
        (s.name, str(s.order), _counted(*s.evaluations), "yes" if s.noisy else "no", ", ".join(s.aliases), s.paper)
        for s in SAMPLERS.values()
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nN is the number of steps. Add Karras or Exponential to a name for that ladder, as in DPM++ 2M Karras;")
    print(f"{', '.join(s.name for s in SAMPLERS.values() if not s.layout.bends)} have none.")


def _counted(a_step: int, more: int) -> str:
    return f"{a_step if a_step > 1 else ''}N{f' {more:+d}'.replace('+', '+ ').replace('-', '- ') if more else ''}"
