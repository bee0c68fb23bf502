"""What a model was tuned for, as the card beside it says: the classes and their prompts."""

import json
import re
from collections.abc import Collection
from pathlib import Path

CARD = "README.md"
CONFIG = re.compile(r"^## Config\n+```json\n(.*?)\n```$", re.DOTALL | re.MULTILINE)  # as `tune` writes it


def tuned_prompts(path: Path) -> dict[str, str] | None:
    """Returns label -> prompt of the tuning that a model folder or a file came from, None where no card says.

    The card is in the folder, or beside the file.
    """
    card = (path if path.is_dir() else path.parent) / CARD
    config = CONFIG.search(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    try:
        prompts = json.loads(config[1])["prompts"] if config else None
    except (ValueError, KeyError):  # a card of somebody else's
        return None
    return prompts if isinstance(prompts, dict) else None


def tuned_warnings(path: Path, labels: Collection[str]) -> list[str]:
    """Returns the warnings for classes that a model, or the LoRA that is merged into one, may not know."""
    tuned = tuned_prompts(path)
    if tuned is None:
        return [
            f"warning: nothing beside {path} says which classes it was tuned for; images of "
            f"{' and '.join(sorted(labels))} may not show their class"
        ]
    return [
        f"warning: {path} was not tuned for the class {label!r}, only for {', '.join(sorted(tuned))}; images of it "
        "may show anything"
        for label in sorted(set(labels) - set(tuned))
    ]
