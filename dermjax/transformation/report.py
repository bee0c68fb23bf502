"""What came of transformations: the table of how many were reached, and the page that shows them, before and after."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dermjax.data import thumbnails
from dermjax.page import fill
from dermjax.transformation.jobs import Job
from dermjax.transformation.measures import Measure

TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclass(frozen=True)
class Outcome:
    """A job's image uint8 [S, S, 3], what was measured before and after, whether the change was reached, the attempts
    it took, and for inpainting how like the source the rest is, in decibels."""

    job: Job
    pixels: np.ndarray
    before: Measure
    after: Measure
    met: bool
    attempts: int
    outside: float | None

    def told(self) -> dict:
        """The outcome ready for JSON."""
        return {
            "image": self.job.request.image,
            "of": self.job.subject.record.image,
            "asked": self.job.asked,
            "way": self.job.way,
            "before": self.before.told(),
            "after": self.after.told(),
            "area_ratio": round(self.after.area / self.before.area, 4),
            "met": self.met,
            "attempts": self.attempts,
            "decibels_outside": self.outside,
        }


def table(found: list[Outcome]) -> list[dict]:
    """A row for each way and wish: how many there are and were reached, median ratio and ITA, least decibels."""
    rows = []
    for way, asked in dict.fromkeys((each.job.way, each.job.asked) for each in found):
        group = [each for each in found if (each.job.way, each.job.asked) == (way, asked)]
        tones = [each.after.ita for each in group if each.after.ita is not None]
        outside = [each.outside for each in group if each.outside is not None]
        rows.append(
            {
                "way": way.replace("_", " "),
                "asked": asked,
                "n": len(group),
                "at_once": sum(each.met and each.attempts == 1 for each in group),
                "met": sum(each.met for each in group),
                "toward": _toward(asked, group),
                "ratio": float(np.median([each.after.area / each.before.area for each in group])),
                "ita": float(np.median(tones)) if tones else None,
                "outside": min(outside) if outside else None,
            }
        )
    return rows


def _toward(asked: str, group: list[Outcome]) -> int | None:
    """How many areas changed in the direction that was asked for, None where no direction was."""
    if asked not in ("larger", "smaller"):
        return None
    return sum(each.after.area > 0 and (each.after.area > each.before.area) == (asked == "larger") for each in group)


def lines(found: list[Outcome]) -> list[str]:
    """The table in words, a line a row."""
    return [
        f"{row['way']:15}{row['asked']:18}{row['met']} of {row['n']} reached, {row['at_once']} at once; area x "
        f"{row['ratio']:.2f}"
        + (f", in its direction {row['toward']} of {row['n']}" if row["toward"] is not None else "")
        + (f"; {row['outside']:.1f} dB outside at least" if row["outside"] is not None else "")
        for row in table(found)
    ]


def page(found: list[Outcome], gallery: int) -> str:
    """The HTML of the page, which loads nothing from outside: the table, and up to `gallery` pairs of each row."""
    groups = {}
    for each in found:
        groups.setdefault(f"{each.job.asked}, by {each.job.way.replace('_', ' ')}", []).append(each)
    pairs = {name: [_pair(each) for each in thumbnails.evenly_spaced(group, gallery)] for name, group in groups.items()}
    return fill(TEMPLATE, {}, rows=table(found), pairs=pairs, counts={name: len(g) for name, g in groups.items()})


def _pair(outcome: Outcome) -> dict:
    return {
        "before": _picture(outcome.job.subject.pixels, outcome.job.subject.record.synthetic),
        "after": _picture(outcome.pixels, True),
        "words": f"{_words(outcome.before)} → {_words(outcome.after)}",
        "met": outcome.met,
    }


def _picture(pixels: np.ndarray, synthetic: bool) -> str:
    image = Image.fromarray(pixels).resize((thumbnails.SIDE, thumbnails.SIDE), Image.Resampling.LANCZOS)
    if synthetic:
        thumbnails.mark_synthetic(image)
    return thumbnails.data_uri(image)


def _words(measure: Measure) -> str:
    ita = f", {measure.ita:.0f}°" if measure.ita is not None else ""
    return f"{measure.count} × {measure.area / max(measure.count, 1):.1%}{ita}"
