"""Words of prompts beside what images show: phantoms that are as requested, and others."""

import numpy as np
import pytest

from dermjax.data import digests, images
from dermjax.data.phantoms.painting import phantom
from dermjax.data.records import Manifest, Record
from dermjax.evaluation.images import adherence


def seen(lesions=1, area=0.03, ita=20.0):
    return {"lesions": lesions, "area": area} | ({} if ita is None else {"ita": ita})


def test_shares_medians_and_ranks_are_those_of_the_words():
    prompts = ["one small mole, tan skin", "one large mole, tan skin", "two small moles, pale skin", "a mole",
               "single large lesion, dark skin"]  # fmt: skip
    scores = [seen(), seen(area=0.2, ita=50.0), seen(2, 0.08, 60.0), seen(5), seen(3, 0.3, None)]
    found = adherence.compare(prompts, scores)
    one, two = (found["number"]["words"][word] for word in ("one", "two"))
    assert (one["n"], one["median"], one["right"].value) == (3, 1, pytest.approx(2 / 3))
    assert (two["n"], two["median"], two["right"].value) == (1, 2, 1)
    assert found["number"]["right"].n == 4 and found["number"]["right"].low < 0.75 < found["number"]["right"].high
    small, large = (found["size"]["words"][word] for word in ("small", "large"))
    assert small["median"] == pytest.approx(0.035) and large["median"] == pytest.approx(0.15)
    assert small["right"] is None and found["size"]["rank"] > 0.7
    tone = found["tone"]["words"]
    assert (tone["dark"]["median"], tone["dark"]["right"].value) == (None, 0)  # no skin is not dark skin
    assert tone["tan"]["right"].value == 0.5 and tone["pale"]["right"].value == 1


def test_nothing_requested_is_nothing():
    found = adherence.compare(["a benign mole"], [seen()])
    assert all(each == {"words": {}, "right": None, "rank": None} for each in found.values())


def test_images_without_scores_are_measured(tmp_path):
    pictures = [phantom(95_000_000 + n, 256, number=n, size_name="small", tone="pale").image for n in (1, 2)]
    records = []
    for number, picture in enumerate([*pictures, np.full((256, 256, 3), 180, np.uint8)]):
        path = tmp_path / f"{number}.png"
        path.write_bytes(images.encode_png(picture))
        records.append(
            Record(
                image=path.name,
                sha256=digests.sha256(path),
                label="a",
                split="train",
                source="test",
                image_manipulation="synthetic",
                scores={"lesions": 9, "area": 0.5} if number == 2 else {},
            )
        )
    manifest = Manifest(labels=("a", "b"), root=tmp_path, records=tuple(records))
    one, two, known = adherence.measure(manifest, records)
    assert (one["lesions"], two["lesions"]) == (1, 2) and known == {"lesions": 9, "area": 0.5}
    assert 0 < one["area"] < two["area"] and one["ita"] > 41
