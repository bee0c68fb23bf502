"""`dermjax <stage> --config=FILE[:VARIANT] [--config.key=value …] --workdir=DIR`: from the command line to a stage.

A command without a config, such as `dermjax samplers`, takes arguments and flags of its own and answers with text.
Everything absl is here: the flags, the config file, the locked ConfigDict. A stage is a module with `run(config,
workdir)`, imported only when it is asked for. Exit codes: 0, also when told to stop by SIGTERM once what there is has
been saved, but on Kubernetes 75 then, as it starts nothing again that ends with 0; 2 with one line on stderr for what a
user can mend; 75, with one too, where another process of the run was lost and the same command goes on; 130 when
interrupted, 141 when nobody reads the output any more, 143 by SIGTERM where there was nothing to save. Any
other exception is a bug and keeps its traceback. `jax.distributed` is joined before a stage where the environment asks
for it, see `machine` and `processes`.
"""

import ast
import contextlib
import difflib
import importlib
import io
import keyword
import os
import re
import select
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from dermjax import buckets, config_file, machine, parts, progress, run_folder, signals
from dermjax.errors import AGAIN, Stopped, UserError

STAGES = {
    "prepare": "dermjax.preparation.run",
    "pretrain": "dermjax.pretraining.run",
    "tune": "dermjax.tuning.run",
    "plan": "dermjax.tuning.plan",
    "sweep": "dermjax.tuning.sweep",
    "generate": "dermjax.generation.run",
    "transform": "dermjax.transformation.run",
    "mask": "dermjax.transformation.masks",
    "curate": "dermjax.curation.run",
    "classify": "dermjax.classification.run",
    "publish": "dermjax.publication.run",
    "evaluate": "dermjax.evaluation.run",
    "study": "dermjax.study.run",
    "demo": "dermjax.demo",
}
SUMMARIES = {
    "prepare": "labelled images, or phantoms, become a manifest with leak-free splits",
    "pretrain": "train a base model on captioned phantoms and photographs, or the segmenter",
    "tune": "teach a Stable Diffusion the classes with DreamBooth",
    "plan": "whether a config of `tune` fits on a slice of TPUs or GPUs, how fast it is at most, without them",
    "sweep": "find the rate, rank, steps and loss that tune best, by held-out images",
    "generate": "sample synthetic lesions from a plan of prompts",
    "transform": "make lesions of images larger, smaller, more, or their skin another, and measure it",
    "mask": "masks of generated images' lesions, by segmentation and by the model's attention",
    "curate": "reject blank, blurred, off-colour and copied images, with reasons",
    "classify": "train ViT or MobileNetV2 on real, or real and synthetic, images",
    "publish": "write the kept images as data sets with a card, for others to load",
    "evaluate": "compare the classifiers and write the report",
    "study": "arms x classifiers x seeds: do synthetic images help?",
    "demo": "all of it, small, on this machine",
}
# what the stages that are done once leave last: no other config goes on with it
LAST = {"prepare": "manifest.jsonl", "classify": "metrics.json"}
# of the stages that run others: what may change while those go on in folders that are of their own configs
CHANGEABLE = {
    "demo": (),
    "study": ("title", "arms", "baseline", "shots", "seeds", "sets", "classifiers", "bootstrap", "gallery"),
    "sweep": ("trials", "startup", "patience", "seed"),
}
PREDICT = "classify --predict"  # the one command that shares its name with a stage, and needs no config


@dataclass(frozen=True)
class Command:
    """A command without a config: `function`, "module:name", is called with the operands and the flags as keywords."""

    function: str
    summary: str
    operands: str = ""  # as the usage shows them: "" none, "PATH" one, "MANIFEST..." one or more
    flags: dict[str, Any] = field(default_factory=dict)  # name -> default, whose type is the flag's; "" must be given


COMMANDS = {
    "audit": Command("dermjax.data.leaks.audit:show", "fail if images leak between splits or manifests", "MANIFEST..."),
    "export": Command(
        "dermjax.data.export:export",
        "a manifest's kept images as imagefolder, webdataset or array_record",
        "MANIFEST",
        {"to": "", "form": "imagefolder"},
    ),
    "merge": Command(
        "dermjax.merge:merge",
        "join the parts of generate, transform or curate",
        operands="WORKDIR",
        flags={"any_versions": False},
    ),
    "inspect": Command("dermjax.weights.inspection:inspect", "what a model, LoRA or embedding is", operands="PATH"),
    "convert": Command(
        "dermjax.weights.conversion:convert",
        "write a model as a folder or a single .safetensors file, with a LoRA merged, or a LoRA in the other form",
        flags={"from": "", "to": "", "lora": "none", "lora_weight": 0.8, "dtype": "float16"}
        | {"variant": "found", "ema": False, "prediction": "found"},
    ),
    PREDICT: Command(
        "dermjax.classification.predictions:predict",
        "write a CSV of a saved classifier's probabilities for images, as if all classes were equally frequent",
        flags={"predict": "", "classifier": "", "out": "", "batch": 32},
    ),
    "convert_classifier": Command(
        "dermjax.weights.classifiers:convert",
        "write a classifier folder as a state dict of timm or torchvision",
        flags={"from": "", "to": "", "form": "timm"},
    ),
    "provenance": Command("dermjax.sampling.provenance:show", "what an image says of how it was made", "FILE"),
    "serve": Command(
        "dermjax.studio.server:serve",
        "the studio: a browser page over a folder of runs; other hosts only with a token",
        "RUNS",
        {"port": 7860, "host": "127.0.0.1", "token": "none", "images": "none", "warm": True},
    ),
    "samplers": Command("dermjax.diffusion.samplers:show", "list the samplers"),
    "bench": Command(
        "dermjax.bench.run:bench",
        "how fast this machine samples, tunes, classifies and reads, beside PyTorch where that is installed",
        flags={"workdir": "", "cases": "all", "rounds": 5, "torch_compile": False},
    ),
}
WEB = ("http://", "https://")  # nothing is read from there
READ = ("MANIFEST", "MANIFEST...", "PATH", "FILE")  # operands that may be in a bucket
# these are one process and leave accelerators alone: what measures images is small, and a plan is for other machines
WITHOUT_ACCELERATOR, WITH_DRY_RUN = ("plan", "prepare", "publish"), ("tune", "generate")
SHARED = ("study",)  # several hosts, each started by itself, work in one folder
DEMO_CONFIG = config_file.PRESETS / "demo.py"


def main() -> int:
    """Runs the stage that the command line names; returns the exit code."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    predicts = arguments[0] == "classify" and any(re.match("--?predict(=|$)", each) for each in arguments)
    stage = PREDICT if predicts else arguments[0]
    try:
        if stage not in STAGES and stage not in COMMANDS:
            raise UserError(_unknown_stage(stage))
        if {"-h", "--help"} & set(arguments):
            print(_usage(stage))
            return 0
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
        with signals.interruptible(stage):
            _answer(COMMANDS[stage], arguments[1:]) if stage in COMMANDS else _run(stage, arguments[1:])
            sys.stdout.flush()
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 128 + signal.SIGPIPE
        line = _mendable(error)
        if not line:
            raise
        print(f"dermjax {stage}: {buckets.shown_in(' '.join(line.splitlines()))}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"dermjax {stage}: {stop}; resume with the same command", file=sys.stderr)
        return AGAIN if _on_kubernetes(os.environ) else 0
    except KeyboardInterrupt as stop:
        signals.end(stage, stop)
    return 0


def _on_kubernetes(environment: Mapping[str, str]) -> bool:
    """Returns whether Kubernetes started this process, which counts a pod that ends with 0 as done; Slurm does not."""
    return bool(environment.get("KUBERNETES_SERVICE_HOST")) and not environment.get("SLURM_JOB_ID")


def _nobody_reads() -> bool:
    """Returns whether what reads the output has ended, as `head` does, and if so drops what is left of it."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    ended = any(event & select.POLLERR for _, event in output.poll(0))
    if ended:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ended


def _run(stage: str, arguments: list[str]) -> None:
    config, given = _parse(stage, arguments)
    coordination = None if stage in WITHOUT_ACCELERATOR else machine.distributed(os.environ)
    part = None
    if "part" in config:
        config.part = config.part or parts.assigned(os.environ, joined=coordination is not None)
        part = parts.read(config.part)
        config.part = str(part or "")
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(machine.cpu_devices(machine.cores())))
    machine.quiet_compiler(os.environ, joined=coordination is not None)
    if stage in WITHOUT_ACCELERATOR:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    recorded = config.to_dict()
    _fetch(config)
    if stage == "plan":
        folder = Path(given).expanduser().absolute() if given else None
        importlib.import_module(STAGES[stage]).run(config, folder, flags.FLAGS.topology, flags.FLAGS.sweep)
        return
    if given is None:
        importlib.import_module(STAGES[stage]).dry_run(config)
        return
    workdir = _workdir(stage, given, part, parted="part" in config)
    work = _claimed(stage, recorded, workdir, part)
    if part:
        workdir = workdir / part.folder
        progress.say(f"{stage}: part {part} in {given.rstrip('/')}/{part.folder}")
    if coordination is None:
        machine.compile_once(os.environ)
    else:
        from dermjax import processes  # here, since JAX is not for every stage

        work = processes.joined(coordination, stage, recorded, workdir, work, _mendable)
    with work:
        importlib.import_module(STAGES[stage]).run(config, workdir)


@contextlib.contextmanager
def _claimed(stage: str, config: dict, workdir: Path, part: parts.Part | None) -> Iterator[None]:
    """Holds a workdir, or its part, for the run of a config; one refused for its input leaves nothing there."""
    with contextlib.ExitStack() as held:
        folder = workdir / part.folder if part else workdir
        if part:
            held.enter_context(run_folder.lock(workdir, alone=False))
            if not flags.FLAGS.allow_config_change:
                parts.refuse_others(workdir, part, config)
        held.enter_context(run_folder.lock(folder, alone=stage not in SHARED))
        allowed, last = flags.FLAGS.allow_config_change, LAST.get(stage, "")
        try:
            with run_folder.claimed(
                folder, config, allow_change=allowed, last=last, hint=run_folder.OR_ALLOW, keys=CHANGEABLE.get(stage)
            ):
                yield
        except UserError:
            if part:
                with contextlib.suppress(OSError):  # another part has come meanwhile, or is gone as well
                    run_folder.disclaim(workdir)
            raise


def _fetch(config: ConfigDict) -> None:
    """Puts paths in place of the URLs of a config, and what they name there; ~ is the user's folder."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            _fetch(value)
        elif isinstance(value, str):
            config[key] = _path(value)
        elif isinstance(value, tuple):
            config[key] = tuple(_path(each) if isinstance(each, str) else each for each in value)


def _path(text: str) -> str:
    """Returns the path that a URL of a bucket is fetched to; a licence's address in the web as it is, else `_home`."""
    return str(buckets.local(text)) if buckets.is_url(text) and not text.startswith(WEB) else _home(text)


def _home(text: str) -> str:
    """Returns a path with the user's folder in place of ~, which a shell leaves behind `--name=`, any other text as it
    is."""
    return os.path.expanduser(text) if text.startswith("~/") else text


def _workdir(stage: str, given: str, part: parts.Part | None, *, parted: bool) -> Path:
    """Returns the absolute path of --workdir; of one in a bucket, of a part, what it and the others said is fetched."""
    if not buckets.is_url(given):
        return Path(given).expanduser().absolute()
    if not parted and not given.startswith("file:"):
        raise UserError(f"--workdir={given}: only stages with config.part write into a bucket; give a folder")
    own = part.folder + "/" if part else ""
    wanted = (lambda key: key.startswith(own) or key.endswith(f"/{run_folder.CONFIG}")) if part else buckets.is_small
    return buckets.local(given, wanted)


def _answer(command: Command, arguments: list[str]) -> None:
    """Runs a command without a config; what is missing or too much is a UserError."""
    define = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
    known = flags.FlagValues()
    for name, default in command.flags.items():
        define[type(default)](name, default, "", flag_values=known)
    try:
        operands = known(["dermjax", *arguments])[1:]
    except flags.Error as error:
        raise UserError(str(error)) from error
    most = None if command.operands.endswith("...") else bool(command.operands)
    if command.operands and not operands:
        raise UserError(f"{command.operands} is missing")
    if most is not None and len(operands) > most:
        raise UserError(f"unexpected argument {operands[most]}; flags are --name=value")
    if command.operands in READ:
        operands = [_path(each) for each in operands]
    given = {name: known[name].value for name in command.flags}
    given = {name: _home(value) if isinstance(value, str) else value for name, value in given.items()}
    elsewhere = [name for name, value in given.items() if isinstance(value, str) and buckets.is_url(value)]
    if elsewhere:
        raise UserError(f"--{elsewhere[0]}={given[elsewhere[0]]}: lies in a bucket; give a path of this machine")
    missing = [name for name, value in given.items() if value == ""]
    if missing:
        raise UserError(f"--{missing[0]} is missing")
    module, _, name = command.function.partition(":")
    named = {f"{flag}_" if keyword.iskeyword(flag) else flag: value for flag, value in given.items()}
    getattr(importlib.import_module(module), name)(*operands, **named)


def _parse(stage: str, arguments: list[str]) -> tuple[ConfigDict, str | None]:
    """Returns the locked config and the workdir as it is given, None for --dry_run.

    flags.FLAGS is parsed afterwards, as grain's workers need.
    """
    path, rest = _take_config(stage, arguments)
    config = config_file.load(_home(path))
    config_file.check_stage(config, "tune" if stage == "plan" else stage, path)
    _add_own_keys(config, rest)
    _refuse_unknown_keys(config, rest)
    argv = ["dermjax", *map(_subscripted, rest)]
    flags.DEFINE_string("workdir", None, "folder of this run; the same folder again resumes it")
    flags.DEFINE_bool("allow_config_change", False, "go on in a folder that was started with another config")
    if stage == "demo":
        flags.DEFINE_string("images", None, "folder of class/* or split/class/* images (else phantoms)")
        flags.DEFINE_integer("limit", None, "at most this many images per class and split", lower_bound=0)
    if stage == "plan":
        flags.DEFINE_string("topology", None, "chips and how many, v5e:4x4, v5p:2x2x2, h100:8")
        flags.DEFINE_bool("sweep", False, "a table of meshes and batches")
    if stage in WITH_DRY_RUN:
        flags.DEFINE_bool("dry_run", False, "print what would be done, how long it takes and what it needs")
    try:
        config_flags.DEFINE_config_dict("config", config, sys_argv=argv)
        surplus = flags.FLAGS(argv)[1:]
    except flags.Error as error:
        raise UserError(str(error).replace("invalid literal for int() with base 10", "give a whole number")) from error
    if surplus:
        raise UserError(f"unexpected argument {surplus[0]}; flags are --name=value, see dermjax {stage} --help")
    config_file.check(config)
    if stage in WITH_DRY_RUN and flags.FLAGS.dry_run:
        return config, None
    if stage == "plan":
        if not flags.FLAGS.topology:
            raise UserError("--topology is missing; say which chips, as in --topology=v5e:4x4 or --topology=h100:8")
        return config, flags.FLAGS.workdir
    if not flags.FLAGS.workdir:
        raise UserError(f"--workdir is missing; say where the run goes, as in --workdir=runs/{stage}")
    if stage == "demo":
        _set_demo(config)
    return config, flags.FLAGS.workdir


def _take_config(stage: str, arguments: list[str]) -> tuple[str, list[str]]:
    """Returns the value of --config and the other arguments; the demo brings its own config."""
    rest, path = [], None
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            path = value if equals else next(waiting, "")
        else:
            rest.append(argument)
    if path is None and stage == "demo":
        variant = ":photographs" if any(argument.startswith("--images") for argument in rest) else ""
        path = f"{DEMO_CONFIG}{variant}"
    if not path:
        raise UserError(f"--config is missing; give a config file, as in --config=configs/{stage}.py")
    return path, rest


def _set_demo(config: ConfigDict) -> None:
    if flags.FLAGS.images is not None:
        config.prepare.images = str(Path(flags.FLAGS.images).expanduser().absolute())
    if flags.FLAGS.limit is not None:
        config.prepare.limit = flags.FLAGS.limit


def _add_own_keys(config: ConfigDict, arguments: list[str]) -> None:
    """Makes keys that are users' own (`config_file.FREE`), as in --config.rare.malignant=25, known to the config, and
    the prompts of classes that are taught."""
    for argument in arguments:
        flag, equals, text = argument.partition("=")
        keys = flag.lstrip("-").split(".")
        free = [number for number, key in enumerate(keys)
                if key in config_file.FREE or (key == "prompts" and keys[number - 1] != "plan")]  # fmt: skip
        if not equals or keys[0] != "config" or not free or free[0] == len(keys) - 1:
            continue
        node = config
        for number, key in enumerate(keys[1:-1], start=1):
            if number > free[0] and key not in node:
                node[key] = ConfigDict()
            node = node[key] if isinstance(node, ConfigDict) and key in node else None
            if not isinstance(node, ConfigDict):
                break  # a wrong key before it, which is refused by its name
        if isinstance(node, ConfigDict) and keys[-1] not in node:
            try:
                node[keys[-1]] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                node[keys[-1]] = text


def _refuse_unknown_keys(config: ConfigDict, arguments: list[str]) -> None:
    for argument in arguments:
        flag = argument.partition("=")[0].lstrip("-")
        if not flag.startswith("config.") and not flag.startswith("noconfig."):
            continue
        node, path = config, flag.partition(".")[2]
        for key in path.split("."):
            if not isinstance(node, ConfigDict) or key not in node:
                known = list(node.keys()) if isinstance(node, ConfigDict) else []
                raise UserError(f"unknown config key {path}; {_near(key, known)}")
            node = node[key]


def _subscripted(argument: str) -> str:
    """Returns an argument with the keys that are no Python names, as names of classes may be, as flags take them:
    --config.rare['basal cell carcinoma']=25."""
    flag, equals, text = argument.partition("=")
    first, *keys = flag.split(".")
    if first.lstrip("-") != "config":
        return argument
    named = [key.isascii() and key.isidentifier() and not keyword.iskeyword(key) for key in keys]
    keys = [
        f".{key}" if is_name else f"[{key!r}]".replace(" ", r"\x20") for key, is_name in zip(keys, named, strict=True)
    ]
    return "".join([first, *keys, equals, text])


def _near(word: str, known: list[str]) -> str:
    """Returns what to try instead of an unknown word."""
    close = difflib.get_close_matches(word, known)
    return f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(known) or 'none below it'}"


def _mendable(error: Exception) -> str:
    """Returns the line for an error that a person can mend, "" for any other."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in machine.DISK_FULL:
        return f"{error.filename or 'the disk'}: {error.strerror}; make room, then the same command"
    if isinstance(error, OSError) and error.errno in machine.NO_ACCESS and error.filename:
        return f"{error.filename}: {error.strerror}; mend that, or give another path"
    return ""


def _unknown_stage(stage: str) -> str:
    if stage.startswith("-"):
        return "the stage comes first, as in dermjax tune --config=configs/tune.py --workdir=runs/tune"
    return f"unknown stage; {_near(stage, [*STAGES, *COMMANDS])}"


def _overview() -> str:
    stages = "\n".join(f"  {stage:10}{SUMMARIES[stage]}" for stage in STAGES)
    commands = "\n".join(f"  {name:20}{command.summary}" for name, command in COMMANDS.items())
    usage = "usage: dermjax <stage> --config=FILE[:VARIANT] [--config.key=value ...] --workdir=DIR"
    return f"{usage}\n\n{stages}\n\nwithout a config:\n{commands}"


def _usage(stage: str) -> str:
    if stage in COMMANDS:
        command = COMMANDS[stage]
        shown = " ".join(f"--{name}={default}" for name, default in command.flags.items())
        words = " ".join(filter(None, [stage.partition(" ")[0], command.operands, shown]))
        return f"{stage}: {command.summary}\n\nusage: dermjax {words}"
    if stage == "demo":
        flag_names = "[--images=DIR] [--limit=N] [--config=FILE[:VARIANT]]"
    elif stage == "plan":
        flag_names = "--config=configs/tune.py[:VARIANT] --topology=CHIP:SIDES [--sweep]"
    else:
        flag_names = f"--config=configs/{stage}.py[:VARIANT]" + " [--dry_run]" * (stage in WITH_DRY_RUN)
    folder = "[--workdir=DIR]" if stage == "plan" else "--workdir=DIR [--allow_config_change]"
    given = f"{flag_names} [--config.key=value ...] {folder}"
    file = config_file.PRESETS / f"{'tune' if stage == 'plan' else stage}.py"
    page = ast.get_docstring(ast.parse(file.read_text()))
    options = f"{file} has every option, its default and what it does:"
    return f"{stage}: {SUMMARIES[stage]}\n\nusage: dermjax {stage} {given}\n\n{options}\n\n{page}"


if __name__ == "__main__":
    sys.exit(main())
