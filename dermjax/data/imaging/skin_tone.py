"""The tone of the skin in an image: the individual typology angle of the skin around the lesion.

Place in the flow: `prepare` -> `measure` -> Record.attributes -> tables of `evaluate` by tone.

The angle (Chardon et al. 1991) is put into the groups of Del Bino and Bernerd (2013). It is a proxy: cameras and light
are not calibrated, so the record says how it was obtained. It has not been validated on photographs: none here says
what tone the skin has. The angle fails where a camera sees skin too blue, as b* stands under its fraction: of 488
HAM10000 photographs 348 lie beyond what skin can have and are given no tone. The others get the angle with the range
that a slight error of camera and light would give it, 26 degrees wide in the middle, and a group only where all of
that range is in one: 32 of 140 photographs.
"""

import numpy as np

from dermjax.data.imaging.colour import rgb_to_lab, typology_angle
from dermjax.data.imaging.segmentation import Segmentation

SIDE = 128  # pixels; what the thresholds of artefacts and segmentation were measured at
OBTAINED = "individual typology angle of the skin around the segmented lesion, camera not calibrated"
TONES = ((55, "very light"), (41, "light"), (28, "intermediate"), (10, "tan"), (-30, "brown"))  # above so many degrees
DARKEST = "dark"
OFF = 0.05  # share by which a camera's blue, and its light, may be off; assumed, as nobody has measured it here
BEYOND_SKIN = 75.0  # degrees, as of L* 75 and b* 7: what seems lighter is light of another colour, not skin


def measure(segmented: Segmentation) -> dict:
    """The tone of the skin around the lesions of an image, ready for JSON.

    {"ita": degrees, "between": [degrees, degrees], "obtained": OBTAINED}, and its "group" where it is certain; empty
    where no skin is seen, or in colours that skin has not.
    """
    angle = segmented.ita
    if not is_skin(angle):
        return {}
    gains = [(light, light, light * blue) for light in (1 - OFF, 1 + OFF) for blue in (1 - OFF, 1 + OFF)]
    colours = (segmented.skin * np.array(gains)).clip(0, 255).round().astype(np.uint8)
    angles = [angle, *map(typology_angle, rgb_to_lab(colours))]
    low, high = min(angles), max(angles)
    tone = {"ita": round(angle, 1), "between": [round(low, 1), round(high, 1)], "obtained": OBTAINED}
    return tone | ({"group": tone_group(angle)} if tone_group(low) == tone_group(high) else {})


def is_skin(angle: float) -> bool:
    """Whether skin can have an angle: bluer than grey is beyond 90 on either side; NaN, without skin, is nowhere."""
    return -90 < angle <= BEYOND_SKIN


def tone_group(angle: float) -> str:
    """The name of an individual typology angle, in degrees."""
    return next((name for above, name in TONES if angle > above), DARKEST)
