"""`evaluate`, variant images: a set of synthetic images against real ones -> results.json, report.html, a line.

real manifest + synthetic manifest -> features of a frozen network -> fidelity, copies, label, use, shortcuts, tones
tuned model -> what it gives away of its training images
another set, or its finished evaluation -> beside it
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from dermjax import run_folder, sharding
from dermjax.data import augmentation, digests, images, records, templates
from dermjax.data.images import from_model
from dermjax.data.imaging import skin_tone
from dermjax.data.leaks import audit, training_images
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.evaluation import fairness, features, findings, intervals, metrics
from dermjax.evaluation.features import ALONE, HIDDEN, MIRRORED, FeatureExtractor
from dermjax.evaluation.images import adherence, fidelity, memorisation, probe, report, similarity, table
from dermjax.evaluation.images.fidelity import COMPARED_ONLY, Features, Fidelity
from dermjax.evaluation.images.memorisation import Attack, Scores
from dermjax.evaluation.intervals import CONSTANT, Estimate, Fold
from dermjax.evaluation.predictions import Predictions
from dermjax.models import clip_text, unet, vae
from dermjax.progress import cost, say
from dermjax.run_folder import write_atomically
from dermjax.training.disk_cache import load_or_compute
from dermjax.weights import model_files
from dermjax.weights.tensor_files import read_json

RESULTS, FEATURES = "results.json", "features"  # in the workdir
CLASS = "class"
TOKENS = (CLASS, "all")
HELD_OUT = ("validation", "test")  # splits whose images the generator was not tuned on
# measured on one core: DINOv2's features of an image, with those of its mirror image; a loss of derm-base
SECONDS_OF_FEATURES, SECONDS_OF_LOSS = 0.06, 0.02
BOTH = "training + synthetic"
UNKNOWN = "unknown"  # tone
EVERY = "all classes"
KNOWN_COPIES = 300  # training images that are altered, to measure how many copies are found
PAIRS = 12  # nearest pairs that the page shows


@dataclass(frozen=True)
class Sets:
    """The images that are compared, and what the network sees in them: float32 [N, D] by set.

    The first `leading` features are those that sets are compared by; None is all.
    """

    real: Manifest
    synthetic: Manifest
    records: dict[str, list[Record]]  # "training", "validation", "test", "synthetic"
    features: dict[str, np.ndarray]
    leading: int | None

    def classes(self, name: str) -> np.ndarray:
        """The class of each image of a set, int [N]."""
        return np.array([self.real.labels.index(record.label) for record in self.records[name]], int)

    def compared(self, *names: str) -> Features:
        """What sets, joined, are compared by."""
        values = np.concatenate([self.features[name][:, : self.leading] for name in names])
        return Features(values, np.concatenate([self.classes(name) for name in names]))

    def names(self, name: str) -> list[str]:
        """The path of each image of a set."""
        return [record.image for record in self.records[name]]

    def manifest(self, name: str) -> Manifest:
        """The manifest that a set is of."""
        return self.synthetic if name == "synthetic" else self.real


def run(config: ConfigDict, workdir: Path) -> None:
    """Compares the kept synthetic images of a manifest with the real ones that their generator was tuned on.

    Features and the tuned model's losses are kept in the workdir; the rest is done anew in every call.
    """
    real = records.read_named(config.real, "real")
    synthetic = records.read_named(config.synthetic, "synthetic").in_order(real.labels)
    chosen = select(real, synthetic, "synthetic")
    audit.refuse([real, synthetic])
    if config.tokens not in TOKENS:
        raise UserError(f"config.tokens = {config.tokens!r}: give one of {', '.join(TOKENS)}")
    network = features.read(config.features)
    if network is None:
        raise UserError("config.features: no network; give a folder of DINOv2, another ViT, MobileNetV2 or CLIP, or "
                        "the file of InceptionV3")  # fmt: skip
    model = model_files.locate(config.model) if config.model else None
    prompts = prompts_of(config.prompt, model, real.labels) if model else {}
    if model:
        check_model(model, config.size, chosen)
    table.read(config.table)  # what cannot be read is said before anything is computed
    compared = number_compared(real.labels, chosen)
    other = finished_evaluation(config, network, chosen, compared)
    rival = records.read_named(config.compare, "compare") if config.compare and not other else None
    if other:
        compared = np.array(other["fidelity"][EVERY]["counts"])
    if rival:
        rival = rival.in_order(real.labels)
        of_rival = select(real, rival, "compare")
        audit.refuse([real, rival])
        compared = np.minimum(compared, number_compared(real.labels, of_rival))
    number = sum(map(len, chosen.values())) + 2 * len(chosen["test"]) + (len(of_rival["synthetic"]) if rival else 0)
    asked = (len(chosen["training"]) + len(chosen["test"])) * config.draws if model else 0
    cost("evaluate", images=number, losses=asked, seconds=number * SECONDS_OF_FEATURES + asked * SECONDS_OF_LOSS)
    kept = workdir / FEATURES
    sets, results = measure(config, network, real, synthetic, chosen, compared, config.name or workdir.name, kept)
    attacked = membership_of(sets, model, prompts, config, kept) if model else None
    results = finished(results | {"membership": attacked})
    if rival:
        _, results_of_rival = measure(config, network, real, rival, of_rival, compared, rival.home.name, kept)
        other = finished(results_of_rival | {"membership": None})
    lines = table.append(config.table, results["line"])
    write_atomically(workdir / RESULTS, json.dumps(results, indent=2, allow_nan=False))
    page = report.page(config.title, sets, results, other, lines, config.gallery)
    write_atomically(workdir / "report.html", page)
    for row in report.sentences(results):
        say(f"evaluate: {row}")
    say(f"evaluate: the report is {workdir / 'report.html'}")


def measure(
    config: ConfigDict, network: FeatureExtractor, real: Manifest, synthetic: Manifest,
    chosen: dict[str, list[Record]], compared: np.ndarray, name: str, kept: Path,
) -> tuple[Sets, dict]:  # fmt: skip
    """The sets and every figure about the images, whatever model made them; features are kept in a folder.

    compared: how many images of each class have the figures of whole sets.
    """
    features_of = {
        each: network.features(synthetic if each == "synthetic" else real, some, folder=kept)
        for each, some in chosen.items()
    }
    leading = network.encoder.leading if config.tokens == CLASS else None
    sets = Sets(real, synthetic, chosen, features_of, leading)
    mirrored = network.features(real, chosen["training"], view=MIRRORED, folder=kept)
    masked = {view: network.features(real, chosen["test"], view=view, folder=kept) for view in (HIDDEN, ALONE)}
    bootstrap = config.bootstrap.to_dict()
    prompted = [record for record in synthetic.records if record.synthetic and record.generation.get("prompt")]
    return sets, {
        "name": name,
        "extractor": {
            "folder": Path(config.features).name,
            "digest": network.digest,
            "size": network.encoder.size,
            "features": sets.compared("test").values.shape[1],
            "tokens": config.tokens,
        },
        "digests": {
            "real": table.digest(_real(chosen)),
            "synthetic": table.digest(chosen["synthetic"]),
        },
        "images": {each: dict(Counter(record.label for record in some)) for each, some in chosen.items()},
        "fidelity": {label: asdict(each) for label, each in compare(sets, compared, config.seed).items()},
        "ms_ssim": {
            label: {each: similarity.within(sets.manifest(each),
                                            [record for record in chosen[each] if record.label == label], config.seed)
                    for each in ("training", "synthetic")}
            for label in real.labels
        },
        "copies": copies(sets, network, mirrored, config.seed),
        "use": use(sets, masked, bootstrap),
        "shortcuts": find_shortcuts(sets, bootstrap, config.seed),
        "adherence": adherence.compare(
            [record.generation["prompt"] for record in prompted], adherence.measure(synthetic, prompted)
        ),
        "tones": tones(sets),
    }  # fmt: skip


def finished(results: dict) -> dict:
    """The results as they stand in their file, plain numbers alone, with the line of the table."""
    return json.loads(json.dumps(results | {"line": summary(results)}, default=asdict, allow_nan=False))


def finished_evaluation(
    config: ConfigDict, network: FeatureExtractor, chosen: dict[str, list[Record]], compared: np.ndarray
) -> dict | None:
    """The results that config.compare holds; None where it is empty or a manifest.

    Raises:
      UserError: they are of another kind, by another network or version, of other real images or of more than are
        `compared`.
    """
    path = Path(config.compare, RESULTS)
    if not config.compare or not path.is_file():
        return None
    try:
        results = json.loads(path.read_text())
        report.figures(results)
        others = tuple(results["line"][key] for key in ("extractor", "tokens", "real", "version"))
        number = results["fidelity"][EVERY]["counts"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"config.compare {path}: not of evaluate.py:images as it is now; evaluate it again, or give "
                        "its manifest") from error  # fmt: skip
    own = (network.digest, config.tokens, table.digest(_real(chosen)), table.NUMERIC_VERSION)
    if others != own:
        raise UserError(f"config.compare {path}: measured by another network or version, or on other real images; give "
                        "its manifest instead")  # fmt: skip
    if np.any(number > compared):
        raise UserError(f"config.compare {path}: its figures are of {sum(number)} images, of which this set has "
                        f"{compared.sum()} in the shares of the real classes; give its manifest instead, and both are "
                        "measured on as many")  # fmt: skip
    return results


def _real(chosen: dict[str, list[Record]]) -> list[Record]:
    """The real images of all sets."""
    return [record for name in ("training", *HELD_OUT) for record in chosen[name]]


def select(real: Manifest, synthetic: Manifest, key: str) -> dict[str, list[Record]]:
    """The records of each set; key: of the config, that names the synthetic ones.

    Raises:
      UserError: classes differ, a set or a class of it is empty, or an image stands in both manifests.
    """
    if len(real.labels) < 2:
        raise UserError(f"config.real: one class, {real.labels[0]}; labels are told apart, so give two or more")
    if set(real.labels) != set(synthetic.labels):
        raise UserError(f"config.{key}: classes {synthetic.labels} are not the real ones, {real.labels}")
    chosen = {
        "training": [record for record in real.split("train") if not record.synthetic],
        **{split: real.split(split) for split in HELD_OUT},
        "synthetic": [record for record in synthetic.split("train") if record.synthetic],
    }
    if not chosen["synthetic"]:
        raise UserError(f"config.{key}: no kept synthetic image; give the manifest of `generate` or `curate`")
    for name in ("training", *HELD_OUT, "synthetic"):
        if absent := [label for label in real.labels if label not in {record.label for record in chosen[name]}]:
            raise UserError(f"the {name} images have none of the class {absent[0]}")
    known = {record.sha256: record.image for record in _real(chosen)}
    if same := [record for record in chosen["synthetic"] if record.sha256 in known]:
        raise UserError(f"config.{key}: {same[0].image} is the real image {known[same[0].sha256]}, and "
                        f"{len(same) - 1} others are real ones too")  # fmt: skip
    return chosen


def number_compared(labels: tuple[str, ...], chosen: dict[str, list[Record]]) -> np.ndarray:
    """How many images of each class are compared, see `fidelity.counts`."""
    classes = {name: np.array([labels.index(record.label) for record in some]) for name, some in chosen.items()}
    reference = np.concatenate([classes[split] for split in HELD_OUT])
    return fidelity.counts(reference, classes["training"], classes["synthetic"])


def compare(sets: Sets, number: np.ndarray, seed: int) -> dict[str, Fidelity]:
    """Fidelity of so many images of each class, and of each class by itself that has enough of them."""
    reference = sets.compared(*HELD_OUT)
    others = [sets.compared(name) for name in ("training", "synthetic")]
    results = {EVERY: fidelity.compare(reference, *others, seed, number)}
    for number, label in enumerate(sets.real.labels):
        some = [each.of(number) for each in (reference, *others)]
        if min(len(each.values) for each in some) >= fidelity.LEAST:
            results[label] = fidelity.compare(*some, seed)
    return results


def copies(sets: Sets, network: FeatureExtractor, mirrored: np.ndarray, seed: int) -> dict:
    """How many synthetic images are copies of training images, and the nearest pairs.

    Copies that are known are training images, mildly augmented: turned, mirrored, lit anew.
    """
    known = np.concatenate([sets.features["training"], mirrored])
    space = features.space_of(known)
    training = space.unit(known)
    held_out = space.unit(np.concatenate([sets.features[split] for split in HELD_OUT]))
    altered = space.unit(_altered(sets, network, seed))
    limit = memorisation.limit(*(features.nearest(each, training)[0] for each in (held_out, altered)))
    similarity, index = features.nearest(space.unit(sets.features["synthetic"]), training)
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


def _altered(sets: Sets, network: FeatureExtractor, seed: int) -> np.ndarray:
    """The features of altered training images."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(sets.records["training"]), min(KNOWN_COPIES, len(sets.records["training"])), replace=False)
    sources = [sets.records["training"][at] for at in np.sort(chosen)]

    def alter(record: Record) -> np.ndarray:
        image = images.load(sets.real.path(record), network.encoder.size)
        return from_model(augmentation.POLICIES["mild"](image, np.random.default_rng(int(record.sha256[:16], 16))))

    return network.of_pixels(map(alter, sources), len(sources))


def use(sets: Sets, masked: dict[str, np.ndarray], bootstrap: dict[str, int]) -> dict:
    """Label fidelity by a probe of real images, and what probes of each set, and of both, reach on real test images.

    masked: features of the test images without the lesion, and of it alone: whether they look at the lesion.
    """
    validation = sets.features["validation"], sets.classes("validation")
    judges = {
        name: probe.fit(sets.features[name], sets.classes(name), validation) for name in ("training", "synthetic")
    }
    both = probe.fit(
        np.concatenate([sets.features[name] for name in ("training", "synthetic")]),
        np.concatenate([sets.classes(name) for name in ("training", "synthetic")]),
        validation,
    )
    probes = {**judges, BOTH: both}

    def on(of_test: np.ndarray) -> dict[str, Predictions]:
        return {name: probe.judge(each, sets.names("test"), of_test, sets.classes("test"))
                for name, each in probes.items()}  # fmt: skip

    on_test = on(sets.features["test"])
    on_synthetic = probe.judge(
        judges["training"], sets.names("synthetic"), sets.features["synthetic"], sets.classes("synthetic")
    )
    # of both sets the mean over classes, as synthetic ones are often balanced and real ones never are
    folds = [_fold(each, sets, name, bootstrap, (findings.BALANCED,))
             for each, name in ((on_synthetic, "synthetic"), (on_test["training"], "test"))]  # fmt: skip
    label, accuracy = (intervals.figures([each], pooled=False)[findings.BALANCED] for each in folds)
    units = np.array(folds[0].bootstrap.units)
    return {
        "label_fidelity": label,
        "accuracy_on_real": accuracy,
        "begun_at_training_images": findings.begun_at(sets.records["synthetic"], sets.records["training"]),
        "fidelity_over_accuracy": label.value / accuracy.value if accuracy.value else None,
        "label_fidelity_of": {
            name: intervals.share_of_units(on_synthetic.right[rows], units[rows])
            for number, name in enumerate(sets.real.labels)
            for rows in [on_synthetic.labels == number]
        },
        "auroc_on_test": {name: _auroc(each, sets, "test", bootstrap) for name, each in on_test.items()},
        "auroc_masked": {
            view: {name: _auroc(each, sets, "test", bootstrap) for name, each in on(of_test).items()}
            for view, of_test in masked.items()
        },
        "subgroups": {
            name: fairness.compare(
                _fold(on_test[name], sets, "test", bootstrap, fairness.FIGURES), findings.subgroups(sets.real)
            )
            for name in ("training", BOTH)
        },
    }


def find_shortcuts(sets: Sets, bootstrap: dict[str, int], seed: int) -> dict:
    """By set: how well artefacts alone tell the label, AUROC, and how many images of each class have each."""
    results = {}
    for name in ("training", "synthetic"):
        measured = probe.artefact_scores(sets.manifest(name), sets.records[name])
        predicted = probe.predict_by_artefacts(measured, sets.records[name], sets.real.labels, seed)
        results[name] = {
            "auroc": _auroc(predicted, sets, name, bootstrap) if predicted else None,
            "rates": probe.artefact_rates(measured, sets.records[name], sets.real.labels),
        }
    return results


def tones(sets: Sets) -> dict[str, dict[str, int]]:
    """By set, how many images are of each tone of skin; a set of whose images no tone is known is left out."""
    tones_of = {name: Counter(map(_tone, each)) for name, each in sets.records.items()}
    return {name: dict(each) for name, each in tones_of.items() if set(each) != {UNKNOWN}}


def _tone(record: Record) -> str:
    """The tone by the angle that `prepare` measured on a photograph, or `curate` on any image."""
    angle = record.attributes.get("skin_tone", {}).get("ita", record.scores.get("ita"))
    return skin_tone.tone_group(angle) if angle is not None and skin_tone.is_skin(angle) else UNKNOWN


def check_model(model: Path, size: int, chosen: dict[str, list[Record]]) -> None:
    """Raises UserError for a model that was tuned on other images or has seen test images, for one that paints into
    pictures, whose loss is of more than the picture, and for a size that it cannot take; 0 is its own."""
    known = {each.record.sha256 for each in training_images.read(model.parent)}
    if known and not known >= {record.sha256 for record in chosen["training"]}:
        raise UserError(f"config.model {model}: it was tuned on other images than the training split of config.real")
    if seen := [record.image for record in chosen["test"] if record.sha256 in known]:
        raise UserError(f"config.model {model}: it has seen {len(seen)} test images of config.real, {seen[0]} first; "
                        "give the manifest that it was tuned on, whose test images it has not")  # fmt: skip
    sd = model_files.describe(model)
    if sd.configs["unet"]["in_channels"] != sd.configs["vae"]["latent_channels"]:
        raise UserError(f"config.model {model}: paints into pictures, and the attack is on models without a mask; give "
                        "another, or leave it out")  # fmt: skip
    if size % sd.factor:
        raise UserError(f"config.size = {size} is not a multiple of {sd.factor}")


def membership_of(
    sets: Sets, model: Path, prompts: dict[str, str], config: ConfigDict, kept: Path
) -> dict[str, Attack]:
    """What the tuned model gives away of its training images, of all and of each class.

    The others are test images alone: tuning may have chosen its end by validation images.
    """
    sd, params = model_files.read(model)
    size = config.size or sd.size
    scores = {}
    for name in ("training", "test"):
        chosen = sets.records[name]
        asked = "\n".join(f"{record.sha256} {record.label}" for record in chosen)  # the label names the prompt
        causes = {
            run_folder.SUBJECT: f"{name} images",
            run_folder.NUMERIC_VERSIONS: {
                "images": images.NUMERIC_VERSION,
                "losses": memorisation.NUMERIC_VERSION,
                "text_encoder": clip_text.NUMERIC_VERSION,
                "unet": unet.NUMERIC_VERSION,
                "vae": vae.NUMERIC_VERSION,
            },
            "arithmetic": sharding.arithmetic(sd.dtype, sharding.local_mesh()),
            "images": digests.of_text(asked),
            "model": model_files.digest(model),
            "prompts": prompts,
            "size": size,
            "draws": config.draws,
        }
        scores[name] = -load_or_compute(
            kept, "losses", causes,
            lambda chosen=chosen: memorisation.losses(sd, params, sets.real, chosen, prompts, size, config.draws),
        )  # fmt: skip

    def attack(rows: dict[str, np.ndarray]) -> Attack:
        units = {name: np.array(findings.units(sets.records[name])) for name in rows}
        pair = [Scores(scores[name][rows[name]], units[name][rows[name]]) for name in ("training", "test")]
        return memorisation.attack(*pair, config.seed)

    attacks = {EVERY: attack({name: np.arange(len(each)) for name, each in scores.items()})}
    for number, label in enumerate(sets.real.labels):
        rows = {name: np.flatnonzero(sets.classes(name) == number) for name in scores}
        if min(map(len, rows.values())) >= fidelity.LEAST:
            attacks[label] = attack(rows)
    return attacks


def prompts_of(template: str, model: Path, labels: tuple[str, ...]) -> dict[str, str]:
    """The prompt of each class: the template with the class for {label}, else what the model was tuned with.

    Raises:
      UserError: a class has none, or one whose gaps an image would have to fill.
    """
    tuned = model.parent / "config.json"
    given = dict.fromkeys(labels, template)
    if not template and tuned.is_file():
        given |= read_json(tuned).get("prompts") or {}
    prompts = {label: given[label].replace("{label}", templates.in_words(label)) for label in labels}
    for label, prompt in prompts.items():
        if not prompt or "{" in prompt:
            raise UserError(
                f"config.prompt: {prompt!r} is no prompt of {label}; give that of tuning, 'photo of a {{label}} mole'"
            )
    return prompts


def summary(results: dict) -> dict:
    """The DermGenBench line of a set: what others can be ranked beside, a flat dict of numbers."""
    every, ceiling = (results["fidelity"][EVERY][key] for key in ("synthetic", "ceiling"))
    attacked, auroc = results["membership"], results["use"]["auroc_on_test"]
    line = {
        "name": results["name"],
        "n": sum(results["images"]["synthetic"].values()),
        "n_compared": sum(results["fidelity"][EVERY]["counts"]),
        "version": table.NUMERIC_VERSION,
        "extractor": results["extractor"]["digest"],
        **{key: results["extractor"][key] for key in ("tokens", "features")},
        **results["digests"],
    }
    for suffix, each in (("", every), ("_of_real", ceiling)):
        line |= {f"{key}{suffix}": round(value["value"], 4) if key in COMPARED_ONLY else _plain(value)
                 for key, value in each.items()}  # fmt: skip
    return line | {
        "copies": _plain(results["copies"]["share"]),
        "label_fidelity": _plain(results["use"]["label_fidelity"]),
        "accuracy_on_real": _plain(results["use"]["accuracy_on_real"]),
        "membership_auroc": _plain(attacked[EVERY].auroc) if attacked else None,
        "membership_found_at_0.01": _plain(attacked[EVERY].found[0.01]) if attacked else None,
        "auroc_trained_on_synthetic": _plain(auroc["synthetic"]),
        "auroc_trained_on_real": _plain(auroc["training"]),
        "auroc_trained_on_both": _plain(auroc[BOTH]),
    }


def _plain(estimate: Estimate | dict) -> float | None:
    """The value of an estimate, None where it may mean nothing: too few images give no interval, nor does what cannot
    tell. A perfect figure has none either, as its resamples do not differ, and means what it says."""
    each = estimate if isinstance(estimate, dict) else asdict(estimate)
    known = each["low"] is not None or each["note"] == CONSTANT
    return round(float(each["value"]), 4) if known else None


def _auroc(predictions: Predictions, sets: Sets, name: str, bootstrap: dict[str, int]) -> Estimate:
    return intervals.figures([_fold(predictions, sets, name, bootstrap, ("auroc",))], pooled=False)["auroc"]


def _fold(predictions: Predictions, sets: Sets, name: str, bootstrap: dict[str, int], figures: tuple[str, ...]) -> Fold:
    """Predictions of the images of a set, with those of the figures that exist for so many classes."""
    drawn = findings.drawing(predictions.images, sets.records[name], bootstrap)
    names = tuple(each for each in figures if each in metrics.names(predictions))
    return Fold(seeds=[predictions], classes=sets.real.labels, bootstrap=drawn, names=names)
