"""The curve of copies and distances: a model that draws its training images is seen, and is not the best."""

from pathlib import Path

import numpy as np
import pytest

from dermjax.data import images, records
from dermjax.errors import UserError
from dermjax.evaluation import features
from dermjax.models import classifier
from dermjax.training import writers
from dermjax.tuning import report, task
from dermjax.tuning import run as tuning
from dermjax.tuning.concepts import Concepts
from dermjax.weights import classifiers


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The folder of a small ViT that has learnt nothing."""
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    kind = classifier.fresh(classifier.describe("vit", small | {"patch_size": 32}, ("a", "b"), 224), np.float32)
    folder = tmp_path_factory.mktemp("network") / "vit"
    classifiers.write(folder, kind, *kind.init(0))
    return folder


def test_a_model_that_draws_its_training_images_is_seen(network, manifest, tmp_path):
    read = records.read(manifest)
    training, validation = (
        Concepts([(read, record) for record in read.split(split)], [], None, None) for split in ("train", "validation")
    )
    seen = np.stack([images.load(read.path(record), 32) for record in read.split("train")])
    drawn = {"copies": seen[:, :, ::-1], "noise": np.random.default_rng(0).integers(0, 256, seen.shape, np.uint8)}
    found = {
        name: task.figures(
            lambda state, constants, some=some: some, features.read(str(network)), training, validation, tmp_path
        )(None, {})
        for name, some in drawn.items()
    }
    assert found["copies"]["copies"] == 1 and found["noise"]["copies"] == 0
    assert 0 < found["copies"]["frechet"] < found["noise"]["frechet"]
    looked = {name: task.judged(each, "frechet", 0.5) for name, each in found.items()}
    assert looked == {"copies": {}, "noise": {"judged": found["noise"]["frechet"]}}


@pytest.mark.slow
@pytest.mark.usefixtures("no_transfers")
def test_tuning_keeps_the_figures_at_each_look_and_ends_by_them(network, config, tmp_path):
    asked = {"evidence.features": str(network), "evidence.images": 2, "evidence.minimise": "frechet",
             "watch_every": 2, "patience": 2, "rate": 0.0, "steps": 8}  # fmt: skip
    tuning.run(config(**asked), tmp_path)
    looks = [each for each in writers.read(tmp_path / "metrics.jsonl") if "copies" in each]
    # nothing is learnt: no look is better than the first, and tuning ends
    assert [each["step"] for each in looks] == [0, 2, 4]
    assert all(each["judged"] == each["frechet"] == pytest.approx(looks[0]["frechet"], rel=1e-4) for each in looks)
    assert all(0 <= each["copies"] <= 1 and "validation_loss" in each for each in looks)
    page = Path(tmp_path / "report.html").read_text()
    assert "Of the images drawn at each evaluation" in page and "at step 4" in page


@pytest.mark.parametrize(
    ("judged", "told"),
    [
        ({}, "The checkpoint of step 2 is kept."),
        ({0: 1.0, 2: 3.0, 4: 5.0, 6: 6.0}, "The checkpoint of step 2 is kept."),
        ({0: 1.0, 2: 5.0, 4: 3.0, 6: 4.0}, "The checkpoint of step 4 is kept, the best by the images drawn."),
        ({6: 4.0}, "The checkpoint of step 6 is kept, the best by the images drawn."),
        ({0: 1.0}, "learnt by heart."),
    ],
    ids=["losses alone", "the same", "another", "copies until then", "copies always"],
)
def test_the_page_names_the_checkpoint_that_the_loop_keeps(judged, told):
    """The best by what the loop goes by; the evaluation before the first step is none to it."""
    losses = {0: 9.0, 2: 5.0, 4: 6.0, 6: 8.0}
    seen = {"copies": 0.1, "frechet": 2.0} if judged else {}
    records = [{"step": step, "validation_loss": loss} | seen for step, loss in losses.items()]
    records = [each | ({"judged": judged[each["step"]]} if each["step"] in judged else {}) for each in records]
    found = report.verdict([*records, {"step": 7, "loss": 1.0}])
    assert found.endswith(told) and ("is kept" in found) == ("is kept" in told)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evidence.minimise": "kid"}, "config.evidence.minimise"),
        ({"evidence.features": "somewhere", "watch_every": 0}, "needs evaluations: give config.watch_every"),
        ({"evidence.features": "somewhere", "evidence.images": 0}, "needs evaluations: give config.watch_every"),
        ({"evidence.most_copies": 1.5}, "most_copies = 1.5: give 0 to 1"),
    ],
)
def test_what_cannot_be_is_one_line(config, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        tuning.run(config(**changes), tmp_path)
    assert not list(tmp_path.iterdir())
