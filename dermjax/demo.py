"""`demo`: every stage once, small, on this machine; from labelled images to the report.

Each stage has a folder of its own in the workdir, with its own config.json, and is run exactly as by its command.
A finished stage says so and returns, so a killed demo goes on where it was.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from operator import getitem
from pathlib import Path

from ml_collections import ConfigDict

from dermjax import run_folder
from dermjax.classification import run as classification
from dermjax.curation import run as curation
from dermjax.data import records, templates
from dermjax.errors import UserError
from dermjax.evaluation import run as evaluation
from dermjax.generation import run as generation
from dermjax.preparation import run as preparation
from dermjax.progress import say
from dermjax.tuning import run as tuning

CLASSIFIERS = ("vit", "mobilenetv2")
# what the curated images are to a classifier: real only tells whether they show their label, hybrid learns from them
ARMS = {"real": "judged", "hybrid": "synthetic"}


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the stages, each on the folders that the ones before it left."""
    prepared, generated, curated = (workdir / name / records.FILE for name in ("prepare", "generate", "curate"))
    check("prepare", config.prepare, preparation.check)
    check_stages(config)
    for classifier in CLASSIFIERS:
        check(f"classify.{classifier}", config.classify[classifier], classification.check)
    run_stage(preparation.run, config.prepare, workdir / "prepare", {})
    run_generator(config, workdir, prepared, class_prompts(config.prompt, records.read(prepared).labels))
    runs = {}
    for classifier in CLASSIFIERS:
        for arm, key in ARMS.items():
            folder = workdir / f"{classifier}_{arm}"
            run_stage(classification.run, config.classify[classifier], folder, {"manifest": prepared, key: curated})
            runs[f"runs.{folder.name}"] = folder
    manifests = {"prepared": prepared, "generated": generated, "curated": curated}
    run_stage(evaluation.run, config.evaluate, workdir / "evaluate", manifests | {"tuning": workdir / "tune"} | runs)

    # the page is self-contained, so a copy where people look first works as well
    run_folder.write_atomically(workdir / "report.html", (workdir / "evaluate" / "report.html").read_bytes())
    say(f"\nThe report: {workdir / 'report.html'}")
    say("A demo of this size proves the machinery, not the medicine. For research use only.")


def run_generator(
    config: ConfigDict, folder: Path, real: Path, prompts: ConfigDict, init_images: Path | None = None
) -> None:
    """Runs tune, generate and curate in a folder: the synthetic images of a generator of real training images.

    They begin at the training images of `init_images`, else at noise or where config.generate says.
    """
    requested = ConfigDict({label: (prompt,) for label, prompt in prompts.items()}).lock()
    tune, generate, curate = (folder / name for name in ("tune", "generate", "curate"))
    run_stage(tuning.run, config.tune, tune, {"manifest": real, "prompts": prompts})
    begin = {"init.images": init_images} if init_images else {}
    run_stage(generation.run, config.generate, generate, {"model": tune / "model", "plan.prompts": requested} | begin)
    run_stage(curation.run, config.curate, curate, {"manifest": generate / records.FILE, "training": real})


def check_stages(config: ConfigDict) -> None:
    """Raises UserError for what of tune, generate, curate or the prompt would fail when the stage's turn comes."""
    for name, check_stage in (("tune", tuning.check), ("generate", generation.check), ("curate", curation.check)):
        check(name, config[name], check_stage)
    if "{label}" not in config.prompt:
        raise UserError(f"config.prompt = {config.prompt!r} would say the same of every class; put {{label}} in it")
    check(f"prompt = {config.prompt!r}", config.generate, lambda each: generation.check_words(each, config.prompt))


def check(name: str, config: ConfigDict, check_stage: Callable[[ConfigDict], object]) -> None:
    """Raises what a stage's own check raises, with the name of its part of the config before it."""
    try:
        check_stage(config)
    except UserError as error:
        raise UserError(f"config.{name}: {error}") from error


def class_prompts(template: str, labels: tuple[str, ...]) -> ConfigDict:
    """Returns the prompt of each label: the template with the label in words for `{label}`."""
    dotted = [label for label in labels if "." in label]
    if dotted:
        raise UserError(f"class {dotted[0]}: a class name with a dot cannot be a config key; rename its folder")
    return ConfigDict({label: template.replace("{label}", templates.in_words(label)) for label in labels}).lock()


def run_stage(run: Callable, defaults: ConfigDict, folder: Path, inputs: Mapping[str, Path | int | ConfigDict]) -> None:
    """Runs one stage in its folder; inputs are what the stages before it left, by config key."""
    config = ConfigDict(defaults.to_dict()).lock()
    for path, value in inputs.items():
        *parents, key = path.split(".")
        reduce(getitem, parents, config)[key] = str(value) if isinstance(value, Path) else value
    say(f"\n{folder.name}")
    with run_folder.claimed(folder, config.to_dict(), within=folder.parent):
        try:
            run(config, folder)
        except UserError as error:
            raise UserError(f"{folder.name}: {error}") from error
