"""Which file a table means by what it calls an image: a path, a name, or a stem, spelt as people and systems do.

The first of these that fits counts: as it stands, in another case, without the `_downsampled` that ISIC 2019 appends to
some names and not to the files, or the other way round. Umlauts have two spellings in Unicode, and names out of a zip
from Windows may be in no Unicode at all.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from dermjax.data import digests
from dermjax.data.formats import SUFFIXES
from dermjax.errors import UserError

REDUCED = "_downsampled"
KNOWN = frozenset(SUFFIXES)
WESTERN = ("cp1252", "cp850")


class References:
    """The images below a root, by what a table may call them."""

    def __init__(self, root: Path, images: Iterable[str]):
        self.root = root
        self.folders: dict[Path, str] = {}  # of tables, below the root
        self.levels = tuple(defaultdict(list) for _ in _spellings(""))
        for image in images:
            keys = {key for each in _texts(image) for key in (each, _name(each), _stem(_name(each)))}
            for level, spelt in zip(self.levels, zip(*map(_spellings, keys), strict=True), strict=True):
                for key in dict.fromkeys(spelt):
                    level[key].append(image)

    def find(self, text: str, table: Path) -> list[str]:
        """The images that a table may mean, those of the longest path in common."""
        text = _texts(text)[0].removeprefix("./")
        if not text:
            return []
        if table not in self.folders:
            here = table.parent.relative_to(self.root).as_posix()
            self.folders[table] = "" if here == "." else f"{here}/"
        beside = self.levels[0].get(self.folders[table] + text)
        if beside:
            return beside
        for of, level in zip((lambda key: key, str.casefold, _reduced), self.levels, strict=True):
            for key in dict.fromkeys((text, _name(text), _stem(_name(text)))):
                found = level.get(of(key))
                if found:
                    return [each for each in found if each.endswith(f"/{text}")] or found
        return []

    def one(self, text: str, table: Path, where: str) -> str | None:
        """The one file that a table means, None for none; where there are several of its name, they must be copies."""
        paths = self.find(text, table)
        if len(paths) > 1 and len({digests.of(self.root / path) for path in paths}) > 1:
            raise UserError(f"{where}: {_name(text)} may be {' or '.join(paths)}, which differ; keep one or write its "
                            "path")  # fmt: skip
        return paths[0] if paths else None


def key(text: str) -> str:
    """What is the same of an image in all tables, with or without its suffix."""
    return _reduced(_stem(_name(_texts(text)[0])))


def _spellings(key: str) -> tuple[str, str, str]:
    return key, key.casefold(), _reduced(key)


def _reduced(key: str) -> str:
    return _stem(key).casefold().removesuffix(REDUCED)


def _texts(text: str) -> list[str]:
    """A name with slashes and composed umlauts; where its bytes are no UTF-8, as Windows reads them."""
    if text.isascii():
        return [text.strip().replace("\\", "/")]
    texts = [text]
    if any("\udc80" <= each <= "\udcff" for each in text):
        raw = text.encode("utf-8", "surrogateescape")
        texts += [raw.decode(each, "replace") for each in WESTERN]
    return [unicodedata.normalize("NFC", each.strip().replace("\\", "/")) for each in texts]


def _name(text: str) -> str:
    return text.rstrip("/").rpartition("/")[2]  # a Path would be five times as slow, for each image and row


def _stem(name: str) -> str:
    """A name without the suffix of an image; other dots belong to it."""
    stem, _, suffix = name.rpartition(".")
    return stem if stem and f".{suffix.lower()}" in KNOWN else name
