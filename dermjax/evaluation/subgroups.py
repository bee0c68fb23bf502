"""Which subgroups an image belongs to: by tone, sex, age band, site and source, as far as its record says."""

from dermjax.data.attributes import age_band
from dermjax.data.records import Manifest, Record


def of(record: Record) -> dict[str, str]:
    """Returns {kind: group} of a record; what is not known is not in it."""
    told = record.attributes
    tone = told.get("skin_tone", {}).get("group", "") or told.get("parameters", {}).get("tone", "")
    found = {
        "tone": tone,
        "sex": str(told.get("sex", "")),
        "age": told.get("age_band", "") or _band(told.get("age")),
        "site": str(told.get("site", "")),
        "source": record.source,
    }
    return {kind: group for kind, group in found.items() if group}


def split(manifest: Manifest) -> dict[tuple[str, str], set[str]]:
    """Returns the test images of each (kind, group), in kinds of more than one group."""
    groups: dict[tuple[str, str], set[str]] = {}
    for record in manifest.split("test"):
        for kind, group in of(record).items():
            groups.setdefault((kind, group), set()).add(record.image)
    several = {kind for kind, _ in groups if sum(each == kind for each, _ in groups) > 1}
    return {key: groups[key] for key in sorted(groups) if key[0] in several}


def _band(age: object) -> str:
    try:
        return age_band(float(age))
    except (TypeError, ValueError):
        return ""
