"""What shows one lesion stays on one side, and stays there when images are added."""

import numpy as np
import pytest

from dermjax.data import splits
from dermjax.data.records import Record
from dermjax.errors import UserError


def record(name, label, split="", **more):
    base = {"image": f"{name}.jpg", "sha256": f"sha of {name}", "label": label, "split": split, "source": "test"}
    return Record(**{**base, "image_manipulation": "none", **more})


def many(count, split=""):
    return [record(f"{split}{label}{i}", label, split) for label in ("benign", "malignant") for i in range(count)]


def alone(records):
    return np.arange(len(records))


def assigned(records, groups=None, *, validation=0.1, test=0.2, seed=0):
    groups = alone(records) if groups is None else groups
    return splits.assign(records, groups, validation=validation, test=test, seed=seed)


def sides(records):
    return {each.image: each.split for each in records}


def test_shares_hold_in_every_class():
    done = assigned(many(2000))
    for label in ("benign", "malignant"):
        of_class = [each.split for each in done if each.label == label]
        assert abs(of_class.count("test") / 2000 - 0.2) < 0.03
        assert abs(of_class.count("validation") / 2000 - 0.1) < 0.03


def test_only_the_split_changes_and_the_order_stays():
    records = many(20)
    assert [each.image for each in assigned(records)] == [each.image for each in records]


def test_another_seed_is_another_draw():
    assert sides(assigned(many(50))) == sides(assigned(many(50)))
    assert sides(assigned(many(50))) != sides(assigned(many(50), seed=1))


def test_an_image_keeps_its_side_when_others_come_and_go():
    small, large = sides(assigned(many(60))), sides(assigned(many(200)))
    assert small == {image: large[image] for image in small}
    assert sides(assigned(many(200)[::-1])) == large


def test_a_group_stays_together_whatever_ties_it():
    records = many(300)
    groups = alone(records) // 3
    done = assigned(records, groups)
    for group in range(groups.max() + 1):
        assert len({each.split for each, of in zip(done, groups, strict=True) if of == group}) == 1


def test_a_lesion_keeps_its_side_when_a_photograph_of_it_is_added():
    old = [record(f"{label}{i}", label, lesion_id=f"{label}{i}") for label in ("a", "b") for i in range(40)]
    new = [record(f"new{label}{i}", label, lesion_id=f"{label}{i}") for label in ("a", "b") for i in range(40)]
    both = assigned([*old, *new], np.tile(np.arange(80), 2))
    assert sides(assigned(old)) == sides(both[:80])
    assert [each.split for each in both[:80]] == [each.split for each in both[80:]]


def test_validation_is_carved_from_train_only():
    train, test = many(100, "train"), many(50, "test")
    done = assigned([*train, *test])
    assert {each.split for each in done[:200]} == {"train", "validation"}
    assert {each.split for each in done[200:]} == {"test"}


def test_given_splits_are_left_alone():
    records = [*many(9, "train"), *many(9, "validation"), *many(9, "test")]
    assert assigned(records) == tuple(records)


def test_no_share_no_split():
    assert {each.split for each in assigned(many(9), validation=0, test=0.3)} == {"train", "test"}


@pytest.mark.parametrize("seed", range(20))
def test_a_small_class_is_in_every_split(seed):
    done = assigned(many(3), seed=seed)
    for label in ("benign", "malignant"):
        assert {each.split for each in done if each.label == label} == {"train", "validation", "test"}


def test_a_class_that_is_too_small_is_named():
    records = [*many(9), record("only", "rare"), record("copy", "rare")]
    with pytest.raises(UserError, match="class 'rare': 1 distinct images are too few for train, test, validation"):
        assigned(records, np.array([*range(18), 18, 18]))


@pytest.mark.parametrize("name", ["sha256", "lesion_id", "patient_id"])
def test_a_leak_is_refused_with_both_names(name):
    leaking = [record("one", "a", "train", **{name: "x"}), record("two", "a", "test", **{name: "x"})]
    with pytest.raises(UserError, match=rf"same {name} in two splits: one\.jpg \(train\) and two\.jpg \(test\)"):
        splits.refuse_leaks(leaking)


def test_unknown_lesions_and_patients_are_no_leak():
    splits.refuse_leaks([record("one", "a", "train"), record("two", "a", "test")])
    assert splits.identities(record("one", "a")) == [("sha256", "sha of one")]


def test_one_image_under_two_classes_is_refused():
    with pytest.raises(UserError, match=r"under two classes: one\.jpg and two\.jpg"):
        splits.refuse_contradictions([record("one", "a", sha256="x"), record("two", "b", sha256="x")])
