"""Batches are exact in their mixture, the same for the same seed, and go on from any state as if never stopped."""

import json
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from dermjax.data import digests, images, pipelines
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError

LABELS = ("benign", "malignant")
SIZE = 8


def folder(root, manipulation, counts, shade):
    """A manifest of plain images whose red tells the record: shade, shade + 1, … so that a batch can be read back."""
    many, number = [], shade
    for label, count in zip(LABELS, counts, strict=True):
        for _ in range(count):
            name = f"{number}.png"
            root.mkdir(exist_ok=True)
            (root / name).write_bytes(images.encode_png(np.full((SIZE, SIZE, 3), number, np.uint8)))
            kind = {"label": label, "split": "train", "source": "test", "image_manipulation": manipulation}
            many.append(Record(image=name, sha256=digests.sha256(root / name), **kind))
            number += 1
    return Manifest(labels=LABELS, root=root, records=tuple(many))


@pytest.fixture
def real(tmp_path):
    return folder(tmp_path / "real", "none", (5, 3), 0)


@pytest.fixture
def synthetic(tmp_path):
    return folder(tmp_path / "synthetic", "synthetic", (4, 7), 100)


def mixture(real, synthetic, *, fraction=0.75, augment="none", batch=8, seed=3, mixing="none", rows=None):
    rows = np.arange(batch) if rows is None else rows
    plan = pipelines.MixturePlan(
        real=real, synthetic=synthetic, synthetic_fraction=fraction, batch=batch, rows=rows, seed=seed, mixing=mixing
    )
    return pipelines.training_batches(plan, size=SIZE, augment=augment)


def seen(batches, count):
    """(red, label) of every image of the next `count` batches, in order."""
    pairs = []
    for batch in islice(batches, count):
        red = images.from_model(batch["image"])[:, 0, 0, 0]
        pairs += zip(red.tolist(), batch["label"].tolist(), strict=True)
    return pairs


def assert_same_continuation(make):
    """Seven batches, a state, five more; a fresh iterator set to the state (through JSON) gives the same five."""
    batches = make()
    list(islice(batches, 7))
    state = json.loads(json.dumps(batches.get_state()))
    expected = list(islice(batches, 5))
    resumed = make()
    resumed.set_state(state)
    for one, other in zip(expected, islice(resumed, 5), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_rows_of_arrays_stay_together_and_every_epoch_is_whole_and_new():
    data = {"row": np.arange(10), "square": np.arange(10) ** 2}
    batches = list(islice(pipelines.array_batches(data, batch=5, seed=1), 4))
    rows = np.stack([batch["row"] for batch in batches])
    np.testing.assert_array_equal(np.stack([batch["square"] for batch in batches]), rows**2)
    assert sorted(rows[:2].ravel()) == sorted(rows[2:].ravel()) == list(range(10))
    assert rows[:2].ravel().tolist() != rows[2:].ravel().tolist()


def test_a_batch_may_be_larger_than_the_arrays():
    batch = next(pipelines.array_batches({"row": np.arange(3, dtype=np.float32)}, batch=7, seed=1))
    assert batch["row"].shape == (7,) and batch["row"].dtype == np.float32 and set(batch["row"]) == {0, 1, 2}


def test_a_batch_may_be_one_row():
    batches = pipelines.array_batches({"x": np.arange(3)}, batch=1, seed=0)
    assert sorted(int(next(batches)["x"][0]) for _ in range(3)) == [0, 1, 2]


def test_arrays_go_on_from_a_state():
    data = {"row": np.arange(11), "moments": np.random.default_rng(0).normal(size=(11, 2, 2, 8))}
    assert_same_continuation(lambda: pipelines.array_batches(data, batch=4, seed=5))


@pytest.mark.parametrize("data", [{"a": np.zeros(2), "b": np.zeros(3)}, {"a": np.zeros(0)}])
def test_arrays_of_different_or_no_length_are_refused(data):
    with pytest.raises(ValueError, match="one common length"):
        pipelines.array_batches(data, batch=1, seed=0)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.7, 0.75, 1.0])
def test_the_mixture_is_exact_and_its_classes_are_balanced(real, synthetic, fraction):
    pairs = seen(mixture(real, synthetic, fraction=fraction, batch=20), 10)
    assert sum(red >= 100 for red, _ in pairs) == round(200 * fraction)
    for made in (False, True):
        counts = Counter(label for red, label in pairs if (red >= 100) == made)
        assert abs(counts[0] - counts[1]) <= 1


def test_every_image_comes_with_its_own_label_and_equally_often(real, synthetic):
    pairs = seen(mixture(real, synthetic, fraction=0.5), 84)  # 168 turns a source: whole epochs of 3, 4 and 7
    labels = {int(record.image[:-4]): LABELS.index(record.label) for record in (*real.records, *synthetic.records)}
    assert all(labels[red] == label for red, label in pairs)
    counts = Counter(red for red, _ in pairs)
    assert counts.keys() == labels.keys()
    assert {counts[red] for red in (5, 6, 7)} == {168 // 3} and {counts[red] for red in range(100, 104)} == {168 // 4}


def test_real_alone_needs_no_synthetic_manifest(real):
    assert {red for red, _ in seen(mixture(real, None), 8)} == set(range(8))


def test_rejected_records_and_other_splits_are_never_drawn(real, synthetic):
    first, *rest = synthetic.records
    synthetic = replace(synthetic, records=(replace(first, rejected=("blank",)), *rest))
    first, *rest = real.records
    real = replace(real, records=(replace(first, split="test"), *rest))
    drawn = {red for red, _ in seen(mixture(real, synthetic, fraction=0.5), 60)}
    assert drawn == {*range(1, 8), *range(101, 111)}


@pytest.mark.parametrize("augment", ["none", "mild"])
@pytest.mark.parametrize("cache", [0, pipelines.CACHE_BYTES])
def test_training_goes_on_from_a_state(real, synthetic, monkeypatch, augment, cache):
    monkeypatch.setattr(pipelines, "CACHE_BYTES", cache)
    assert_same_continuation(lambda: mixture(real, synthetic, augment=augment))


def test_images_come_out_the_same_with_and_without_the_cache(real, synthetic, monkeypatch):
    kept = seen(mixture(real, synthetic), 3)
    monkeypatch.setattr(pipelines, "CACHE_BYTES", 0)
    assert seen(mixture(real, synthetic), 3) == kept


def test_another_seed_is_another_order(real):
    assert seen(mixture(real, None, seed=1), 2) == seen(mixture(real, None, seed=1), 2)
    assert seen(mixture(real, None, seed=1), 2) != seen(mixture(real, None, seed=2), 2)


def test_batches_are_float32_in_the_model_range_and_int32(real):
    batch = next(mixture(real, None, augment="mild"))
    assert batch["image"].shape == (8, SIZE, SIZE, 3) and batch["image"].dtype == np.float32
    assert batch["label"].shape == (8,) and batch["label"].dtype == np.int32


def test_evaluation_shows_every_record_once_in_order_and_pads_the_last_batch(real):
    batches = list(pipelines.evaluation_batches(real.records, real, size=SIZE, batch=5))
    assert [batch["image"].shape for batch in batches] == [(5, SIZE, SIZE, 3)] * 2
    np.testing.assert_array_equal(batches[1]["valid"], [True, True, True, False, False])
    valid = np.concatenate([batch["valid"] for batch in batches])
    red = images.from_model(np.concatenate([batch["image"] for batch in batches]))[valid, 0, 0, 0]
    np.testing.assert_array_equal(red, range(8))
    assert batches[0]["image"].dtype == np.float32


def test_evaluation_decodes_ahead_of_what_is_asked_for_but_not_all(real, monkeypatch):
    decoded, load = [], images.load
    monkeypatch.setattr(images, "load", lambda path, *how: decoded.append(path) or load(path, *how))
    batches = pipelines.evaluation_batches(real.records, real, size=SIZE, batch=2)
    next(batches)
    assert len(decoded) <= 2 * (1 + pipelines.AHEAD) < len(real.records)
    assert len(list(batches)) == 3 and len(decoded) == len(real.records)


DIVISIONS = {  # the rows of a batch of eight that each process makes
    "blocks": ([0, 1, 2, 3], [4, 5, 6, 7]),
    "in turns": ([0, 1, 4, 5], [2, 3, 6, 7]),
    "three, unequal": ([3, 7], [0], [1, 2, 4, 5, 6]),
}


@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("mixing", ["none", "mixup", "cutmix"])
@pytest.mark.parametrize("augment", ["none", "strong"])
def test_processes_make_together_what_one_makes_alone(real, synthetic, augment, mixing, division):
    def made(rows):
        return mixture(real, synthetic, augment=augment, mixing=mixing, rows=rows)

    alone, parts = made(None), [(rows, made(np.array(rows))) for rows in DIVISIONS[division]]
    for _ in range(3):
        whole = next(alone)
        for rows, batches in parts:
            part = next(batches)
            for name in whole:
                np.testing.assert_array_equal(part[name], whole[name][rows])
            assert batches.get_state() == alone.get_state()


@pytest.mark.parametrize("division", DIVISIONS)
def test_arrays_are_divided_over_processes_and_go_on_on_any_other_division(division):
    def made(rows=None):
        return pipelines.array_batches({"row": np.arange(11)}, batch=8, seed=2, rows=rows)

    alone, parts = made(), [(rows, made(np.array(rows))) for rows in DIVISIONS[division]]
    for _ in range(5):
        whole = next(alone)["row"]
        for rows, batches in parts:
            np.testing.assert_array_equal(next(batches)["row"], whole[rows])
            assert batches.get_state() == alone.get_state()
    again = made()
    again.set_state(json.loads(json.dumps(parts[0][1].get_state())))
    np.testing.assert_array_equal(next(again)["row"], next(alone)["row"])
    assert_same_continuation(lambda: made(np.array(DIVISIONS[division][-1])))


def test_a_process_decodes_its_own_rows_only(real, monkeypatch):
    monkeypatch.setattr(pipelines, "CACHE_BYTES", 0)
    decoded, load = [], images.load
    monkeypatch.setattr(images, "load", lambda path, *how: decoded.append(path.name) or load(path, *how))
    rows = np.array([1, 4])
    batches = list(pipelines.evaluation_batches(real.records, real, size=SIZE, batch=5, rows=rows))
    assert sorted(decoded) == ["1.png", "4.png", "6.png"]  # of the second batch there are three
    assert [batch["valid"].tolist() for batch in batches] == [[True] * 5, [True] * 3 + [False] * 2]
    red = images.from_model(np.stack([batch["image"] for batch in batches]))[:, :, 0, 0, 0]
    assert red[0].tolist() == [1, 4] and red[1, 0] == 6
    decoded.clear()
    made = pipelines.mix_rows(
        lambda position: {"label": np.int32(decoded.append(position) or 0), "image": np.zeros((4, 4, 3))},
        3,
        plan=pipelines.MixturePlan(
            real=real, synthetic=None, synthetic_fraction=0, batch=8, rows=rows, seed=0, mixing="none"
        ),
    )
    assert len(made["label"]) == 2 and decoded == [25, 28]


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_mixed_batches_have_targets_and_go_on_from_a_state(real, synthetic, mixing):
    batch = next(mixture(real, synthetic, mixing=mixing))
    np.testing.assert_allclose(batch["targets"].sum(-1), 1, rtol=1e-6)
    assert batch["targets"].dtype == np.float32 and batch["image"].dtype == np.float32
    assert_same_continuation(lambda: mixture(real, synthetic, augment="randaugment", mixing=mixing))


@pytest.mark.parametrize(
    "asked, told",
    [
        ({"augment": "wild"}, "augment 'wild': there are none, mild, strong, randaugment"),
        ({"mixing": "blend"}, "mixing 'blend': there are none, mixup, cutmix"),
    ],
)
def test_what_is_not_known_is_refused(real, asked, told):
    with pytest.raises(UserError, match=told):
        mixture(real, None, **asked)


def test_what_cannot_be_mixed_truthfully_is_refused(real, synthetic):
    with pytest.raises(UserError, match="holds synthetic images"):
        mixture(synthetic, None)
    with pytest.raises(UserError, match="holds real images"):
        mixture(real, real)
    with pytest.raises(UserError, match=r"its classes are malignant, benign"):
        mixture(real, replace(synthetic, labels=LABELS[::-1]))
    with pytest.raises(UserError, match=r"synthetic_fraction 1\.5"):
        mixture(real, synthetic, fraction=1.5)
    with pytest.raises(UserError, match="no kept training image of class 'malignant'"):
        mixture(real, replace(synthetic, records=synthetic.records[:4]))


def test_a_broken_image_is_named(real, monkeypatch):
    monkeypatch.setattr(pipelines, "CACHE_BYTES", 0)
    (real.root / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"real/0\.png: not the bytes that the manifest names"):
        mixture(real, None)
    broken = replace(real.records[0], sha256=digests.sha256(real.root / "0.png"))
    with pytest.raises(UserError, match=r"real/0\.png: cannot be decoded"):
        seen(mixture(replace(real, records=(broken, *real.records[1:])), None), 10)
