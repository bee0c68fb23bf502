"""Thirty planted leaks are all found by name, and real photographs raise no alarm."""

import io
import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermjax.data import digests, images, records, splits
from dermjax.data.leaks import audit, training_images
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError

PHOTOGRAPHS = Path(__file__).parents[3] / ".." / "shared" / "data" / "dermoscopy"
SIDE = 160
SPLITS = ("train", "validation", "test")


@cache
def lesion(number):
    """A uint8 image [SIDE, SIDE, 3] of blotches on skin that no other number gives, nor a near one."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    image = np.full((SIDE, SIDE, 3), rng.uniform([170, 120, 100], [230, 190, 170]))
    for _ in range(30):
        centre, radius = rng.uniform(-0.9, 0.9, 2), rng.uniform(0.08, 0.4)
        inside = np.hypot(x - centre[0], y - centre[1]) < radius
        image[inside] = image[inside] * rng.uniform(0.6, 1.15, 3)
    return image.clip(0, 255).astype(np.uint8)


def recompressed(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=60)
    return np.asarray(Image.open(buffer))


def cropped(image, share=0.1):
    edge = round(SIDE * share / 2)
    kept = Image.fromarray(image[edge : SIDE - edge, edge : SIDE - edge])
    return np.asarray(kept.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def disguised(image):
    return recompressed(np.rot90(cropped(image))[:, ::-1])


class Set:
    """A folder of images with their manifest in the making."""

    def __init__(self, root):
        self.root, self.records = root, []
        root.mkdir()

    def add(self, name, image, split, **more):
        (self.root / name).write_bytes(image if isinstance(image, bytes) else images.encode_png(image))
        known = {"label": "benign", "source": "test", "image_manipulation": "none"}
        digest = digests.sha256(self.root / name)
        self.records.append(Record(image=name, sha256=digest, split=split, **(known | more)))

    def write(self):
        """The manifest file, written past the checks of records.write."""
        lines = [{"dermjax_manifest": 1, "labels": ["benign", "malignant"], "root": "."}]
        lines += [vars(each) | {"rejected": list(each.rejected)} for each in self.records]
        path = self.root / records.FILE
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(path)


def clean(root, count=30):
    made = Set(root)
    for number in range(count):
        made.add(f"{number}.png", lesion(number), SPLITS[number % 3], lesion_id=f"L{number}")
    return made


def plant(real, seen):
    """Thirty leaks in a set and in what its generator saw; returns the names of the planted images."""
    first = len(real.records), len(seen.records)
    for number in range(2, 30, 6):  # 5 images of the test split
        test = lesion(number)
        real.add(f"same_lesion{number}.png", lesion(100 + number), "train", lesion_id=f"L{number}")
        real.add(f"disguised{number}.png", disguised(test), "train")
        real.add(f"renamed{number}.png", test, "validation")
        seen.add(f"shown_to_the_generator{number}.png", test, "train")
        seen.add(f"shown_disguised{number}.png", recompressed(np.rot90(test)), "train")
        real.add(f"synthetic{number}.png", lesion(200 + number), "test", image_manipulation="synthetic")
    return [each.image for made, start in zip((real, seen), first, strict=True) for each in made.records[start:]]


def test_thirty_planted_leaks_are_all_found_by_name(tmp_path, capsys):
    real, seen = clean(tmp_path / "real"), Set(tmp_path / "seen")
    planted = plant(real, seen)
    assert len(planted) == 30
    with pytest.raises(UserError, match="findings in 60 images"):
        audit.show(real.write(), seen.write())
    said = capsys.readouterr().out
    assert [name for name in planted if f"{name} (" not in said] == []
    assert [f"/{number}.png" for number in range(30) if number % 6 != 2 and f"/{number}.png" in said] == []


def test_a_clean_set_and_what_was_made_from_it_pass(tmp_path, capsys):
    real, made = clean(tmp_path / "real"), Set(tmp_path / "made")
    for number in range(4):
        made.add(f"{number}.png", lesion(300 + number), "train", image_manipulation="synthetic")
    audit.show(real.write(), real.write(), made.write())
    assert "nothing leaks: 34 images" in capsys.readouterr().out


def test_real_photographs_raise_no_alarm(tmp_path, capsys):
    if not PHOTOGRAPHS.is_dir():
        pytest.skip("the shared photographs are not here")
    paths = sorted(PHOTOGRAPHS.glob("*/*/*.jpg"))[::12]
    found = tuple(
        Record(image=path.relative_to(PHOTOGRAPHS).as_posix(), sha256=digests.sha256(path), label=path.parts[-2],
               split=path.parts[-3], source="HAM10000", image_manipulation="none")
        for path in paths
    )  # fmt: skip
    labels = ("benign", "malignant")
    records.write(tmp_path / records.FILE, Manifest(labels=labels, root=PHOTOGRAPHS.resolve(), records=found))
    audit.show(str(tmp_path))
    assert "nothing leaks" in capsys.readouterr().out


@pytest.mark.slow
def test_all_real_photographs_raise_no_alarm_and_disguised_ones_are_found(tmp_path, capsys):
    if not PHOTOGRAPHS.is_dir():
        pytest.skip("the shared photographs are not here")
    made = Set(tmp_path / "all")
    paths = sorted(PHOTOGRAPHS.glob("*/*/*.jpg"))
    for path in paths:
        made.add(path.name, path.read_bytes(), path.parts[-3])
    audit.show(made.write())
    for path in paths[:30]:
        copy = disguised(images.load(path, SIDE))
        made.add(f"disguised_{path.stem[-3:]}.png", copy, "train" if path.parts[-3] == "test" else "test")
    with pytest.raises(UserError):
        audit.show(made.write())
    said = capsys.readouterr().out
    assert all(f"disguised_{path.stem[-3:]}.png" in said for path in paths[:30])


def made_by(root, real, shown):
    """A set of synthetic images whose generator saw records of a real set, its list handed on as the stages do."""
    tune = root / "tune"
    (tune / "model").mkdir(parents=True)
    made = Set(root / "made")
    manifest = Manifest(labels=("benign", "malignant"), root=real.root, records=tuple(real.records), home=real.root)
    training_images.write(tune, [(manifest, record) for record in shown], [])
    made.add("0.png", lesion(300), "train", image_manipulation="synthetic")
    training_images.pass_on([tune / "model"], made.root)
    return made


def test_what_the_generator_saw_is_found_without_its_manifest(tmp_path, capsys):
    """By its bytes, by its lesion and by its looks: `classify` gets the two manifests and nothing else."""
    real = clean(tmp_path / "real")
    real.add("hidden.png", disguised(lesion(8)), "train")
    aside = [replace(record, rejected=("set aside",)) for record in real.records[-1:]]
    honest = made_by(tmp_path / "honest", real, [record for record in real.records[:30] if record.split == "train"])
    images.write_if_changed(real.root / "again.png", images.encode_png(disguised(lesion(5))))
    again = replace(real.records[5], image="again.png", sha256=digests.sha256(real.root / "again.png"), lesion_id="")
    leaky = made_by(tmp_path / "leaky", real, [*real.records[:3], again, *aside])
    real.records[-1:] = aside
    audit.show(real.write(), honest.write())
    assert "nor does any of 10 images that the generator saw" in capsys.readouterr().out
    with pytest.raises(UserError, match="findings"):
        audit.show(real.write(), leaky.write())
    said = capsys.readouterr().out
    for name in ("1.png", "2.png", "again.png", "hidden.png"):
        assert f"{name} (seen by the generator, in {leaky.root / training_images.FILE})" in said
    assert " 0.png (seen" not in said
    with pytest.raises(UserError, match="seen by the generator"):
        audit.refuse([records.read(Path(real.write())), records.read(Path(leaky.write()))])


def test_a_photograph_that_an_image_was_started_from_counts_as_seen(tmp_path):
    real, made = clean(tmp_path / "real"), Set(tmp_path / "made")
    test = real.records[2]
    made.add("0.png", lesion(300), "train", image_manipulation="synthetic", generation={"init_image": test.sha256})
    with pytest.raises(UserError, match=r"same bytes on two sides: .*/2\.png \(test\), .*made/0\.png \(train\)"):
        audit.refuse([records.read(Path(each.write())) for each in (real, made)])


def test_a_photograph_that_an_image_was_transformed_from_counts_as_seen(tmp_path):
    """By way of a sketch, whose digest is the one that it was started from."""
    real, made = clean(tmp_path / "real"), Set(tmp_path / "made")
    told = {"asked": "larger", "way": "inpaint", "of_sha256": real.records[2].sha256}
    generation = {"init_image": "0" * 64, "transformation": told}
    made.add("0.png", lesion(300), "train", image_manipulation="synthetic", generation=generation)
    with pytest.raises(UserError, match=r"same bytes on two sides: .*/2\.png \(test\), .*made/0\.png \(train\)"):
        audit.refuse([records.read(Path(each.write())) for each in (real, made)])
    told["of_sha256"] = real.records[0].sha256
    audit.refuse([records.read(Path(each.write())) for each in (real, made)])
    for misshapen in ({"of_sha256": 3}, "larger"):
        generation["transformation"] = misshapen
        with pytest.raises(
            UserError, match=r"line 2: 0\.png: fields do not fit a record: misshapen generation\.transf"
        ):
            records.read(Path(made.write()))


def test_synthetic_images_without_a_list_are_said_to_have_none(tmp_path, capsys):
    made = Set(tmp_path / "made")
    made.add("0.png", lesion(300), "train", image_manipulation="synthetic")
    audit.show(made.write())
    assert "no list of what its generator saw" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"{}", b"[]\n", b"\xff", b'{"sha256": 3}'])
def test_a_damaged_list_of_what_was_seen_is_no_empty_one(tmp_path, content):
    made = Set(tmp_path / "made")
    made.add("0.png", lesion(300), "train", image_manipulation="synthetic")
    (made.root / training_images.FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"seen_by_generator\.jsonl: damaged"):
        audit.show(made.write())


def test_lists_are_joined_and_synthetic_images_are_not_in_them(tmp_path):
    real = clean(tmp_path / "real", 6)
    manifest = Manifest(labels=("benign", "malignant"), root=real.root, records=tuple(real.records))
    made = replace(real.records[5], image_manipulation="synthetic")
    for name in ("base", "tune"):
        (tmp_path / name).mkdir()
    training_images.write(tmp_path / "base", [(manifest, record) for record in real.records[:2]], [])
    training_images.write(
        tmp_path / "tune", [(manifest, record) for record in (*real.records[1:4], made)], [tmp_path / "base"]
    )
    assert sorted(each.record.image for each in training_images.read(tmp_path / "tune")) == [
        "0.png",
        "1.png",
        "2.png",
        "3.png",
    ]


def test_a_list_keeps_what_ties_an_image_to_others(tmp_path):
    """The publisher's list of duplicates, and its number in the ISIC archive where a link led to it."""
    real = clean(tmp_path / "real", 6)
    tied = {"duplicates": "isic-2020/isic_1", "linked_as": "train/ISIC_0000007.jpg"}
    record = replace(real.records[0], attributes={"age": "44", **tied})
    manifest = Manifest(labels=("benign", "malignant"), root=real.root, records=(record,))
    training_images.write(tmp_path / "real", [(manifest, record)], [])
    (found,) = training_images.read(tmp_path / "real")
    assert found.record.attributes == tied  # and nothing of the patient
    assert splits.identities(found.record) == splits.identities(record)
    path = tmp_path / "real" / training_images.FILE
    older = {key: value for key, value in json.loads(path.read_bytes()).items() if key != "attributes"}
    path.write_text(json.dumps(older) + "\n")
    assert training_images.read(tmp_path / "real")[0].record.attributes == {}


def test_a_changed_and_a_missing_file_are_found(tmp_path, capsys):
    real = clean(tmp_path / "real", 9)
    (tmp_path / "real/3.png").write_bytes(images.encode_png(lesion(77)))
    (tmp_path / "real/4.png").unlink()
    (tmp_path / "real/5.png").write_bytes(b"<html>")
    with pytest.raises(UserError, match="3 findings"):
        audit.show(real.write())
    said = capsys.readouterr().out
    assert "3.png: not the bytes" in said and "4.png: cannot be read" in said and "5.png: not the bytes" in said


def test_a_photograph_with_zeroed_bytes_still_decodes_and_is_told_by_its_digest(tmp_path, capsys):
    real, buffer = clean(tmp_path / "real", 9), io.BytesIO()
    Image.fromarray(lesion(400)).save(buffer, format="JPEG", quality=90)
    content = buffer.getvalue()
    real.add("zeroed.jpg", content, "train")
    path, middle = real.root / "zeroed.jpg", len(content) // 2
    path.write_bytes(content[:middle] + bytes(40) + content[middle + 40 :])
    assert images.load(path, 32).shape == (32, 32, 3)
    with pytest.raises(UserError, match="1 findings"):
        audit.show(real.write())
    assert f"{path}: not the bytes that the manifest names" in capsys.readouterr().out


def test_what_was_rejected_takes_no_part(tmp_path, capsys):
    real = clean(tmp_path / "real", 9)
    real.add("copy.png", disguised(lesion(2)), "train")
    real.records[-1] = replace(real.records[-1], rejected=("near_duplicate_of_evaluation",))
    audit.show(real.write())
    assert "nothing leaks: 9 images" in capsys.readouterr().out


def test_stages_are_told_in_one_line(tmp_path):
    real = clean(tmp_path / "real", 9)
    real.add("copy.png", disguised(lesion(2)), "train")
    with pytest.raises(
        UserError, match=r"near-duplicates on two sides: .*2\.png \(test\), .*copy\.png \(train\)"
    ) as told:
        audit.refuse([records.read(Path(real.write()))])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("image", ["../outside.png", "/outside.png", "a/../../outside.png", "link.png", ""])
def test_a_path_that_leaves_the_root_is_refused(tmp_path, image):
    real = clean(tmp_path / "real", 3)
    (tmp_path / "outside.png").write_bytes(images.encode_png(lesion(9)))
    (tmp_path / "real/link.png").symlink_to(tmp_path / "outside.png")
    real.records[1] = replace(real.records[1], image=image)
    with pytest.raises(UserError, match=r"line 3: "):
        audit.show(real.write())


def test_a_set_can_be_moved_whole(tmp_path, capsys):
    clean(tmp_path / "real", 3).write()
    shutil.move(tmp_path / "real", tmp_path / "elsewhere")
    audit.show(str(tmp_path / "elsewhere"))
    assert f"nothing leaks: 3 images in {tmp_path / 'elsewhere'}" in capsys.readouterr().out
