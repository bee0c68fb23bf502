"""Photographs with masks, as far as tests need them: phantoms."""

import numpy as np
import pytest
from PIL import Image

from dermjax.data import records
from dermjax.data.digests import sha256
from dermjax.data.phantoms.painting import phantom
from dermjax.data.records import Manifest, Record


@pytest.fixture
def photographs(tmp_path):
    """Twelve phantoms as if they were photographs with masks: a manifest, four of them for validation."""
    folder, entries = tmp_path / "photographs", []
    folder.mkdir()
    for seed in range(12):
        made, names = phantom(seed, 64), (f"{seed}.png", f"{seed}_mask.png")
        for name, pixels in zip(names, (made.image, made.mask.astype(np.uint8) * 255), strict=True):
            Image.fromarray(pixels).save(folder / name)
        mask = {"image": names[1], "sha256": sha256(folder / names[1])}
        entries.append(Record(image=names[0], sha256=sha256(folder / names[0]), label=made.label, source="phantoms",
                              split="train" if seed < 8 else "validation", image_manipulation="none",
                              attributes={"mask": mask}))  # fmt: skip
    manifest = Manifest(labels=("benign", "malignant"), root=folder, records=tuple(entries))
    records.write(folder / records.FILE, manifest)
    return folder / records.FILE
