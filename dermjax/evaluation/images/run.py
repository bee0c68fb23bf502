"""`evaluate`, variant images: a set of synthetic images against real ones -> results.json, report.html, a line.

real manifest + synthetic manifest -> features of a frozen network -> fidelity, copies, label, use, shortcuts, tones
tuned model -> what it gives away of its training images
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from dermjax.data import augmentation, images, records
from dermjax.data.images import from_model
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.evaluation import fairness, features, findings, intervals
from dermjax.evaluation.features import FeatureExtractor
from dermjax.evaluation.images import fidelity, membership, memorisation, probe, report, shortcuts
from dermjax.evaluation.images.fidelity import Fidelity
from dermjax.evaluation.images.membership import Attack
from dermjax.evaluation.intervals import Bootstrap, Estimate, Fold
from dermjax.evaluation.predictions import Predictions
from dermjax.progress import cost, say
from dermjax.run_folder import write_atomically
from dermjax.weights import model_files

HELD_OUT = ("validation", "test")  # splits whose images the generator has not seen
BOTH = "training + synthetic"
EVERY = "all"  # the name of the set of all classes
KNOWN_COPIES = 300  # training images that are altered, to measure how many copies are found
PAIRS = 12  # nearest pairs that the page shows


@dataclass(frozen=True)
class Sets:
    """The images that are compared, and what the network sees in them: float32 [N, D] by set."""

    real: Manifest
    synthetic: Manifest
    records: dict[str, list[Record]]  # "training", "validation", "test", "synthetic"
    features: dict[str, np.ndarray]

    def classes(self, name: str) -> np.ndarray:
        """The class of each image of a set, int [N]."""
        return np.array([self.real.labels.index(record.label) for record in self.records[name]], int)

    def names(self, name: str) -> list[str]:
        """The path of each image of a set."""
        return [record.image for record in self.records[name]]

    def manifest(self, name: str) -> Manifest:
        """The manifest that a set is of."""
        return self.synthetic if name == "synthetic" else self.real


def run(config: ConfigDict, workdir: Path) -> None:
    """Compares the kept synthetic images of a manifest with the real ones that their generator was tuned on.

    Features are kept in the workdir; the rest is cheap and done anew in every call.
    """
    real, synthetic = (records.read_named(config[key], key) for key in ("real", "synthetic"))
    chosen = select(real, synthetic)
    network = features.read(config.features)
    if network is None:
        raise UserError("config.features: no network; give a folder of DINOv2, another ViT or MobileNetV2")
    number = sum(map(len, chosen.values()))
    cost("evaluate", images=number, seconds=number * 0.06)
    folder = workdir / "features"
    seen = {
        name: network.features(synthetic if name == "synthetic" else real, each, folder=folder)
        for name, each in chosen.items()
    }
    sets = Sets(real, synthetic, chosen, seen)
    training_mirrored = network.features(real, chosen["training"], mirrored=True, folder=folder)
    bootstrap = config.bootstrap.to_dict()
    results = {
        "extractor": {"folder": Path(config.features).name, "digest": network.digest},
        "images": {name: dict(Counter(record.label for record in each)) for name, each in chosen.items()},
        "fidelity": {name: asdict(each) for name, each in compare(sets, config.seed).items()},
        "copies": copies(sets, network, training_mirrored, config.seed),
        "use": use(sets, bootstrap),
        "shortcuts": find_shortcuts(sets, bootstrap, config.seed),
        "tones": tones(sets),
        "membership": membership_of(sets, config) if config.model else None,
    }
    line = summary(config.name or workdir.name, results)
    write_atomically(workdir / "results.json", json.dumps(results | {"line": line}, indent=2, default=asdict))
    write_atomically(workdir / "report.html", report.page(config.title, sets, results, line, config.gallery))
    for row in report.sentences(results):
        say(f"evaluate: {row}")
    say(f"evaluate: the report is {workdir / 'report.html'}")


def select(real: Manifest, synthetic: Manifest) -> dict[str, list[Record]]:
    """The records of each set.

    Raises:
      UserError: classes differ, a set or a class of it is empty, or an image stands in both manifests.
    """
    if real.labels != synthetic.labels:
        raise UserError(f"config.synthetic: classes {synthetic.labels} are not the real ones, {real.labels}")
    chosen = {
        "training": [record for record in real.split("train") if not record.synthetic],
        **{split: real.split(split) for split in HELD_OUT},
        "synthetic": [record for record in synthetic.split("train") if record.synthetic],
    }
    if not chosen["synthetic"]:
        raise UserError("config.synthetic: no kept synthetic image; give the manifest of `generate` or `curate`")
    for name in ("training", "test", "synthetic"):
        if absent := [label for label in real.labels if label not in {record.label for record in chosen[name]}]:
            raise UserError(f"the {name} images have none of the class {absent[0]}")
    known = {record.sha256: record.image for name in ("training", *HELD_OUT) for record in chosen[name]}
    if same := [record for record in chosen["synthetic"] if record.sha256 in known]:
        raise UserError(f"config.synthetic: {same[0].image} is the real image {known[same[0].sha256]}, and "
                        f"{len(same) - 1} others are real ones too")  # fmt: skip
    return chosen


def compare(sets: Sets, seed: int) -> dict[str, Fidelity]:
    """Fidelity of all images, and of each class that has enough of them."""
    reference = np.concatenate([sets.features[split] for split in HELD_OUT])
    of_reference = np.concatenate([sets.classes(split) for split in HELD_OUT])
    training, synthetic = sets.features["training"], sets.features["synthetic"]
    found = {EVERY: fidelity.compare(reference, training, synthetic, seed)}
    for number, label in enumerate(sets.real.labels):
        some = (
            reference[of_reference == number],
            training[sets.classes("training") == number],
            synthetic[sets.classes("synthetic") == number],
        )
        if min(map(len, some)) >= fidelity.LEAST:
            found[label] = fidelity.compare(*some, seed)
    return found


def copies(sets: Sets, network: FeatureExtractor, mirrored: np.ndarray, seed: int) -> dict:
    """How many synthetic images are copies of training images, and the nearest pairs.

    Copies that are known are training images, strongly augmented: other crop, light and colours.
    """
    training = features.unit(np.concatenate([sets.features["training"], mirrored]))
    held_out = features.unit(np.concatenate([sets.features[split] for split in HELD_OUT]))
    limit = memorisation.limit(features.nearest(held_out, training)[0], _altered(sets, network, training, seed))
    similarity, index = features.nearest(features.unit(sets.features["synthetic"]), training)
    beyond = similarity > limit.similarity
    order = np.argsort(-similarity)[:PAIRS]
    sources = sets.records["training"]
    return {
        "limit": asdict(limit),
        "share": memorisation.share_of_copies(int(beyond.sum()), len(beyond), limit),
        "beyond": intervals.share(int(beyond.sum()), len(beyond)),
        "pairs": [
            {"synthetic": sets.names("synthetic")[at], "training": sources[index[at] % len(sources)].image,
             "similarity": round(float(similarity[at]), 4)}
            for at in order
        ],
    }  # fmt: skip


def _altered(sets: Sets, network: FeatureExtractor, training: np.ndarray, seed: int) -> np.ndarray:
    """The likeness of altered training images to the nearest training image, which is hardly ever another one."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(sets.records["training"]), min(KNOWN_COPIES, len(sets.records["training"])), replace=False)
    sources = [sets.records["training"][at] for at in np.sort(chosen)]

    def alter(record: Record) -> np.ndarray:
        image = images.load(sets.real.path(record), features.SIZE)
        return from_model(augmentation.POLICIES["strong"](image, np.random.default_rng(int(record.sha256[:16], 16))))

    return features.nearest(features.unit(network.of_pixels(map(alter, sources), len(sources))), training)[0]


def use(sets: Sets, bootstrap: dict[str, int]) -> dict:
    """Label fidelity by a probe of real images, and what probes of each set, and of both, reach on real test images."""
    validation = sets.features["validation"], sets.classes("validation")
    judges = {
        name: probe.fit(sets.features[name], sets.classes(name), validation) for name in ("training", "synthetic")
    }
    both = probe.fit(
        np.concatenate([sets.features[name] for name in ("training", "synthetic")]),
        np.concatenate([sets.classes(name) for name in ("training", "synthetic")]),
        validation,
    )
    on_test = {
        name: probe.judge(each, sets.names("test"), sets.features["test"], sets.classes("test"))
        for name, each in {**judges, BOTH: both}.items()
    }
    asked = probe.judge(
        judges["training"], sets.names("synthetic"), sets.features["synthetic"], sets.classes("synthetic")
    )
    accuracy = intervals.share(int(on_test["training"].right.sum()), len(on_test["training"].right))
    label = intervals.share(int(asked.right.sum()), len(asked.right))
    return {
        "label_fidelity": label,
        "accuracy_on_real": accuracy,
        "fidelity_over_accuracy": label.value / accuracy.value,
        "label_fidelity_of": {
            name: intervals.share(int(asked.right[asked.labels == number].sum()), int((asked.labels == number).sum()))
            for number, name in enumerate(sets.real.labels)
        },
        "auroc_on_test": {name: _auroc(each, sets, "test", bootstrap) for name, each in on_test.items()},
        "subgroups": {
            name: fairness.compare(
                _fold(on_test[name], sets, "test", bootstrap, fairness.FIGURES), findings.subgroups(sets.real)
            )
            for name in ("training", BOTH)
        },
    }


def find_shortcuts(sets: Sets, bootstrap: dict[str, int], seed: int) -> dict:
    """By set: how well artefacts alone tell the label, AUROC, and how many images of each class have each."""
    found = {}
    for name in ("training", "synthetic"):
        measured = shortcuts.scores(sets.manifest(name), sets.records[name])
        said = shortcuts.predict(measured, sets.records[name], sets.real.labels, seed)
        found[name] = {
            "auroc": _auroc(said, sets, name, bootstrap) if said else None,
            "rates": shortcuts.rates(measured, sets.records[name], sets.real.labels),
        }
    return found


def tones(sets: Sets) -> dict[str, dict[str, int]]:
    """By set: how many images are of each tone of skin, as far as their manifest says."""
    return {
        name: dict(Counter(findings.record_subgroups(record).get("tone", "unknown") for record in each))
        for name, each in sets.records.items()
    }


def membership_of(sets: Sets, config: ConfigDict) -> dict[str, Attack]:
    """What the tuned model gives away of its training images, of all and of each class."""
    path = model_files.locate(config.model)
    prompts = prompts_of(config.prompts.to_dict(), path, sets.real.labels)
    sd, params = model_files.read(path)
    size = config.size or sd.size
    scores, classes = {}, {}
    for name, splits in {"members": ("training",), "others": HELD_OUT}.items():
        chosen = [record for split in splits for record in sets.records[split]]
        scores[name] = -membership.losses(sd, params, sets.real, chosen, prompts, size, config.draws)
        classes[name] = np.array([record.label for record in chosen])
    found = {EVERY: membership.attack(scores["members"], scores["others"], config.seed)}
    for label in sets.real.labels:
        pair = [scores[name][classes[name] == label] for name in ("members", "others")]
        if min(map(len, pair)) >= fidelity.LEAST:
            found[label] = membership.attack(*pair, config.seed)
    return found


def prompts_of(given: dict[str, str], model: Path, labels: tuple[str, ...]) -> dict[str, str]:
    """The prompt of each class: those given, else those that the model beside `model` was tuned with.

    Raises:
      UserError: a class has none, or one whose gaps an image would have to fill.
    """
    tuned = model.parent / "config.json"
    if not given and tuned.is_file():
        given = json.loads(tuned.read_text()).get("prompts", {})
    prompts = {label: given.get(label, "").replace("{label}", label) for label in labels}
    for label, prompt in prompts.items():
        if not prompt or "{" in prompt:
            raise UserError(f"config.prompts.{label} = {prompt!r}: give the prompt that the model was tuned with")
    return prompts


def summary(name: str, results: dict) -> dict:
    """The DermGenBench line of a set: what others can be ranked beside, a flat dict of numbers."""
    every, ceiling = (results["fidelity"][EVERY][key] for key in ("synthetic", "ceiling"))
    attacked = results["membership"]
    return {
        "name": name,
        "n": sum(results["images"]["synthetic"].values()),
        "extractor": results["extractor"]["digest"],
        **{key: _plain(every[key]) for key in every},
        **{f"{key}_of_real": _plain(ceiling[key]) for key in ceiling},
        "copies": _plain(results["copies"]["share"]),
        "label_fidelity_over_accuracy": round(results["use"]["fidelity_over_accuracy"], 4),
        "membership_auroc": _plain(attacked[EVERY].auroc) if attacked else None,
        "membership_found_at_0.01": _plain(attacked[EVERY].found[0.01]) if attacked else None,
        "auroc_trained_on_synthetic": _plain(results["use"]["auroc_on_test"]["synthetic"]),
        "auroc_trained_on_real": _plain(results["use"]["auroc_on_test"]["training"]),
    }


def _plain(estimate: Estimate | dict) -> float:
    value = estimate["value"] if isinstance(estimate, dict) else estimate.value
    return round(float(value), 4)


def _auroc(predictions: Predictions, sets: Sets, name: str, bootstrap: dict[str, int]) -> Estimate:
    return intervals.figures([_fold(predictions, sets, name, bootstrap, ("auroc",))], pooled=False)["auroc"]


def _fold(predictions: Predictions, sets: Sets, name: str, bootstrap: dict[str, int], figures: tuple[str, ...]) -> Fold:
    """Predictions whose intervals are over lesions, or over images where the manifest names none."""
    lesion_of = {record.image: record.lesion_id or record.image for record in sets.records[name]}
    drawn = Bootstrap(lesions=tuple(lesion_of[image] for image in predictions.images), **bootstrap)
    if len(sets.real.labels) > 2:
        figures = tuple(each for each in figures if each == findings.PRIMARY)
    return Fold(seeds=[predictions], classes=sets.real.labels, bootstrap=drawn, names=figures)
