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
from dermjax.diffusion.denoiser import Denoiser, bound
from dermjax.diffusion.ladders import BENDS, Ladder, Layout
from dermjax.diffusion.multistep import deis, dpmpp_2m, lms, plms, unipc
from dermjax.diffusion.one_step import ancestral, ddim, euler, lcm
from dermjax.diffusion.two_stage import dpm2, dpmpp_2s, dpmpp_2s_ancestral, dpmpp_sde, heun
from dermjax.errors import UserError

Array = jax.Array


@dataclass(frozen=True)
class Sampler:
    """A row of the table.

    name is A1111's; aliases are the names of diffusers (its class) and k-diffusion. order: of the formula, without its
    noise. evaluations: of the network in N steps, (a, b) for a N + b. bounds: the options of a scheduler file that hold
    denoised latents within bounds and that diffusers' class knows. spacing: what the name asked for, "" for nothing.
    """

    name: str
    sample: Callable[[Denoiser, Array, Ladder, Array], Array]
    layout: Layout
    order: int
    evaluations: tuple[int, int]
    noisy: bool
    paper: str
    aliases: tuple[str, ...]
    bounds: tuple[str, ...] = ()
    spacing: str = ""

    def check(self, spacing: str) -> None:
        """Raises UserError for a spacing that this sampler cannot walk."""
        ladders.check(self.layout, spacing)

    def ladder(self, scheduler: dict, steps: int, spacing: str) -> Ladder:
        """Returns the ladder of this sampler for a model's scheduler; "" is the spacing of its name or of the model.

        Steps out of range and a spacing that it cannot walk are a UserError.
        """
        return ladders.ladder(self.layout, scheduler, steps, spacing or self.spacing)

    def bounded(self, denoise: Denoiser, scheduler: dict) -> Denoiser:
        """Returns the denoiser with its latents held as a model's scheduler asks, where this sampler knows how."""
        return replace(denoise, bound=bound(scheduler, self.bounds))

    def unheeded(self, scheduler: dict) -> list[str]:
        """Returns what to say of a scheduler file's bounds that this sampler does not know."""
        asked = [option for option in BOUNDS if scheduler.get(option) and option not in self.bounds]
        return [
            f"warning: the model's scheduler_config.json asks for {option}, which {self.name} does not know; it is "
            "left out, as in diffusers"
            for option in asked
        ]

    def count(self, steps: int) -> int:
        """Returns how often the network is evaluated in a number of steps."""
        a_step, more = self.evaluations
        return a_step * steps + more


def named(name: str) -> Sampler:
    """Returns the sampler of a name or alias, written in any case.

    After it "eta 0.4" sets the share of fresh noise, and "Karras" or "Exponential" the ladder. An unknown name is a
    UserError with the nearest ones.
    """
    plain, eta, bend = WRITTEN.fullmatch(_key(name)).groups()
    known = {_key(each): sampler for sampler in SAMPLERS.values() for each in (sampler.name, *sampler.aliases)}
    if plain not in known:
        near = [known[key].name for key in difflib.get_close_matches(plain, known, n=5, cutoff=0.5)] or list(SAMPLERS)
        raise UserError(f"sampler {name!r} is not known; did you mean one of: {', '.join(dict.fromkeys(near))}?")
    sampler = known[plain]
    if eta:
        sampler = _renewing(sampler, float(eta), name)
    if not bend:
        return sampler
    if not sampler.layout.bends:
        raise UserError(f"sampler {name!r}: {sampler.name} walks whole training times and has no {bend} ladder")
    return replace(sampler, name=f"{sampler.name} {bend.capitalize()}", spacing=bend)


def _renewing(sampler: Sampler, eta: float, name: str) -> Sampler:
    """Returns a sampler with another share of fresh noise."""
    formula = getattr(sampler.sample, "func", None)
    if formula not in WITH_ETA:
        others = ", ".join(s.name for s in SAMPLERS.values() if getattr(s.sample, "func", None) in WITH_ETA)
        raise UserError(f"sampler {name!r}: {sampler.name} has no eta; {others} have")
    if eta > 1:
        raise UserError(f"sampler {name!r}: give an eta from 0, no fresh noise, to 1")
    return replace(sampler, name=f"{sampler.name} eta {eta:g}", sample=partial(formula, eta=eta), noisy=eta > 0)


def _key(name: str) -> str:
    """Returns a name without what people write in different ways: case, blanks, "Scheduler", ++ for pp."""
    return re.sub(r"[\s_()-]|scheduler", "", name.lower()).replace("++", "pp")


WRITTEN = re.compile(rf"(.*?)(?:eta(\d*\.?\d+))?({'|'.join(BENDS)})?")  # what `_key` returns, in parts
WITH_ETA = (ancestral, ddim, dpm2)  # the formulas in which eta means what it means in diffusers and k-diffusion

IN_SIGMA = Layout(spacing="linspace")  # k-diffusion's: written in sigma, at any time
ENDING = replace(IN_SIGMA, ending="final_sigmas_type")
SOLVER = replace(ENDING, whole=True, spare=True)  # those of DPM-Solver's authors
WHOLE = Layout(spacing="leading", whole=True, bends=False, endless=True)  # written in alpha_bar
DISTILLED = replace(WHOLE, spacing="distilled", fixed=True)

BOUNDS = ("thresholding", "clip_sample")
THRESHOLD, CLIP = BOUNDS[:1], BOUNDS[1:]
N, TWO_N, N_AND_ONE = (1, 0), (2, -1), (1, 1)  # evaluations
DDPM, DDIM = "Ho et al. 2020, arXiv 2006.11239", "Song et al. 2020, arXiv 2010.02502"
EDM, LMS = "Karras et al. 2022, arXiv 2206.00364", "Adams and Bashforth 1883, in k-diffusion's form"
DPM, DPMPP = "Lu et al. 2022, arXiv 2206.00927", "Lu et al. 2022, arXiv 2211.01095"
PNDM, DEIS = "Liu et al. 2022, arXiv 2202.09778", "Zhang and Chen 2022, arXiv 2204.13902"
UNIPC, LCM = "Zhao et al. 2023, arXiv 2302.04867", "Luo et al. 2023, arXiv 2310.04378"

# name, formula, layout, order, evaluations, noisy, paper, aliases
# fmt: off
TABLE = (
    Sampler("Euler", euler, ENDING, 1, N, False, EDM,
            ("EulerDiscreteScheduler", "k_euler")),
    Sampler("Euler a", partial(ancestral, eta=1.0), IN_SIGMA, 1, N, True, f"{DDPM}, in k-diffusion's form",
            ("EulerAncestralDiscreteScheduler", "euler_ancestral", "k_euler_a")),
    Sampler("Heun", heun, IN_SIGMA, 2, TWO_N, False, EDM,
            ("HeunDiscreteScheduler", "k_heun"), CLIP),
    Sampler("LMS", lms, IN_SIGMA, 4, N, False, LMS,
            ("LMSDiscreteScheduler", "k_lms")),
    Sampler("PLMS", plms, replace(WHOLE, to_zero=False, ending="set_alpha_to_one"), 4, N_AND_ONE, False, PNDM,
            ("PNDMScheduler",)),
    Sampler("DDIM", partial(ddim, eta=0.0), replace(WHOLE, ending="set_alpha_to_one"), 1, N, False, DDIM,
            ("DDIMScheduler",), BOUNDS),
    Sampler("DDPM", partial(ancestral, eta=1.0), WHOLE, 1, N, True, DDPM,
            ("DDPMScheduler",), BOUNDS),
    Sampler("DPM2", partial(dpm2, eta=0.0), IN_SIGMA, 2, TWO_N, False, DPM,
            ("KDPM2DiscreteScheduler", "dpm_2", "k_dpm_2")),
    Sampler("DPM2 a", partial(dpm2, eta=1.0), IN_SIGMA, 2, TWO_N, True, f"{DPM}, in k-diffusion's form",
            ("KDPM2AncestralDiscreteScheduler", "dpm_2_ancestral", "k_dpm_2_a")),
    Sampler("DPM++ 2S", dpmpp_2s, replace(SOLVER, fixed=True), 2, N, False, DPMPP,
            ("DPMSolverSinglestepScheduler",), THRESHOLD),
    Sampler("DPM++ 2S a", dpmpp_2s_ancestral, IN_SIGMA, 2, TWO_N, True, f"{DPMPP}, in k-diffusion's form",
            ("dpmpp_2s_ancestral", "k_dpmpp_2s_a")),
    Sampler("DPM++ 2M", partial(dpmpp_2m, eta=0.0), SOLVER, 2, N, False, DPMPP,
            ("DPMSolverMultistepScheduler", "k_dpmpp_2m"), THRESHOLD),
    Sampler("DPM++ 2M SDE", partial(dpmpp_2m, eta=1.0), SOLVER, 2, N, True, DPMPP,
            ("k_dpmpp_2m_sde",), THRESHOLD),
    Sampler("DPM++ SDE", dpmpp_sde, IN_SIGMA, 2, TWO_N, True, f"{DPMPP}, in k-diffusion's form",
            ("DPMSolverSDEScheduler", "k_dpmpp_sde")),
    Sampler("UniPC", unipc, SOLVER, 3, N, False, UNIPC,
            ("UniPCMultistepScheduler", "uni_pc"), THRESHOLD),
    Sampler("DEIS", deis, replace(SOLVER, to_zero=False, ending=""), 2, N, False, DEIS,
            ("DEISMultistepScheduler",), THRESHOLD),
    Sampler("LCM", lcm, DISTILLED, 1, N, True, LCM,
            ("LCMScheduler",), BOUNDS),
)
# fmt: on
SAMPLERS = {sampler.name: sampler for sampler in TABLE}


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
    print(f"{', '.join(s.name for s in SAMPLERS.values() if not s.layout.bends)} have none. Add eta and a number from")
    print("0 to 1 to DDIM, and to a sampler with an a, for that share of fresh noise, as in DDIM eta 0.4.")


def _counted(a_step: int, more: int) -> str:
    return f"{a_step if a_step > 1 else ''}N{f' {more:+d}'.replace('+', '+ ').replace('-', '- ') if more else ''}"
