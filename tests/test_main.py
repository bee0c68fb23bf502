"""The command line as a person meets it: exit codes, one line on stderr, no traceback, nothing left behind."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest

from dermjax import __main__
from dermjax.config_file import PRESETS
from dermjax.errors import UserError

CONFIG = """
from ml_collections import ConfigDict

def get_config(variant=None):
    if variant == "broken":
        return 1 / 0
    parted = {"part": ""} if variant == "parted" else {}
    return ConfigDict({"steps": 3, "rate": 0.1, "model": {"folder": "tiny"}, "act": "print", "variant": variant or "",
                       "rare": {}, "words": {}} | parted)
"""
# a stage that does what its config says
STAGE = """
import time
from dermjax.errors import Stopped, UserError

def run(config, workdir):
    from absl import flags
    if config.act == "print":
        print(config.is_locked, flags.FLAGS.is_parsed(), config.steps, config.model.folder, config.variant, workdir)
    elif config.act == "refuse":
        raise UserError("folder pictures: no images;\\ngive a folder with class/*.jpg")
    elif config.act == "refuse late":
        (workdir / "half").write_text("")
        raise UserError("tensor conv_in.weight: missing")
    elif config.act == "fill the disk":
        raise OSError(28, "No space left on device", str(workdir / "checkpoints"))
    elif config.act == "read only":
        raise OSError(30, "Read-only file system", str(workdir / "checkpoints"))
    elif config.act == "too long":
        (workdir / ("x" * 300)).write_text("")
    elif config.act == "stop":
        raise Stopped("tune: told to stop, step 4 of 20 is saved")
    elif config.act == "fail":
        raise RuntimeError("a bug")
    elif config.act == "wait":
        print("waiting", flush=True)
        time.sleep(60)
"""
TUNE = ("tune", "--config=config.py", "--workdir=run")
# `tune` is the stage above; the rest is the command as it is, interruptible also where the tests run in the background
COMMAND = """
import signal, sys
from dermjax import __main__ as m
signal.signal(signal.SIGINT, signal.default_int_handler)
m.STAGES['tune'] = 'stage_of_the_test'
sys.exit(m.main())
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "stage_of_the_test.py").write_text(STAGE)
    return tmp_path


def start(folder, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(folder, *arguments, **environment):
    process = start(folder, *arguments, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def tune(folder, *arguments, **environment):
    return call(folder, *TUNE, *arguments, **environment)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_without_a_stage_it_lists_the_stages(folder, arguments):
    code, out, err = call(folder, *arguments)
    assert (code, err) == (0, "")
    assert all(f"  {stage}" in out for stage in __main__.STAGES)


def test_a_stage_tells_its_usage(folder):
    code, out, _ = call(folder, "demo", "--help")
    assert code == 0
    assert "--images=DIR" in out


def test_usage_shows_the_page_of_its_config(folder):
    code, out, _ = call(folder, "tune", "--help")
    assert code == 0
    assert "tune.py has every option" in out
    assert all(f"\n  {variant} " in out for variant in ("paper", "lora", "full", "best", "demo", "photographs"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tuen"], "dermjax tuen: unknown stage; did you mean tune?"),
        (["xyzzy"], "there are: prepare, pretrain, tune"),
        (["--workdir=run"], "the stage comes first"),
        (["tune", "--workdir=run"], "--config is missing; give a config file, as in --config=configs/tune.py"),
        (["tune", "--config=", "--workdir=run"], "--config is missing"),
        (["tune", "--config=gone.py", "--workdir=run"], "config gone.py: no such file"),
        (["tune", "--config=config.py:broken"], "config config.py:broken: line 6: ZeroDivisionError: division by zero"),
        (["tune", "--config=stage_of_the_test.py"], "KeyError: 'get_config'"),
        (["tune", "--config=config.py"], "--workdir is missing; say where the run goes, as in --workdir=runs/tune"),
        ([*TUNE, "--config.stesp=4"], "unknown config key stesp; did you mean steps?"),
        ([*TUNE, "--config.model.path=x"], "unknown config key model.path; there are: folder"),
        ([*TUNE, "--config.steps.more=4"], "unknown config key steps.more"),
        ([*TUNE, "--config.rar.malignant=4"], "unknown config key rar.malignant; did you mean rare?"),
        ([*TUNE, "--config.model.rare.a=4"], "unknown config key model.rare.a"),
        ([*TUNE, "--config.steps=many"], "--config.steps=many"),
        ([*TUNE, "--workdri=x"], "Unknown command line flag 'workdri'"),
        ([*TUNE, "--images=x"], "Unknown command line flag 'images'"),
        ([*TUNE, "surplus"], "unexpected argument surplus"),
        (["tune", "--config=config.py", "--workdir=config.py"], "config.py is a file; give a folder"),
        (["demo", "--limit=3"], "--workdir is missing"),
        (["samplers", "surplus"], "unexpected argument surplus"),
        (["samplers", "--steps=3"], "Unknown command line flag 'steps'"),
    ],
)  # fmt: skip
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(folder, arguments, said):
    before = sorted(folder.iterdir())
    code, out, err = call(folder, *arguments, PYTHONDONTWRITEBYTECODE="1")
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("dermjax ")
    assert err.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_a_config_of_another_stage_is_one_line(folder):
    for stage, file, given in (("tune", "prepare", "--workdir=run"), ("plan", "generate", "--topology=h100:8")):
        code, _, err = call(folder, stage, f"--config={PRESETS / file}.py", given)
        assert code == 2 and f"{file}.py: is one of `{file}`; give one of `tune`, such as configs/tune.py" in err
        assert err.count("\n") == 1 and not (folder / "run").exists()


def test_a_flag_that_is_no_number_is_one_line(folder):
    code, _, err = call(folder, "demo", "--limit=few", "--workdir=run")
    assert code == 2 and "flag --limit=few: give a whole number" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "given", [("--flagfile=/nope",), ("--config.model.folder=a", "--config.model={'folder': 'b'}")]
)
def test_flags_that_contradict_each_other_or_are_in_no_file_are_one_line(folder, given):
    code, _, err = tune(folder, *given)
    assert code == 2 and err.count("\n") == 1 and ("/nope" in err or "is provided after --config.model.folder" in err)


def test_keys_that_are_users_own_are_made_on_the_command_line(folder):
    own = ("--config.rare.malignant=25", "--config.words.tone.dark=2", "--config.words.site=('arm','leg')",
           "--config.rare.path=runs/curate")  # fmt: skip
    assert tune(folder, *own)[0] == 0
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["rare"] == {"malignant": 25, "path": "runs/curate"}
    assert config["words"] == {"tone": {"dark": 2}, "site": ["arm", "leg"]}


def test_a_class_of_one_s_own_gets_its_prompt_on_the_command_line(folder):
    """As the message about a class without one says; plans of `generate` have the classes that they name."""
    (folder / "config.py").write_text(CONFIG.replace('"rare": {}', '"prompts": {"benign": "a mole"}, "plan": '
                                                     '{"prompts": {"benign": ("a mole",)}}, "rare": {}'))  # fmt: skip
    assert tune(folder, "--config.prompts.nevus=a photo of a nevus, macro")[0] == 0
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["prompts"] == {"benign": "a mole", "nevus": "a photo of a nevus, macro"}
    own = (
        "--config.prompts.basal cell carcinoma=a macule, pearly = shiny",
        "--config.prompts.na\u0308vus-1=a 'b' c",
        "--config.rare.class=2",
    )
    assert tune(folder, *own, "--workdir=third")[0] == 0
    config = json.loads((folder / "third" / "config.json").read_text())
    assert config["prompts"] == {"benign": "a mole", "basal cell carcinoma": "a macule, pearly = shiny",
                                 "na\u0308vus-1": "a 'b' c"} and config["rare"] == {"class": 2}  # fmt: skip
    code, _, err = call(folder, "tune", "--config=config.py", "--workdir=other", "--config.plan.prompts.nevus=('a',)")
    assert code == 2 and "unknown config key plan.prompts.nevus" in err


def test_a_command_without_a_config_answers_with_text(folder):
    code, out, err = call(folder, "samplers")
    assert (code, err) == (0, "")
    assert "Euler a" in out
    assert not (folder / "run").exists()


@pytest.mark.parametrize("arguments", [("samplers",), TUNE])
def test_a_reader_that_ends_early_is_no_bug(folder, arguments):
    """As in `dermjax samplers | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=folder, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_operands_and_flags_reach_the_command_by_their_types(capsys):
    told = __main__.Command("builtins:print", "", "WORD...", {"sep": "-", "end": "!"})
    __main__._answer(told, ["one", "two", "--sep=+"])
    assert capsys.readouterr().out == "one+two!"


@pytest.mark.parametrize(
    ("operands", "flags", "arguments", "said"),
    [
        ("PATH", {}, [], "PATH is missing"),
        ("PATH", {}, ["a", "b"], "unexpected argument b"),
        ("", {"to": ""}, [], "--to is missing"),
        ("", {"weight": 0.8}, ["--weight=much"], "--weight"),
        ("", {"to": ""}, ["--to=s3://bucket/x"], "--to=s3://bucket/x: lies in a bucket; give a path of this machine"),
    ],
)
def test_what_a_command_cannot_do_without_is_said(operands, flags, arguments, said):
    with pytest.raises(UserError, match=said):
        __main__._answer(__main__.Command("builtins:print", "", operands, flags), arguments)


def test_a_stage_gets_its_locked_config_and_workdir(folder):
    code, out, err = call(
        folder,
        "tune",
        "--config",
        "config.py:small",
        "--workdir=run",
        "--config.steps=4",
        "--config.model.folder=sd 1.5",
    )
    assert (code, err) == (0, "")
    assert out == f"True True 4 sd 1.5 small {folder / 'run'}\n"
    assert json.loads((folder / "run" / "config.json").read_text())["model"] == {"folder": "sd 1.5"}


def test_a_run_that_was_told_to_stop_says_how_to_go_on(folder):
    said = "dermjax tune: tune: told to stop, step 4 of 20 is saved; resume with the same command\n"
    assert tune(folder, "--config.act=stop", KUBERNETES_SERVICE_HOST="") == (0, "", said)
    # which would count a pod that ends with 0 as done
    kubernetes = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert tune(folder, "--config.act=stop", **kubernetes) == (75, "", said)
    assert tune(folder, "--config.act=stop", **kubernetes, SLURM_JOB_ID="9") == (0, "", said)
    assert tune(folder, "--config.act=print", "--workdir=other", **kubernetes)[0] == 0


def test_a_workdir_of_another_config_is_refused(folder):
    assert tune(folder)[0] == 0
    code, _, err = tune(folder, "--config.steps=4")
    assert code == 2
    assert "steps: 3 -> 4" in err
    assert tune(folder)[0] == 0


def test_a_change_that_is_refused_is_taken_back(folder):
    """Else the command that the folder is of would be refused from then on."""
    assert tune(folder)[0] == 0
    code, out, err = tune(folder, "--config.act=refuse late", "--config.steps=4", "--allow_config_change")
    assert code == 2 and "steps: 3 -> 4" in out and "steps: 4 -> 3" in out and "conv_in.weight: missing" in err
    assert tune(folder) == (0, f"True True 3 tiny  {folder / 'run'}\n", "")


def test_a_command_of_several_stages_offers_no_flag_that_they_would_refuse(command, tmp_path):
    given = [f"--config={PRESETS / 'demo.py'}", f"--workdir={tmp_path}"]
    (tmp_path / "config.json").write_text('{"prompt": "a"}')
    code, _, err = command("demo", *given)
    assert code == 2 and "is of another config" in err and "--allow_config_change" not in err


ARRAY = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "0",
         "SLURM_ARRAY_TASK_MAX": "7"}  # fmt: skip


def test_a_task_of_an_array_is_a_part_with_a_folder_of_its_own(folder):
    parted = ("tune", "--config=config.py:parted", "--workdir=run")
    code, out, err = call(folder, *parted, **ARRAY)
    home = folder / "run" / "part-00003-of-00008"
    assert (code, err) == (0, "") and out.splitlines() == [
        "tune: part 3/8 in run/part-00003-of-00008", f"True True 3 tiny parted {home}"
    ]  # fmt: skip
    assert json.loads((home / "config.json").read_text())["part"] == "3/8"
    assert [path.name for path in (folder / "run").iterdir()] == [home.name]
    # what is given comes before what the cluster says
    assert call(folder, *parted, "--config.part=3/8")[0] == 0
    code, _, err = call(folder, *parted, "--config.part=1/4", **ARRAY)
    assert code == 2 and "is divided into 8 parts and not 4" in err
    code, _, err = call(folder, *parted, "--config.part=4/8", "--config.steps=5")
    assert code == 2 and "steps: 3 -> 5" in err
    code, _, err = call(folder, *parted, "--config.part=8/8")
    assert (code, len(err.splitlines())) == (2, 1) and "give i/n with i from 0 to n - 1" in err
    assert [path.name for path in (folder / "run").iterdir()] == [home.name]


def test_a_stage_without_parts_knows_nothing_of_arrays(folder):
    assert tune(folder, **ARRAY)[1] == f"True True 3 tiny  {folder / 'run'}\n"


def test_a_part_that_refuses_its_input_leaves_nothing(folder):
    code, _, err = call(folder, "tune", "--config=config.py:parted", "--workdir=run", "--config.act=refuse", **ARRAY)
    assert (code, len(err.splitlines())) == (2, 1) and not (folder / "run").exists()


def test_a_stage_that_refuses_its_input_leaves_nothing(folder):
    code, _, err = tune(folder, "--config.act=refuse")
    assert code == 2
    assert err == "dermjax tune: folder pictures: no images; give a folder with class/*.jpg\n"
    assert not (folder / "run").exists()
    (folder / "run").mkdir()
    (folder / "run" / ".DS_Store").touch()  # else the mended command would be of another config than this one
    assert tune(folder, "--config.act=refuse")[0] == 2
    assert [path.name for path in (folder / "run").iterdir()] == [".DS_Store"]


def test_a_stage_that_refuses_late_keeps_its_claim(folder):
    code, _, err = tune(folder, "--config.act=refuse late")
    assert (code, err) == (2, "dermjax tune: tensor conv_in.weight: missing\n")
    assert (folder / "run" / "config.json").exists()


def test_a_full_disk_is_one_line(folder):
    code, _, err = tune(folder, "--config.act=fill the disk")
    assert code == 2
    assert (
        err
        == f"dermjax tune: {folder / 'run/checkpoints'}: No space left on device; make room, then the same command\n"
    )


@pytest.mark.parametrize(("act", "said"), [("read only", "run/checkpoints: Read-only file system; mend that"),
                                           ("too long", "xxx: File name too long; mend that")])  # fmt: skip
def test_what_a_disk_refuses_is_one_line(folder, act, said):
    code, _, err = tune(folder, f"--config.act={act}")
    assert (code, err.count("\n")) == (2, 1) and said in err


def test_a_path_at_the_user_s_folder(folder):
    """A shell leaves it as it is behind `--config.model.folder=`; config.json has what was given."""
    code, out, _ = tune(folder, "--config.model.folder=~/models/x", HOME="/srv/ada")
    assert code == 0 and "/srv/ada/models/x" in out
    assert json.loads((folder / "run" / "config.json").read_text())["model"] == {"folder": "~/models/x"}
    code, _, err = call(folder, "inspect", "~/x.safetensors", HOME=str(folder))
    assert code == 2 and f"{folder}/x.safetensors: no such file or folder" in err


def test_an_address_in_the_web_is_text_as_a_licence_often_is(folder):
    licence = "https://creativecommons.org/licenses/by/4.0/"
    assert licence in tune(folder, f"--config.model.folder={licence}")[1]


def test_a_name_that_is_no_text_is_printed_on_a_terminal_that_refuses_it(folder):
    code, out, err = tune(folder, "--config.model.folder=P\udce4t", PYTHONIOENCODING="utf-8:strict")
    assert (code, err) == (0, "") and "P\\udce4t" in out


def test_a_bug_keeps_its_traceback(folder):
    code, _, err = tune(folder, "--config.act=fail")
    assert code == 1
    assert "Traceback" in err
    assert "RuntimeError: a bug" in err


def test_an_interrupt_says_how_to_go_on(folder):
    process = start(folder, *TUNE, "--config.act=wait")
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert err == "\ndermjax tune: interrupted; resume with the same command\n"


def test_the_command_starts_quickly_and_without_jax(folder):
    before = seconds_of_children()
    out = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dermjax", "tuen"], capture_output=True, text=True, check=False
    )
    assert seconds_of_children() - before < 1.5
    imported = {line.rpartition("|")[2].strip() for line in out.stderr.splitlines()}
    assert "absl.flags" in imported
    assert not {"jax", "flax", "numpy", "matplotlib"} & imported


def seconds_of_children():
    """Processor time of the finished subprocesses; the clock would depend on what else the machine does."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_prepare_does_not_import_jax():
    loaded = "import importlib, sys; importlib.import_module('dermjax.preparation.run'); print('jax' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout == "False\n"
    )


@pytest.mark.slow
def test_two_processes_join(folder):
    (folder / "stage_of_the_test.py").write_text(
        "def run(config, workdir):\n    import jax\n    print(jax.process_count())\n"
    )
    asked = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:18497", "JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    both = [start(folder, *TUNE, JAX_PROCESS_ID=str(index), **asked) for index in range(2)]
    assert [process.communicate(timeout=60)[0] for process in both] == ["2\n", "2\n"]


@pytest.mark.parametrize("stage", __main__.LAST)
def test_another_config_of_a_finished_stage_is_refused(stage, command, tmp_path):
    """Allowed or not: what is there stays of the config that made it."""
    from dermjax.classification import run as classification
    from dermjax.data import records

    last = tmp_path / {"prepare": records.FILE, "classify": classification.DONE}[stage]
    (tmp_path / "config.json").write_text("{}")
    last.write_text("")
    for allowed in ([], ["--allow_config_change"]):
        code, out, error = command(stage, f"--config=configs/{stage}.py", f"--workdir={tmp_path}", *allowed)
        assert code == 2 and f"{last.name} is of another config" in error and error.count("\n") == 1 and not out
        assert "--allow_config_change" not in error  # which would not help
    assert (tmp_path / "config.json").read_text() == "{}"
