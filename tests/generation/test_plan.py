"""Plans: turns, seeds, batches, the shares of words, quotas, and what they refuse."""

import runpy
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from dermjax.data import records
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.generation.plan import Plan, Quota, assign
from dermjax.sampling import init_images, requests

PLAN = {
    "prompts": {"malignant": ("a malignant mole",), "benign": ("a benign mole", "a benign nevus")},
    "words": {},
    "quotas": {},
    "match": "",
    "images_of": {},
    "negative_prompt": "hair",
    "contrast": False,
    "samplers": ("Euler", "Euler a", "PLMS"),
    "images_per_class": 12,
    "steps": 20,
    "spacing": "",
    "guidance": 2,
    "guidance_rescale": 0,
    "guidance_interval": (),
    "deep_cache": 1,
    "seed": 7,
}
CONFIG = Path(__file__).parents[2] / "configs" / "generate.py"
CHOICES = {
    "sampler": {"Euler": 1, "Euler a": 1, "PLMS": 1},
    "number": {"one": 2, "two": 1, "three": 1},
    "size": {"tiny": 1, "small": 1, "medium": 1, "large": 1},
    "tone": {"pale": 1, "light": 1, "intermediate": 1, "tan": 1, "dark": 1},
    "colour": {"": 2, "brown": 1, "black": 0.5, "never": 0},
}
SHARES = {gap: {word: each / sum(words.values()) for word, each in words.items()} for gap, words in CHOICES.items()}


def test_samplers_and_prompts_take_turns():
    asked = Plan(**PLAN).requests()
    assert len(asked) == 24 and [r.label for r in asked] == 12 * ["benign"] + 12 * ["malignant"]
    assert [r.sampler for r in asked[:4]] == ["Euler", "Euler a", "PLMS", "Euler"]
    every = {(r.prompt, r.sampler) for r in asked if r.label == "benign"}
    assert len(every) == 6, "every prompt meets every sampler"
    assert asked[0].image == "images/benign/00000.png" and asked[23].image == "images/malignant/00011.png"


def test_samplers_are_named_as_in_the_table():
    asked = Plan(**PLAN | {"samplers": ("EulerAncestralDiscreteScheduler", "dpmpp_2m karras")}).requests()
    assert {r.sampler for r in asked} == {"Euler a", "DPM++ 2M Karras"}


def test_with_contrast_each_class_is_led_away_from_the_prompts_of_the_others_in_turns():
    asked = Plan(**PLAN | {"contrast": True, "negative_prompt": ""}).requests()
    assert {r.negative for r in asked if r.label == "benign"} == {"a malignant mole"}
    of_malignant = [r.negative for r in asked if r.label == "malignant"]
    assert of_malignant == 2 * (3 * ["a benign mole"] + 3 * ["a benign nevus"])


WORDS = {"number": {"one": 1, "two": 1}, "size": {"": 1, "large": 1}, "tone": {"pale": 1, "dark": 3}}
GAPS = {
    "benign": ("[{number} ][{size} ]{label} mole(s)[, {tone} skin]",),
    "malignant_b": ("[{number} ][{size} ]{label} mole(s)[, {tone} skin]",),
}
WORDED = PLAN | {"prompts": GAPS, "words": WORDS, "samplers": ("Euler",), "images_per_class": 40}


def test_words_fill_the_gaps_of_prompts_and_are_noted():
    asked = Plan(**WORDED).requests()
    by_prompt = {r.prompt: dict(r.words) for r in asked if r.label == "malignant_b"}
    assert len(by_prompt) == 8
    assert by_prompt["two large malignant b moles, dark skin"] == {"number": "two", "size": "large", "tone": "dark"}
    assert by_prompt["one malignant b mole, pale skin"] == {"number": "one", "tone": "pale"}
    assert Counter(dict(r.words)["tone"] for r in asked) == {"pale": 20, "dark": 60}
    assert set(asked) < set(Plan(**WORDED | {"images_per_class": 90}).requests())


def test_classes_have_the_numbers_that_they_are_asked_for_and_the_same_words():
    asked = Plan(**WORDED | {"images_of": {"malignant_b": 7}}).requests()
    assert Counter(r.label for r in asked) == {"benign": 40, "malignant_b": 7}
    benign, malignant = ([r.words for r in asked if r.label == label] for label in GAPS)
    assert benign[:7] == malignant
    assert Plan(**WORDED | {"images_of": {"malignant_b": 0}}).requests() == [r for r in asked if r.label == "benign"]


def test_contrast_leads_to_the_words_as_well_as_to_the_class():
    asked = Plan(**WORDED | {"contrast": True, "negative_prompt": ""}).requests()
    assert {r.negative for r in asked if r.label == "benign"} == {"malignant b mole"}


def test_a_negative_prompt_has_gaps_too():
    asked = Plan(**WORDED | {"negative_prompt": "hair[, not {size}]"}).requests()
    assert {r.negative for r in asked} == {"hair", "hair, not large"}


def test_quotas_are_met_in_the_class_that_they_name():
    quotas = {"rare": {"images": 15, "label": "malignant_b", "tone": "pale", "size": "large"}}
    asked = Plan(**WORDED | {"quotas": quotas}).requests()
    of = Counter(r.label for r in asked if {("tone", "pale"), ("size", "large")} <= set(r.words))
    assert of["malignant_b"] == 15 and abs(of["benign"] - 5) <= 1
    everywhere = {"rare": {"images": 15, "tone": "pale"}}
    of = Counter(r.label for r in Plan(**WORDED | {"quotas": everywhere}).requests() if ("tone", "pale") in r.words)
    assert of == {"benign": 15, "malignant_b": 15}


@pytest.fixture
def real(tmp_path):
    """A manifest of 30 benign images, two thirds of them from the back, and 10 malignant ones, half from the face."""
    found = []
    for n in range(44):
        label = "malignant_b" if n >= 30 else "benign"
        site = ("back", "back", "arm")[n % 3] if label == "benign" else ("face", "")[n % 2]
        more = {"split": "test" if n >= 40 else "train", "attributes": {"site": site, "skin_tone": {"group": "tan"}}}
        named = {
            "image": f"{n}.png",
            "sha256": f"{n:064x}",
            "label": label,
            "source": "s",
            "image_manipulation": "none",
        }
        found.append(Record(**named, **more))
    records.write(tmp_path / "manifest.jsonl", Manifest(labels=tuple(GAPS), root=tmp_path, records=tuple(found)))
    return str(tmp_path)


def test_a_match_asks_for_what_real_images_have(real):
    prompts = {label: ("{label} mole[, {site}], {skin_tone.group} skin[, {size}]",) for label in GAPS}
    settings = WORDED | {"prompts": prompts, "words": {"size": WORDS["size"]}, "match": real, "images_per_class": 60}
    asked = Plan(**settings).requests()
    assert all(("skin_tone.group", "tan") in r.words and "tan skin" in r.prompt for r in asked)
    of = Counter((r.label, dict(r.words).get("site")) for r in asked)
    assert of == {("benign", "back"): 40, ("benign", "arm"): 20, ("malignant_b", "face"): 30, ("malignant_b", None): 30}
    assert Counter(dict(r.words).get("size") for r in asked) == {"large": 60, None: 60}
    begins_at = init_images.in_turns(records.read(Path(real)), "benign")
    sites = [dict(r.words)["site"] for r in asked if r.label == "benign"]
    assert sites[: len(begins_at)] == [record.attributes["site"] for record in begins_at], "as init images take turns"
    with pytest.raises(UserError, match=r"nothing fills \{site\}; 3\d\.png has none; put its clause in brackets"):
        Plan(**settings | {"prompts": {label: ("{label}, {site}[{size}]",) for label in GAPS}}).requests()
    with pytest.raises(UserError, match="no training image is labelled 'nevus'"):
        Plan(**settings | {"prompts": {"nevus": ("{site}[{size}]",)}}).requests()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": {}}, r"plan\.prompts: nothing fills \{number\}; there are \{label\}; plan\.match knows more"),
        ({"negative_prompt": "{site}"}, r"nothing fills \{site\}; there are \{label\}, \{number\}"),
        ({"words": WORDS | {"site": {"arm": 1}}}, r"plan\.words\.site: no prompt has \{site\}"),
        ({"words": WORDS | {"sampler": {"x": 1}}}, r"plan\.words\.sampler: this name is taken"),
        ({"words": WORDS | {"tone": {"pale": -1, "dark": 2}}}, r"plan\.words\.tone\.pale = -1: a weight is 0 or more"),
        ({"words": WORDS | {"tone": {"pale": 0}}}, r"plan\.words\.tone: no word has a weight above 0"),
        ({"quotas": {"a": {"tone": "dark"}}}, r"plan\.quotas\.a\.images: say how many"),
        (
            {"quotas": {"a": {"images": 3, "label": "nevus"}}},
            r"plan\.quotas\.a\.label = 'nevus': the classes are benign",
        ),
        ({"quotas": {"a": {"images": 3, "tone": "tan"}}}, r"plan\.quotas\.a\.tone = 'tan': plan\.words\.tone has pale"),
        ({"quotas": {"a": {"images": 3, "site": "arm"}}}, r"plan\.words has no such gap"),
        (
            {"quotas": {"a": {"images": 41, "tone": "dark"}}},
            r"plan\.quotas ask for 41 images of benign, the plan has 40",
        ),
        ({"images_of": {"nevus": 3}}, r"plan\.images_of\.nevus: plan\.prompts has no such class"),
        ({"images_of": {"benign": "ten"}}, r"plan\.images_of\.benign = 'ten': give a whole number"),
        ({"images_of": {"benign": -3}}, r"plan\.images_of\.benign = -3: give a whole number, 0 or more"),
        ({"images_of": {"benign": 2.5}}, r"plan\.images_of\.benign = 2\.5: give a whole number"),
        ({"words": WORDS | {"tone": {"pale": "much"}}}, r"plan\.words\.tone = \{'pale': 'much'\}: give each word a w"),
        ({"words": WORDS | {"tone": "pale"}}, r"plan\.words\.tone = 'pale': give each word a weight"),
        ({"quotas": {"a": 5}}, r"plan\.quotas\.a\.images: say how many"),
        ({"quotas": {"a": {"images": 2.5}}}, r"plan\.quotas\.a\.images: say how many"),
        (
            {"prompts": {label: ("{label} {size} mole[{number}][{tone}]",) for label in GAPS}},
            r"nothing fills \{size\}; put",
        ),
        ({"match": "nowhere"}, "manifest nowhere: no such file"),
    ],
)
def test_words_refused(change, message):
    with pytest.raises(UserError, match=message):
        Plan(**WORDED | change).requests()


def test_every_image_has_its_seed_also_in_a_larger_plan():
    asked = Plan(**PLAN).requests()
    assert sorted(r.seed for r in asked) == list(range(7, 31))
    assert set(asked) < set(Plan(**PLAN | {"images_per_class": 40}).requests())


def test_batches_are_divided_by_the_plan_alone():
    asked = Plan(**PLAN | {"images_per_class": 7}).requests()
    whole = requests.batches(asked, 4, lambda request: request.settings)
    assert sorted(r.image for batch in whole for r in batch) == sorted(r.image for r in asked)
    assert all(len(batch) <= 4 and len({(r.sampler, r.steps, r.guidance) for r in batch}) == 1 for batch in whole)


def test_long_prompts_have_batches_of_their_own():
    asked = Plan(**PLAN).requests()
    lengths = {request: 154 if request.label == "malignant" else 77 for request in asked}
    divided = requests.batches(asked, 24, lambda request: (request.settings, lengths[request]))
    assert all(len({lengths[r] for r in batch}) == 1 for batch in divided)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": {}}, "plan asks for nothing"),
        ({"images_per_class": 0}, "plan asks for nothing"),
        ({"samplers": ()}, "plan asks for nothing"),
        ({"prompts": {"benign": ()}}, r"plan\.prompts\.benign: not a list"),
        ({"prompts": {"benign": "a benign mole"}}, r"plan\.prompts\.benign: not a list"),
        ({"prompts": {"benign": (3, "a mole")}}, r"plan\.prompts\.benign: not a list"),
        ({"prompts": {"benign": ("",)}}, "prompt '': is without a word where it is filled; give words for the class"),
        ({"prompts": {"benign": ("a mole", " ")}}, "prompt ' ': is without a word where it is filled"),
        ({"prompts": {"../x": ("a mole",)}}, "label '../x' cannot name a folder"),
        ({"prompts": {"x" * 300: ("a mole",)}}, "cannot name a folder"),
        ({"prompts": {"a\0": ("a mole",)}}, "cannot name a folder"),
        ({"images_per_class": 10**9}, r"plan asks for 2,000,000,000 images; a plan has 10,000,000 at most"),
        ({"samplers": ("Euler b",)}, "sampler 'Euler b' is not known; did you mean one of: Euler, Euler a"),
        ({"steps": 0}, r"plan\.steps = 0"),
        ({"guidance": 0.5}, r"plan\.guidance = 0\.5"),
        ({"samplers": ("Euler", "PLMS"), "spacing": "karras"}, "spacing 'karras' is not for this sampler, which walks"),
        ({"spacing": "zigzag"}, "spacing 'zigzag' is not one of leading"),
        ({"guidance_rescale": 1.5}, r"plan\.guidance_rescale = 1\.5: give 0"),
        ({"guidance_interval": (5, 1)}, r"plan\.guidance_interval = \(5\.0, 1\.0\): give two rising sigmas"),
        ({"deep_cache": 0}, r"plan\.deep_cache = 0: give 1"),
        ({"contrast": True}, r"plan\.contrast takes the other classes' prompts: leave negative_prompt empty"),
        ({"contrast": True, "negative_prompt": "", "prompts": {"benign": ("a mole",)}}, "name two classes"),
        ({"prompts": {3: ("a mole",)}}, "label 3 cannot name a folder"),
        ({"prompts": {"benign": ("a {label mole",)}}, "prompt 'a {label mole': a bracket is open; close it"),
        ({"prompts": {"benign": ("a mole]",)}}, "a bracket is open; close it"),
        ({"prompts": {"benign": ("a {skin tone} mole",)}}, r"a gap is \{name\}"),
        ({"negative_prompt": "[hair"}, "a bracket is open; close it"),
        ({"guidance": 1}, r"plan\.negative_prompt does nothing at plan\.guidance = 1; give more"),
        ({"guidance": 1.0, "negative_prompt": "", "contrast": True}, r"plan\.contrast does nothing"),
        ({"guidance": 1.0, "negative_prompt": "", "guidance_rescale": 0.7}, r"plan\.guidance_rescale does nothing"),
        ({"guidance": 1, "negative_prompt": "", "guidance_interval": (0.1, 5)}, r"guidance_interval does nothing"),
        ({"seed": -1}, r"plan\.seed = -1"),
        ({"seed": 2**32 - 5}, r"plan\.seed = 4294967291: the seeds run to"),
    ],
)
def test_refused(change, message):
    with pytest.raises(UserError, match=message):
        Plan(**PLAN | change).requests()


def preset(variant):
    """The requests of a variant of the config."""
    settings = runpy.run_path(str(CONFIG))["get_config"](variant).plan.to_dict()
    assert settings.pop("batch") >= 8
    return Plan(**settings).requests()


@pytest.mark.parametrize(
    ("variant", "images"),
    [(None, 6000), ("paper", 6000), ("released", 200), ("balanced_tones", 6000), ("tiny", 16), ("demo", 192)],
)
def test_the_config_s_plans(variant, images):
    asked = preset(variant)
    assert len(asked) == images and Counter(r.label for r in asked) == {"benign": images / 2, "malignant": images / 2}


def test_balanced_tones_are_balanced_in_each_class_with_each_sampler():
    of = Counter((r.label, r.sampler, dict(r.words)["tone"]) for r in preset("balanced_tones"))
    assert len(of) == 2 * 3 * 5 and all(abs(count - 200) <= 3 for count in of.values())
    of = Counter((r.label, dict(r.words)["tone"]) for r in preset("balanced_tones"))
    assert all(abs(count - 600) <= 1 for count in of.values())


def test_released_samplers_have_their_shares():
    of = Counter(r.sampler for r in preset("released"))
    published = {"Euler a": 109, "DPM++ 2M SDE Karras": 43, "Euler": 25, "Heun": 22, "DPM++ 2S a": 1}
    assert all(abs(of[name] - count) <= 2 for name, count in published.items())


def test_an_unknown_variant_is_named():
    known = "paper, released, balanced_tones, tiny, training, demo"
    with pytest.raises(ValueError, match=f"no variant 'big'; it has: {known}"):
        runpy.run_path(str(CONFIG))["get_config"]("big")


def off(dealt, **words):
    """How many images the words are away from their share of the deal."""
    share = 1.0
    for gap, word in words.items():
        share *= SHARES[gap][word]
    return abs(sum(all(each[gap] == word for gap, word in words.items()) for each in dealt) - share * len(dealt))


@pytest.mark.parametrize("count", [1, 7, 60, 500])
def test_words_and_pairs_have_their_shares_at_every_length(count):
    dealt = assign(CHOICES, (), count)
    assert max(off(dealt, **{gap: word}) for gap in CHOICES for word in CHOICES[gap]) <= 2
    pairs = [(g, w, h, v) for g, h in combinations(CHOICES, 2) for w in CHOICES[g] for v in CHOICES[h]]
    assert max(off(dealt, **{g: w, h: v}) for g, w, h, v in pairs) <= 3


def test_every_combination_is_met():
    dealt = assign({gap: CHOICES[gap] for gap in ("sampler", "number", "tone")}, (), 120)
    of = Counter(tuple(each.values()) for each in dealt)
    assert len(of) == 3 * 3 * 5 and max(of.values()) <= 6, "at most 4 of them are due"


def test_a_longer_deal_begins_with_the_shorter_one():
    assert assign(CHOICES, (), 100)[:40] == assign(CHOICES, (), 40)


def test_equal_words_of_a_single_gap_take_turns():
    assert [each["sampler"] for each in assign({"sampler": CHOICES["sampler"]}, (), 7)] == [
        "Euler", "Euler a", "PLMS", "Euler", "Euler a", "PLMS", "Euler",
    ]  # fmt: skip


def test_quotas_come_first_and_the_rest_makes_up_for_them():
    dealt = assign(CHOICES, (Quota({"tone": "dark", "size": "large"}, 30), Quota({"colour": "never"}, 5)), 300)
    assert all((each["tone"], each["size"]) == ("dark", "large") for each in dealt[:30])
    assert sum(each["colour"] == "never" for each in dealt) == 5
    assert max(off(dealt, tone=tone) for tone in CHOICES["tone"]) <= 3, "60 of each tone all the same"
    assert max(off(dealt, size=size) for size in CHOICES["size"]) <= 3


def test_a_word_without_weight_is_never_dealt():
    assert all(each["colour"] != "never" for each in assign(CHOICES, (), 300))
