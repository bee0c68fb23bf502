"""The report of `transform`: how many changes were reached, and the page that shows them, before and after."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dermjax.data import thumbnails
from dermjax.page import fill
from dermjax.transformation.jobs import Job
from dermjax.transformation.measures import Measure

Pictures = Callable[["Outcome"], tuple[np.ndarray, np.ndarray]]  # source and image of an outcome, uint8 [S, S, 3]
TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclass(frozen=True)
class Outcome:
    """A job, what was measured before and after it, whether the change was reached, the attempts it took, and for
    inpainting how like the source the rest is, in decibels."""

    job: Job
    before: Measure
    after: Measure
    met: bool
    attempts: int
    outside: float | None

    def as_json(self) -> dict:
        """Returns the outcome ready for JSON."""
        return {
            "image": self.job.request.image,
            "of": self.job.subject.record.image,
            "asked": self.job.transformation,
            "way": self.job.way,
            "before": asdict(self.before),
            "after": asdict(self.after),
            "area_ratio": round(self.after.area / self.before.area, 4),
            "met": self.met,
            "attempts": self.attempts,
            "decibels_outside": self.outside,
        }


def table(outcomes: list[Outcome]) -> list[dict]:
    """Returns a row for each way and transformation: how many there are and were reached, and medians of the rest.

    "toward" is how many areas changed in the requested direction, None where no direction was requested.
    """
    rows = []
    for way, asked in dict.fromkeys((each.job.way, each.job.transformation) for each in outcomes):
        group = [each for each in outcomes if (each.job.way, each.job.transformation) == (way, asked)]
        tones = [each.after.ita for each in group if each.after.ita is not None]
        outside = [each.outside for each in group if each.outside is not None]
        grown = [each.after.area > each.before.area for each in group if each.after.area > 0]
        rows.append(
            {
                "way": way.replace("_", " "),
                "asked": asked,
                "n": len(group),
                "at_once": sum(each.met and each.attempts == 1 for each in group),
                "met": sum(each.met for each in group),
                "toward": grown.count(asked == "larger") if asked in ("larger", "smaller") else None,
                "ratio": float(np.median([each.after.area / each.before.area for each in group])),
                "ita": float(np.median(tones)) if tones else None,
                "outside": min(outside) if outside else None,
            }
        )
    return rows


def lines(outcomes: list[Outcome]) -> list[str]:
    """Returns the table in words, a line a row."""
    return [
        f"{row['way']:15}{row['asked']:18}{row['met']} of {row['n']} reached, {row['at_once']} at once; area x "
        f"{row['ratio']:.2f}"
        + (f", in its direction {row['toward']} of {row['n']}" if row["toward"] is not None else "")
        + (f"; {row['outside']:.1f} dB outside at least" if row["outside"] is not None else "")
        for row in table(outcomes)
    ]


def page(outcomes: list[Outcome], gallery: int, pictures: Pictures) -> str:
    """Returns the HTML page, which loads nothing from outside: the table, and up to `gallery` pairs of each row."""
    groups: dict[str, list[Outcome]] = {}
    for each in outcomes:
        groups.setdefault(f"{each.job.transformation}, by {each.job.way.replace('_', ' ')}", []).append(each)
    pairs = {
        name: [_pair(each, *pictures(each)) for each in thumbnails.evenly_spaced(group, gallery)]
        for name, group in groups.items()
    }
    counts = {name: len(group) for name, group in groups.items()}
    return fill(TEMPLATE, {}, rows=table(outcomes), pairs=pairs, counts=counts)


def _pair(outcome: Outcome, before: np.ndarray, after: np.ndarray) -> dict:
    return {
        "before": _thumbnail(before, outcome.job.subject.record.synthetic),
        "after": _thumbnail(after, True),
        "words": f"{_in_words(outcome.before)} → {_in_words(outcome.after)}",
        "met": outcome.met,
    }


def _thumbnail(pixels: np.ndarray, synthetic: bool) -> str:
    image = Image.fromarray(pixels).resize((thumbnails.SIDE, thumbnails.SIDE), Image.Resampling.LANCZOS)
    if synthetic:
        thumbnails.mark_synthetic(image)
    return thumbnails.data_uri(image)


def _in_words(measure: Measure) -> str:
    ita = f", {measure.ita:.0f}°" if measure.ita is not None else ""
    return f"{measure.count} × {measure.area / max(measure.count, 1):.1%}{ita}"
