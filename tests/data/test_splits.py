"""What shows one lesion stays on one side, and stays there when images are added."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def assigned(records, groups=None, **changes):
    previous = changes.pop("previous", {})
    settings = {"validation": 0.1, "test": 0.2, "seed": 0, "rotation": 0.0, "folds": 0, "stratified": False} | changes
    groups = alone(records) if groups is None else groups
    return splits.assign(records, groups, splits.SplitSettings(**settings), previous)


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


names = st.sampled_from(["", *"abcd"])
members = st.builds(
    lambda number, label, lesion, patient: record(str(number), label, lesion_id=lesion, patient_id=patient),
    st.integers(0, 10**6),
    st.sampled_from(["benign", "malignant"]),
    names,
    names,
)
near = st.lists(members, min_size=2, max_size=7, unique_by=lambda member: member.image)


def divided(*group, **changes):
    """Eighty groups of one image, which fill every split, and after them a group, with their splits."""
    return assigned([*many(40), *group], np.array([*range(80), *[80] * len(group)]), **changes)


def side(*group, **changes):
    """The side of a group among others."""
    (found,) = {member.split for member in divided(*group, **changes)[80:]}
    return found


@given(near)
def test_one_more_near_duplicate_moves_a_group_only_to_where_it_would_be_alone_and_no_other_group(found):
    *group, joining = found
    after = side(*group, joining)
    assert after in (side(*group), side(joining)) and side(joining, *group[::-1]) == after
    assert divided(*group, joining)[:80] == divided(*group)[:80]


@given(near)
def test_copies_with_a_narrower_or_later_identity_do_not_move_a_group(found):
    """Whoever is last in the order of patients, lesions and bytes joins those before."""

    def order(member):
        patient, lesion = member.patient_id, member.lesion_id
        return (not patient, patient, not lesion or bool(patient), "" if patient else lesion, member.sha256)

    *group, joining = sorted(found, key=order)
    assert side(*group, joining) == side(*group)


@given(near, st.booleans())
def test_what_an_earlier_manifest_placed_stays_whoever_joins(found, stratified):
    *group, joining = found
    earlier = divided(*group, stratified=stratified)
    later = divided(*group, joining, stratified=stratified, previous=splits.placements(earlier))
    assert later[:-1] == earlier and later[-1].split == earlier[-1].split


def test_the_order_of_records_and_of_sources_changes_no_side():
    """A source that gives a test split, and another that gives none, have photographs of the same lesions."""
    given_test = [record(f"given{i}", "a", "test", source="gives") for i in range(9)]
    pairs = [[record(f"{s}{i}", "a", source=s, lesion_id=str(i)) for s in ("gives", "none")] for i in range(60)]
    found = [sides(assigned([*given_test, *(record for pair in pairs for record in pair[::step])],
                            np.array([*range(9), *np.repeat(np.arange(9, 69), 2)]))) for step in (1, -1)]  # fmt: skip
    assert found[0] == found[1]


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


def test_all_pairs_of_a_fault_are_counted_and_the_first_ones_named():
    """Kaggle's sets have dozens, and nobody should need as many runs."""
    pairs = [record(f"{label}{n}", label, split, sha256=f"{n}")
             for n in range(7) for label, split in (("a", "train"), ("b", "test"))]  # fmt: skip
    with pytest.raises(
        UserError, match=r"classes: a0\.jpg and b0\.jpg, .*, a4\.jpg and b4\.jpg and 2 more; remove one"
    ):
        splits.refuse_contradictions(pairs)
    with pytest.raises(
        UserError, match=r"sha256 in two splits: a0\.jpg \(train\) and b0\.jpg \(test\), .* and 2 more;"
    ):
        splits.refuse_leaks(pairs)


def test_stratified_shares_are_exact_in_every_class_and_source():
    records = [
        record(f"{label}{source}{i}", label, source=source)
        for label, count in (("benign", 70), ("malignant", 30))
        for source in ("one", "two")
        for i in range(count)
    ]
    done = assigned(records, stratified=True)
    for label, source, test, validation in (("benign", "one", 14, 7), ("malignant", "two", 6, 3)):
        of_cell = [each.split for each in done if (each.label, each.source) == (label, source)]
        assert (of_cell.count("test"), of_cell.count("validation")) == (test, validation)


def test_an_earlier_manifest_keeps_its_images_where_they_are_and_new_photographs_join_their_lesion():
    old = assigned([record(f"{label}{i}", label, lesion_id=f"{label}{i}") for label in "ab" for i in range(30)])
    new = [record(f"{label}{i}", label, lesion_id=f"{label}{i}") for label in "ab" for i in range(80)]
    new += [record(f"again{i}", "a", lesion_id=f"a{i}") for i in range(30)]
    placed = splits.placements(old)
    groups = np.array([*range(160), *range(30)])
    done = sides(assigned(new, groups, seed=5, stratified=True, previous=placed))
    assert sides(old).items() <= done.items()
    assert [done[f"again{i}.jpg"] for i in range(30)] == [done[f"a{i}.jpg"] for i in range(30)]


def test_what_an_earlier_manifest_set_aside_places_nothing():
    aside = record("one", "a", "train", lesion_id="x", rejected=("near_duplicate_of_evaluation",))
    placed = splits.placements([aside, record("two", "a", "test", lesion_id="x")])
    assert set(placed.values()) == {"test"}


def test_what_ties_two_sides_of_an_earlier_manifest_is_refused():
    placed = splits.placements([record("one", "a", "train"), record("two", "a", "test")])
    with pytest.raises(UserError, match=r"two\.jpg \(test\) and one\.jpg \(train\) were on two sides"):
        assigned([record("one", "a"), record("two", "a"), record("between", "a")], np.zeros(3, int), previous=placed)


def test_every_image_is_tested_in_one_of_k_folds():
    records = many(100)
    folds = [assigned(records, test=1 / 4, rotation=fold / 4) for fold in range(4)]
    tested = [each.image for done in folds for each in done if each.split == "test"]
    assert sorted(tested) == sorted(each.image for each in records)


def test_folds_are_refused_where_images_have_a_test_split_of_their_own():
    settings = splits.SplitSettings(validation=0.1, test=1 / 5, seed=0, rotation=0.0, folds=5, stratified=False)
    nothing = np.zeros((0, 2), int)
    assert {each.split for each in splits.divide(many(20), nothing, settings, {})} == {"train", "validation", "test"}
    with pytest.raises(UserError, match=r"config\.folds = 5: testbenign0\.jpg is in a test split of its own, which"):
        splits.divide([*many(20, "train"), *many(4, "test")], nothing, settings, {})


def test_stratified_folds_test_every_image_once_in_exact_shares():
    records = [record(f"{label}{i}", label) for label, count in (("a", 53), ("b", 21)) for i in range(count)]
    folds = [assigned(records, test=1 / 5, rotation=fold / 5, stratified=True) for fold in range(5)]
    tested = [each for done in folds for each in done if each.split == "test"]
    assert sorted(each.image for each in tested) == sorted(each.image for each in records)
    for done in folds:
        of_test = [each.label for each in done if each.split == "test"]
        assert of_test.count("a") in (10, 11) and of_test.count("b") in (4, 5)


def test_rejected_records_take_no_part():
    made = [record(f"made{i}", "a", "train", rejected=("synthetic",)) for i in range(40)]
    done = assigned([*many(30), *made])
    assert done[60:] == tuple(made) and sides(done[:60]) == sides(assigned(many(30)))
    splits.refuse_leaks(
        [record("one", "a", "test", lesion_id="x"), record("m", "a", "train", lesion_id="x", rejected=("y",))]
    )


def test_a_split_that_one_source_gives_is_still_carved_out_of_another():
    given = [record(f"given{split}{i}", "a", split, source="kaggle") for split in ("train", "test") for i in range(50)]
    done = assigned([*given, *many(200)])
    assert {each.split for each in done[:50]} == {"train", "validation"}
    assert {each.split for each in done[100:]} == {"train", "validation", "test"}


def test_what_two_sources_share_is_no_fault_of_either():
    splits.refuse_leaks([record("one", "a", "train", sha256="x", source="p"), record("two", "a", "test", sha256="x")])


def test_a_photograph_of_the_isic_archive_is_itself_in_whichever_folder():
    pair = [record("2016/ISIC_0000001", "a", "train"), record("2019/ISIC_0000001_downsampled", "a", "test")]
    with pytest.raises(UserError, match="same isic_id in two splits"):
        splits.refuse_leaks(pair)


@pytest.mark.parametrize("other", ["p1", "P1\u200b", " P1", "\ufeffP1"])
def test_a_patient_spelled_otherwise_is_the_same(other):
    known, twin = record("a", "benign", "train", patient_id="P1"), record("b", "benign", "test", patient_id=other)
    assert splits.identities(known)[1] == splits.identities(twin)[1] == ("patient_id", "p1")
    with pytest.raises(UserError, match=r"the same patient_id in two splits: a\.jpg \(train\) and b\.jpg \(test\)"):
        splits.refuse_leaks([known, twin])
