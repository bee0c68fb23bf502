"""What is written is read back equal, and nothing untrue or unsafe passes the door."""

import hashlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dermjax.data import records
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError

LABELS = ("benign", "malignant")


def record(**changes):
    base = {"image": "images/benign/00001.png", "sha256": "0" * 64, "label": "benign", "split": "train"}
    return Record(**{**base, "source": "phantom", "image_manipulation": "none", **changes})


def manifest(root, *of):
    return Manifest(labels=LABELS, root=root, records=of)


def lines(tmp_path, *objects):
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in objects) + "\n")
    return path


HEADER = {"dermjax_manifest": 1, "labels": list(LABELS), "root": "."}
LINE = {name: getattr(record(), name) for name in ("image", "sha256", "label", "split", "source", "image_manipulation")}

words = st.text(max_size=8)
free = words.filter(lambda word: not any(word in shapes for shapes in records.SHAPES.values()))
facts = st.dictionaries(free, words | st.integers() | st.floats(allow_nan=False, allow_infinity=False), max_size=3)
some_records = st.builds(
    record,
    image=st.from_regex(r"[a-zé\n ]{1,8}/[a-z0-9\"\\]{1,8}\.png", fullmatch=True),
    label=st.sampled_from(LABELS),
    split=st.sampled_from(records.SPLITS),
    source=words,
    lesion_id=words,
    patient_id=words,
    licence=words,
    attributes=facts,
    generation=facts,
    scores=st.dictionaries(words, st.integers() | st.floats(allow_nan=False, allow_infinity=False)),
    rejected=st.lists(words, max_size=3).map(tuple),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(many=st.lists(some_records, max_size=4, unique_by=lambda each: each.image))
def test_what_is_written_is_read_back_equal(tmp_path, many):
    whole = manifest(tmp_path.resolve(), *many)
    records.write(tmp_path / "manifest.jsonl", whole)
    assert records.read(tmp_path) == records.read(tmp_path / "manifest.jsonl") == whole


def test_the_first_line_is_the_header_the_contract_names(tmp_path):
    records.write(tmp_path / "manifest.jsonl", manifest(tmp_path, record()))
    assert json.loads((tmp_path / "manifest.jsonl").read_text().split("\n")[0]) == HEADER


def test_a_run_folder_can_be_moved_whole(tmp_path):
    (tmp_path / "run" / "curate").mkdir(parents=True)
    records.write(tmp_path / "run" / "curate" / "manifest.jsonl", manifest(tmp_path / "run" / "generate", record()))
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = records.read(tmp_path / "moved" / "curate")
    assert moved.unchecked_path(moved.records[0]) == tmp_path.resolve() / "moved/generate/images/benign/00001.png"


def test_images_far_from_the_manifest_have_an_absolute_root(tmp_path):
    (tmp_path / "runs" / "prepare").mkdir(parents=True)
    records.write(tmp_path / "runs" / "prepare" / "manifest.jsonl", manifest(tmp_path / "photographs", record()))
    header = json.loads((tmp_path / "runs" / "prepare" / "manifest.jsonl").read_text().split("\n")[0])
    assert header["root"] == str(tmp_path.resolve() / "photographs")


def test_a_disk_of_images_that_is_mounted_elsewhere_is_said_as_such(tmp_path):
    (tmp_path / "disk" / "moles" / "images" / "benign").mkdir(parents=True)
    (tmp_path / "disk" / "moles" / record().image).write_bytes(b"a mole")
    digest = hashlib.sha256(b"a mole").hexdigest()
    (tmp_path / "a" / "b").mkdir(parents=True)
    records.write(tmp_path / "a" / "b" / "manifest.jsonl", manifest(tmp_path / "disk" / "moles", record(sha256=digest)))
    (tmp_path / "disk").rename(tmp_path / "other")
    found = records.read(tmp_path / "a" / "b")
    with pytest.raises(
        UserError, match=r"manifest .*/a/b: the folder of its images, .*/disk/moles, is not there; bring"
    ):
        found.path(found.records[0])
    file = tmp_path / "a" / "b" / "manifest.jsonl"
    file.write_text(file.read_text().replace("/disk/moles", "/other/moles", 1))
    found = records.read(file)
    assert found.path(found.records[0]).read_bytes() == b"a mole"


def test_a_split_holds_its_kept_records_in_order(tmp_path):
    first, second = record(image="a.png"), record(image="b.png")
    rejected, other = record(image="c.png", rejected=("blank",)), record(image="d.png", split="test")
    assert manifest(tmp_path, first, rejected, other, second).split("train") == [first, second]


def test_the_same_classes_are_put_in_one_order_and_others_stay(tmp_path):
    manifest = Manifest(labels=("mel", "nv"), root=tmp_path, records=())
    assert manifest.in_order(("nv", "mel")).labels == ("nv", "mel")
    assert manifest.in_order(("nv", "bcc")) == manifest


def test_an_editor_that_adds_a_mark_and_carriage_returns_does_no_harm(tmp_path):
    text = "\r\n".join([json.dumps(HEADER), json.dumps(LINE), "", ""])
    (tmp_path / "manifest.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert records.read(tmp_path).records == (record(),)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"label": "mole"}, "'mole' is not in the header"),
        ({"image_manipulation": "altered"}, "unknown image_manipulation"),
        ({"image_manipulation": "synthetic", "split": "validation"}, "synthetic image in the validation split"),
        ({"image_manipulation": "synthetic", "split": "test"}, "synthetic image in the test split"),
        ({"image": "/etc/passwd"}, "not a path under"),
        ({"image": "../other/a.png"}, "not a path under"),
        ({"image": ""}, "not a path under"),
        ({"image": "a\0.png"}, "not a path under"),
    ],
)
def test_untrue_records_are_refused_on_both_sides(tmp_path, change, told):
    with pytest.raises(UserError, match=f"line 2: .*{told}"):
        records.read(lines(tmp_path, HEADER, {**LINE, **change}))
    (tmp_path / "manifest.jsonl").unlink()
    with pytest.raises(UserError, match=told):
        records.write(tmp_path / "manifest.jsonl", manifest(tmp_path, record(**change)))
    assert not list(tmp_path.iterdir())


def test_a_link_out_of_the_root_is_refused(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "root" / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match=r"line 2: a.png: a link that leaves"):
        records.read(lines(tmp_path, {**HEADER, "root": "root"}, {**LINE, "image": "a.png"}))


def test_a_root_that_is_itself_a_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    assert records.read(lines(tmp_path, {**HEADER, "root": "root"}, LINE)).root == tmp_path.resolve() / "disk"


def test_all_faulty_fields_are_named_at_once(tmp_path):
    faulty = {**{name: value for name, value in LINE.items() if name != "sha256"}, "colour": "red", "scores": [1]}
    with pytest.raises(UserError, match=r"line 2: .*unknown colour, missing sha256, misshapen scores"):
        records.read(lines(tmp_path, HEADER, faulty))


@pytest.mark.parametrize(
    "header, told",
    [
        (LINE, "line 1: no header"),
        ({**HEADER, "dermjax_manifest": 9}, "line 1: of version 9, and this dermjax reads 1; update dermjax"),
        ({**HEADER, "dermjax_manifest": True}, "line 1: no header"),
        ('{"dermjax_manifest": 1, "labels": ["a"], "labels": ["b"], "root": "."}', "labels stands there twice"),
        ({**HEADER, "labels": ["a", "a"]}, "line 1: labels"),
        ({**HEADER, "labels": "benign"}, "line 1: labels"),
        ({**HEADER, "root": None}, "line 1: root"),
        ("[]", "line 1: not a JSON object"),
        ("", "line 1: not JSON"),
    ],
)
def test_a_header_out_of_shape_is_refused(tmp_path, header, told):
    with pytest.raises(UserError, match=told):
        records.read(lines(tmp_path, header))


def test_a_line_that_is_not_json_is_named_by_its_number(tmp_path):
    with pytest.raises(UserError, match=r"manifest.jsonl line 3: not JSON"):
        records.read(lines(tmp_path, HEADER, LINE, '{"image": '))


def test_an_image_may_stand_there_once(tmp_path):
    with pytest.raises(UserError, match=r"00001.png stands there twice"):
        records.read(lines(tmp_path, HEADER, LINE, LINE))


@pytest.mark.parametrize(
    "image", ["./images/benign/00001.png", "images//benign/00001.png", "images/./benign/00001.png"]
)
def test_an_image_has_one_spelling(tmp_path, image):
    path = lines(tmp_path, HEADER, LINE, LINE | {"image": image, "split": "test"})
    with pytest.raises(UserError, match=r"line 3: .*: write it as 'images/benign/00001\.png'"):
        records.read(path)


def test_a_manifest_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}.*no such file"):
        records.read(tmp_path)
    (tmp_path / "manifest.jsonl").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    with pytest.raises(UserError, match=r"not UTF-8"):
        records.read(tmp_path)


def test_a_link_to_itself_does_no_harm(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    assert records.read(lines(tmp_path, HEADER, {**LINE, "image": "a.png"})).records[0].image == "a.png"


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("generation", {"prompt": ["a", "b"]}, "generation.prompt"),
        ("generation", {"prompt": None}, "generation.prompt"),
        ("generation", {"seed": True}, "generation.seed"),
        ("generation", {"words": [], "sampler": 3}, "generation.sampler generation.words"),
        ("generation", {"guidance": "7.5"}, "generation.guidance"),
        ("attributes", {"verdict": {"keep": True, "by": "me"}}, "attributes.verdict"),
        ("attributes", {"verdict": {"keep": "yes", "by": "me", "why": ""}}, "attributes.verdict"),
        ("attributes", {"verdict": True}, "attributes.verdict"),
        ("attributes", {"age": [50]}, "attributes.age"),
        ("attributes", {"skin_tone": {"group": ["dark"]}}, "attributes.skin_tone"),
        ("attributes", {"decoded": [["turned upright"]]}, "attributes.decoded"),
        ("generation", {"guidance_interval": ["0.2", 1]}, "generation.guidance_interval"),
        ("attributes", {"weight": "2"}, "attributes.weight"),
        ("attributes", {"mask": {"image": "m.png"}}, "attributes.mask"),
        ("scores", {"training_copy": "60"}, "scores.training_copy"),
        ("scores", {"training_copy": True}, "scores.training_copy"),
    ],
)
def test_what_stages_compute_with_is_of_its_type_or_a_line_with_its_number(tmp_path, field, value, told):
    path = lines(tmp_path, HEADER, LINE, LINE | {"image": "images/benign/2.png", field: value})
    with pytest.raises(UserError, match=rf"line 3: .*fields do not fit a record: misshapen {told}$"):
        records.read(path)
    fine = record(**{field: value})
    with pytest.raises(UserError, match="misshapen"):
        records.write(tmp_path / "w.jsonl", manifest(tmp_path, fine))
    assert not (tmp_path / "w.jsonl").exists()


@pytest.mark.parametrize("digest", ["", "0" * 63, "G" * 64, "A" * 64])
def test_a_digest_that_is_none_is_refused(tmp_path, digest):
    with pytest.raises(UserError, match=r"line 2: .*is no SHA-256"):
        records.read(lines(tmp_path, HEADER, LINE | {"sha256": digest}))


@pytest.mark.parametrize("mask", ["../m.png", "/etc/passwd", "", "out/m.png"])
def test_a_mask_out_of_the_root_is_refused(tmp_path, mask):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "out").symlink_to("/etc")
    told = {"mask": {"image": mask, "sha256": "0" * 64}}
    with pytest.raises(UserError, match=r"line 2: .*(not a path under|leaves) the image root"):
        records.read(lines(tmp_path, HEADER | {"root": "images"}, LINE | {"attributes": told}))


@pytest.mark.parametrize("age, band", [(0, "0-29"), (29.9, "0-29"), (30, "30-44"), (60, "60-74"), (85, "75+")])
def test_bands_of_age(age, band):
    assert records.age_band(age) == band


def test_a_share_of_the_places_is_read_alone(tmp_path):
    whole = manifest(tmp_path.resolve(), *(record(image=f"{number}.png") for number in range(9)))
    path = tmp_path / "manifest.jsonl"
    records.write(path, whole)
    assert records.count(path) == 9
    blocks = [records.read(tmp_path, range(begin, begin + 3)).records for begin in (0, 3, 6)]
    assert sum(blocks, ()) == whole.records
    labels, root, found = records.stream(path)
    assert (labels, root, tuple(found)) == (whole.labels, whole.root, whole.records)


@pytest.mark.parametrize("text", ["", "\n", " \n\n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path, text):
    (tmp_path / "manifest.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.jsonl line 1: not JSON"):
        records.read(tmp_path)


@pytest.mark.parametrize("line, told", [
    (json.dumps(LINE | {"scores": {"blur": 0}}).replace("0}", "1e999}"), "1e999 is beyond all numbers"),
    (json.dumps(LINE | {"attributes": {"note": "x"}}).replace('"x"', "-1e999"), "is beyond all numbers"),
    (json.dumps(LINE | {"scores": {"blur": 10**400}}), "is beyond all numbers"),
    (json.dumps(LINE).replace('"split"', '"split": "test", "split"'), "split stands there twice"),
    (json.dumps(LINE | {"generation": {"prompt": "a \ud800 mole"}}), "half a surrogate pair, which is no text"),
    (json.dumps(LINE | {"source": "\udfff"}), "half a surrogate pair, which is no text"),
])  # fmt: skip
def test_what_nobody_could_write_again_is_refused(tmp_path, line, told):
    """A stage would end in a traceback after all of its work, when it writes the record or a page."""
    path = lines(tmp_path, HEADER, line)
    with pytest.raises(UserError, match=f"line 2: not JSON .*{told}") as error:
        records.read(path)
    assert "\n" not in str(error.value)


def test_names_that_are_no_unicode_are_kept(tmp_path):
    name = b"n\xe6vus/a.png".decode("utf-8", "surrogateescape")
    records.write(tmp_path / "manifest.jsonl", manifest(tmp_path.resolve(), record(image=name)))
    assert records.read(tmp_path).records[0].image == name
