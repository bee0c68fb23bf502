"""What an image says about the patient and about how it was taken, where no table does.

Place in the flow: `prepare` -> `measure` -> Record.attributes and Record.scores -> tables by tone, age and artefact.

Skin tone is the individual typology angle of the skin around the lesion (Chardon et al. 1991), in the groups of Del
Bino and Bernerd (2013). It is a proxy: cameras and light are not calibrated, so the record says how it was obtained.
The angle fails where a camera sees skin too blue, as b* stands under its fraction: of 61 HAM10000 photographs, skin has
a median b* of 4 and in a quarter of them below -2, bluer than grey, where the angle passes 90 degrees. No such picture
is given a tone, and the groups of the others lean to light.
"""

import numpy as np

from dermjax.data.artefact_scores import SCORES
from dermjax.data.segmentation import segment

SIDE = 128  # pixels; what the thresholds of artefacts and segmentation were measured at
OBTAINED = "individual typology angle of the skin around the segmented lesion, camera not calibrated"
TONES = ((55, "very light"), (41, "light"), (28, "intermediate"), (10, "tan"), (-30, "brown"))  # above so many degrees
DARKEST = "dark"
BEYOND_SKIN = 75.0  # degrees, as of L* 75 and b* 7: what seems lighter is light of another colour, not skin
AGES = (30, 45, 60, 75)  # where a new band begins, in years


def measure(image: np.ndarray) -> tuple[dict, dict[str, float]]:
    """The attributes and the artefact scores (0 to 1) of a uint8 image [SIDE, SIDE, 3], ready for JSON.

    Attributes: {"skin_tone": {"ita": degrees, "group": words, "obtained": words}}, empty where no skin is seen, or in
    colours that skin has not.
    """
    angle = segment(image).ita
    tone = {"ita": round(angle, 1), "group": tone_group(angle), "obtained": OBTAINED}
    scores = {name: score(image) for name, score in SCORES.items()}
    told = {"skin_tone": tone} if -90 < angle <= BEYOND_SKIN else {}  # bluer than grey is beyond 90 on either side
    return told, {name: round(each, 4) for name, each in scores.items()}


def tone_group(angle: float) -> str:
    """The name of an individual typology angle, in degrees."""
    return next((name for above, name in TONES if angle > above), DARKEST)


def age_band(years: float) -> str:
    """The band of an age, such as "45-59"."""
    starts = [0, *AGES]
    place = int(np.searchsorted(AGES, years, side="right"))
    return f"{starts[place]}-{AGES[place] - 1}" if place < len(AGES) else f"{AGES[-1]}+"
