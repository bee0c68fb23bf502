"""The description of an exported data set that catalogues and loaders read: Croissant 1.0 (JSON-LD).

It names every file with its digest and, for each split, the table of what is known of every image, by column.
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
    """Writes FILE into a folder that holds a data set in one of the forms, with its tables."""
    description, licences = items.describe(manifest)
    images = {item.name for of_split in splits.values() for item in of_split}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in images]
    sets = [_images(split, of_split) for split, of_split in splits.items() if (folder / split).is_dir()]
    described = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": description,
        "license": licences or ["unknown"],
        "version": "1.0.0",
        "distribution": [_file(path.relative_to(folder).as_posix(), path) for path in files] + sets,
        "recordSet": [_records(split, items.table(folder, split).relative_to(folder).as_posix()) for split in splits],
    }
    (folder / FILE).write_text(json.dumps(described, indent=1) + "\n")


def _file(name: str, path: Path) -> dict:
    kind = KINDS.get(path.suffix, RECORDS)
    return _node("FileObject", name, contentUrl=name, encodingFormat=kind, sha256=sha256(path))


def _images(split: str, of_split: list[Item]) -> dict:
    patterns = [f"{split}/*{suffix}" for suffix in sorted({item.path.suffix.lower() for item in of_split})]
    return _node("FileSet", f"{split}-images", encodingFormat="image/*", includes=patterns)


def _records(split: str, table: str) -> dict:
    fields = []
    for column, meaning in COLUMNS.items():
        source = {"fileObject": {"@id": table}, "extract": {"column": column}}
        fields.append(_node("Field", f"{split}/{column}", description=meaning, dataType="sc:Text", source=source))
    return _node("RecordSet", split, key={"@id": f"{split}/file_name"}, field=fields)


def _node(kind: str, name: str, **properties) -> dict:
    return {"@type": f"cr:{kind}", "@id": name, "name": name, **properties}
