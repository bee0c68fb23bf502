"""The description of an exported data set that catalogues and loaders read: Croissant 1.0 (JSON-LD).

It names every file with its digest and, for each split, the table of what is known of every image, column by column.
Croissant: Akhtar et al. 2024, arXiv 2403.19546; docs.mlcommons.org/croissant/docs/croissant-spec.html.
"""

import json
from pathlib import Path

from dermjax.data.digests import sha256
from dermjax.data.export import items
from dermjax.data.export.items import COLUMNS, Item
from dermjax.data.records import Manifest

FILE = "croissant.json"
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "conformsTo": "dct:conformsTo",
} | {
    term: f"cr:{term}"
    for term in (
        "citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet", "format",
        "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references",
        "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform",
    )
}  # fmt: skip
KINDS = {".jsonl": "application/jsonlines", ".json": "application/json", ".tar": "application/x-tar",
         ".txt": "text/plain"}  # fmt: skip
RECORDS = "application/octet-stream"  # array_record has no type of its own


def write(folder: Path, name: str, manifest: Manifest, splits: dict[str, list[Item]]) -> None:
    """Writes FILE into a folder that one of the forms was written to."""
    (folder / FILE).write_text(json.dumps(describe(folder, name, manifest, splits), indent=1) + "\n")


def describe(folder: Path, name: str, manifest: Manifest, splits: dict[str, list[Item]]) -> dict:
    """The description of what lies in a folder, ready for JSON."""
    description, licences = items.describe(manifest)
    images = {item.name for of_split in splits.values() for item in of_split}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in images]
    sets = [_images(split, of_split) for split, of_split in splits.items() if (folder / split).is_dir()]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": description,
        "license": licences or ["unknown"],
        "version": "1.0.0",
        "distribution": [_file(folder, path) for path in files] + sets,
        "recordSet": [_records(folder, split) for split in splits],
    }


def _file(folder: Path, path: Path) -> dict:
    where = path.relative_to(folder).as_posix()
    return {
        "@type": "cr:FileObject",
        "@id": where,
        "name": where,
        "contentUrl": where,
        "encodingFormat": KINDS.get(path.suffix, RECORDS),
        "sha256": sha256(path),
    }


def _images(split: str, of_split: list[Item]) -> dict:
    suffixes = sorted({item.path.suffix.lower() for item in of_split})
    return {
        "@type": "cr:FileSet",
        "@id": f"{split}-images",
        "name": f"{split}-images",
        "encodingFormat": "image/*",
        "includes": [f"{split}/*{suffix}" for suffix in suffixes],
    }


def _records(folder: Path, split: str) -> dict:
    table = f"{split}/metadata.jsonl" if (folder / split).is_dir() else f"{split}.jsonl"
    return {
        "@type": "cr:RecordSet",
        "@id": split,
        "name": split,
        "key": {"@id": f"{split}/file_name"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{split}/{column}",
                "name": f"{split}/{column}",
                "description": meaning,
                "dataType": "sc:Text",
                "source": {"fileObject": {"@id": table}, "extract": {"column": column}},
            }
            for column, meaning in COLUMNS.items()
        ],
    }
