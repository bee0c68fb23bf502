"""What an image file says of its own origin: the text that `generate` and `transform` write into every PNG."""

import json
from pathlib import Path

from PIL import Image

KEY = "dermjax"  # of the text


def read(path: Path) -> dict | None:
    """The generation that a whole image file of ours carries; None for what is absent, damaged or not ours."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()  # the checksum of every chunk
        with Image.open(path, formats=["PNG"]) as image:
            told = json.loads(image.text[KEY])
            return told if isinstance(told, dict) else None
    except (OSError, SyntaxError, ValueError, KeyError):  # what Pillow and json raise at damage and absence
        return None
