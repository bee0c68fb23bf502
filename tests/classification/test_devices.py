"""Two processes whose devices take turns say of every image what one device says of it."""

import csv
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from dermjax.classification import run
from dermjax.training import writers

STAGE = Path(__file__).with_name("test_run.py")
CODE = """
import json, runpy
from pathlib import Path
from dermjax.classification import run
config = runpy.run_path(sys.argv[1])['settings'](Path(sys.argv[2]), **json.loads(sys.argv[4]))
run.run(config, Path(sys.argv[3]))
"""


def said(workdir):
    """The probability of malignant of each image, and the curves."""
    with (workdir / "predictions.csv").open() as file:
        rows = {row["image"]: float(row["p_malignant"]) for row in csv.DictReader(file)}
    curves = [record[name] for record in writers.read(workdir / "metrics.jsonl") for name in sorted(record)]
    return list(rows), np.array(list(rows.values())), np.array(curves)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"recipe": "frozen", "views": 2}, id="features"),
        pytest.param({"recipe": "full", "mixing": "mixup"}, id="images", marks=pytest.mark.slow),
        pytest.param({"recipe": "full", "mesh": {"data": 2, "fsdp": 2}}, id="shards", marks=pytest.mark.slow),
    ],
)
def test_predictions_are_of_their_own_image_in_any_order_of_devices(tmp_path, permuted, joined, changes):
    stage = runpy.run_path(str(STAGE))
    real = stage["draw"](tmp_path / "real", stage["SIZES"], "none", seed=0)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    run.run(stage["settings"](real, **changes | {"mesh": {"data": 1, "fsdp": 1}}), tmp_path / "one")
    many = json.dumps({"mesh": {"data": 4, "fsdp": 1}} | changes)
    joined(permuted([0, 2, 1, 3]) + CODE, STAGE, real, tmp_path / "two", many, devices=2)
    (images, one, curve), (same, two, curve_of_two) = said(tmp_path / "one"), said(tmp_path / "two")
    assert images == same and np.ptp(one) > 0.1
    np.testing.assert_allclose(two, one, atol=1e-5)
    np.testing.assert_allclose(curve_of_two, curve, rtol=1e-4, atol=1e-5)
