"""What an image says about the patient and about how it was taken, where no table does.

Place in the flow: `prepare` -> `measure` -> Record.attributes and Record.scores -> tables by tone, age and artefact.

Skin tone is the individual typology angle of the skin around the lesion (Chardon et al. 1991), in the groups of Del
Bino and Bernerd (2013). It is a proxy: cameras and light are not calibrated, so the record says how it was obtained.
It has not been validated on photographs: none here says what tone the skin has. The angle fails where a camera sees
skin too blue, as b* stands under its fraction: of 488 HAM10000 photographs 302 lie beyond what skin can have and are
given no tone. The others get the angle with the range that a slight error of camera and light would give it, 26 degrees
wide in the middle, and a group only where all of that range is in one: 15 of 122 photographs.
"""

import numpy as np

from dermjax.data.imaging.artefacts import SCORES
from dermjax.data.imaging.colour import rgb_to_lab, typology_angle
from dermjax.data.imaging.segmentation import segment

SIDE = 128  # pixels; what the thresholds of artefacts and segmentation were measured at
OBTAINED = "individual typology angle of the skin around the segmented lesion, camera not calibrated"
TONES = ((55, "very light"), (41, "light"), (28, "intermediate"), (10, "tan"), (-30, "brown"))  # above so many degrees
DARKEST = "dark"
OFF = 0.05  # share by which a camera's blue, and its light, may be off; assumed, as nobody has measured it here
BEYOND_SKIN = 75.0  # degrees, as of L* 75 and b* 7: what seems lighter is light of another colour, not skin
AGES = (30, 45, 60, 75)  # where a new band begins, in years


def measure(image: np.ndarray) -> tuple[dict, dict[str, float]]:
    """The attributes and the artefact scores (0 to 1) of a uint8 image [SIDE, SIDE, 3], ready for JSON.

    Attributes: {"skin_tone": {"ita": degrees, "between": degrees, "obtained": words}}, and its "group" where it is
    certain; empty where no skin is seen, or in colours that skin has not.
    """
    seen = segment(image)
    angle = seen.ita
    tone = _tone(angle, seen.skin) if np.isfinite(angle) else {}
    scores = {name: score(image) for name, score in SCORES.items()}
    told = {"skin_tone": tone} if -90 < angle <= BEYOND_SKIN else {}  # bluer than grey is beyond 90 on either side
    return told, {name: round(each, 4) for name, each in scores.items()}


def _tone(angle: float, skin: np.ndarray) -> dict:
    """What is told of an angle in degrees of skin of a median colour [3], sRGB 0 to 255."""
    gains = [(light, light, light * blue) for light in (1 - OFF, 1 + OFF) for blue in (1 - OFF, 1 + OFF)]
    colours = (skin * np.array(gains)).clip(0, 255).round().astype(np.uint8)
    angles = [angle, *map(typology_angle, rgb_to_lab(colours))]
    low, high = min(angles), max(angles)
    told = {"ita": round(angle, 1), "between": [round(low, 1), round(high, 1)], "obtained": OBTAINED}
    return told | ({"group": tone_group(angle)} if tone_group(low) == tone_group(high) else {})


def tone_group(angle: float) -> str:
    """The name of an individual typology angle, in degrees."""
    return next((name for above, name in TONES if angle > above), DARKEST)


def age_band(years: float) -> str:
    """The band of an age, such as "45-59"."""
    starts = [0, *AGES]
    place = int(np.searchsorted(AGES, years, side="right"))
    return f"{starts[place]}-{AGES[place] - 1}" if place < len(AGES) else f"{AGES[-1]}+"
