"""Two processes whose devices take turns say of every image what one device says of it."""

import csv
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from dermjax.classification import run
from dermjax.data import records
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


LISTED = """
import runpy
from pathlib import Path
from dermjax import sharding
from dermjax.classification.features import Features, causes
from dermjax.classification.recipes import Recipe
from dermjax.data import records
classifier, params, variables = runpy.run_path(sys.argv[1])['vit']()
grid, manifest = sharding.mesh(2, 1), records.read(Path(sys.argv[2]))
chosen = manifest.split('test')
made = Features(
    classifier=classifier, params=params, variables=variables, last=0, policy='mild', batch=2, grid=grid,
    causes=causes(classifier, params, variables, Recipe(last=0), grid), within=Path(sys.argv[3]),
)
absent = made.path(chosen[jax.process_index() - 1], 0)
Path.is_file = lambda path, look=Path.is_file: path != absent and look(path)
made.read(manifest, chosen, 1)
"""


def test_features_are_of_their_own_image_where_processes_find_others_missing(tmp_path, joined):
    """As while other runs write into the folder: process 0 lacks those of the last image, process 1 of the first."""
    sizes = {"train": 1, "validation": 1, "test": 2}
    real = runpy.run_path(str(STAGE))["draw"](tmp_path / "real", sizes, "none", seed=0)
    recipes, manifest = Path(__file__).with_name("test_recipes.py"), records.read(real)
    chosen = manifest.split("test")
    features = runpy.run_path(str(recipes))["features"](tmp_path / "features")
    before = features.read(manifest, chosen, 1)
    written = {path: path.stat().st_mtime_ns for path in features.folder.iterdir()}
    joined(LISTED, recipes, real, features.within, devices=1)
    assert [path for path, at in written.items() if path.stat().st_mtime_ns != at] == [features.path(chosen[-1], 0)]
    np.testing.assert_allclose(features.read(manifest, chosen, 1), before, atol=1e-5)
