"""What a model was tuned for, as the card beside it says: the classes and the prompts that it learnt."""

import json
import re
from collections.abc import Collection
from pathlib import Path

CARD = "README.md"
CONFIG = re.compile(r"^## Config\n+```json\n(.*?)\n```$", re.DOTALL | re.MULTILINE)  # as `tune` writes it


def prompts(path: Path) -> dict[str, str] | None:
    """Returns label -> prompt of the tuning that a model folder or a file came from, None where no card tells.

    The card is in the folder, or beside the file.
    """
    card = (path if path.is_dir() else path.parent) / CARD
    found = CONFIG.search(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    try:
        told = json.loads(found[1])["prompts"] if found else None
    except (ValueError, KeyError):  # a card of somebody else's
        return None
    return told if isinstance(told, dict) else None


def warnings(path: Path, asked: Collection[str]) -> list[str]:
    """Returns what to say before a model, or the LoRA that is merged into one, is asked for classes it may not know."""
    taught = prompts(path)
    if taught is None:
        return [
            f"warning: nothing beside {path} says which classes it was tuned for; images of "
            f"{' and '.join(sorted(asked))} may not show their class"
        ]
    return [
        f"warning: {path} was not tuned for the class {label!r}, only for {', '.join(sorted(taught))}; images of it "
        "may show anything"
        for label in sorted(set(asked) - set(taught))
    ]
