"""`sweep`: the search over settings, what it prunes, that it goes on where it was killed, and what it refuses."""

import json
import resource
import runpy
from pathlib import Path

import optuna
import pytest

from dermjax.data import records
from dermjax.data.records import Manifest, Record
from dermjax.errors import Stopped, UserError
from dermjax.training.loop import NotFinite
from dermjax.tuning import sweep

CONFIG = Path(__file__).parents[2] / "configs" / "sweep.py"
TOP = 5e-3  # the rate at which the tuning of these tests is best


@pytest.fixture
def manifest(tmp_path):
    """Two images, one of them held out; nobody reads their pixels."""
    named = [("a.png", "train"), ("b.png", "validation")]
    found = [Record(image=name, sha256=f"{i:064x}", label="benign", split=split, source="s", image_manipulation="none")
             for i, (name, split) in enumerate(named)]  # fmt: skip
    records.write(tmp_path / "data.jsonl", Manifest(labels=("benign",), root=tmp_path, records=tuple(found)))
    return tmp_path / "data.jsonl"


def config(manifest, **changes):
    asked = runpy.run_path(str(CONFIG))["get_config"]("tiny")
    asked.tune.manifest, asked.trials = str(manifest), 6
    for key, value in changes.items():
        node, *path = asked, *key.split(".")
        for name in path[:-1]:
            node = node[name]
        with node.ignore_type():
            node[path[-1]] = value
    return asked.lock()


class Tuning:
    """Stands for `tune`: a held-out loss that falls towards a floor, the lower the nearer the rate is to TOP."""

    def __init__(self, fails_at=()):
        self.started, self.fails_at = [], dict(fails_at)

    def __call__(self, settings, folder, on_loss):
        self.started.append(folder.name)
        (folder / "checkpoints").mkdir(exist_ok=True)
        floor = 1 + abs(settings.rate - TOP) / TOP
        lines = [] if not (folder / "metrics.jsonl").exists() else (folder / "metrics.jsonl").read_text().splitlines()
        for step in range(len(lines) * settings.watch_every, settings.steps + 1, settings.watch_every):
            loss = floor + 1 / (1 + step)
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "validation_loss": loss}) + "\n")
            on_loss(step, loss)
            error = self.fails_at.pop((len(self.started), step), None)
            if error:
                raise error


@pytest.fixture
def tune(monkeypatch):
    """tune(fails_at): from now on, tuning is the stand-in, which fails once in each (run, step) of fails_at."""

    def replace(fails_at=(), page=False):
        found = Tuning(fails_at)
        monkeypatch.setattr(sweep.tuning, "run", found)
        if not page:  # drawn after every trial, which one test looks at
            monkeypatch.setattr(sweep, "write", lambda *given: None)
        return found

    return replace


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


def test_it_finds_the_best_of_its_trials_and_prunes_those_behind(tmp_path, manifest, tune):
    tune()
    sweep.run(config(manifest), tmp_path)
    told = results(tmp_path)
    rates = [trial["settings"]["rate"] for trial in told["trials"]]
    assert len(told["trials"]) == 6 and rates[0] == config(manifest).tune.rate
    ended = [trial for trial in told["trials"] if trial["state"] == "ended"]
    assert told["best"] == min(ended, key=lambda trial: abs(trial["settings"]["rate"] - TOP))
    pruned = [trial for trial in told["trials"] if trial["state"] == "pruned"]
    assert pruned and all(trial["curve"][-1][0] >= 2 * 15 for trial in pruned)  # each was given two looks
    assert len(ended) >= 3 and told["trials"][0]["curve"][0][0] == 0
    assert not list(tmp_path.glob("trials/*/checkpoints"))


def test_the_page_says_what_was_found(tmp_path, manifest, tune):
    tune(page=True)
    sweep.run(config(manifest, trials=1), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Sweep: 1 of 1 trials" in page and "The best held-out loss is 1.613, 2.6 before tuning" in page
    assert "://" not in page and "--config.rate=0.002" in page


def test_stopped_within_a_trial_it_goes_on_and_finds_the_same(tmp_path, manifest, tune):
    for folder in ("whole", "cut"):
        (tmp_path / folder).mkdir()
    tune()
    sweep.run(config(manifest), tmp_path / "whole")
    stop = Stopped("told to stop")
    cut = tune({(2, 30): stop, (5, 0): stop})
    for _ in range(2):
        with pytest.raises(Stopped):
            sweep.run(config(manifest), tmp_path / "cut")
    sweep.run(config(manifest), tmp_path / "cut")
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert cut.started[1] == cut.started[2] and cut.started[4] == cut.started[5]  # the cut trials were taken up again
    again = tune()
    sweep.run(config(manifest), tmp_path / "cut")
    assert not again.started
    sweep.run(config(manifest, trials=7), tmp_path / "cut")
    assert len(results(tmp_path / "cut")["trials"]) == 7


def test_a_trial_without_a_finite_loss_is_pruned_and_the_sweep_goes_on(tmp_path, manifest, tune):
    tune({(1, 0): NotFinite("tune: the loss was not finite at steps 1 to 5")})
    sweep.run(config(manifest, trials=3), tmp_path)
    told = results(tmp_path)
    assert [trial["state"] for trial in told["trials"]] == ["pruned", "ended", "ended"]
    assert told["trials"][0]["validation_loss"] is None


def test_one_choice_fixes_a_setting_and_whole_numbers_stay_whole(tmp_path, manifest, tune):
    tune()
    space = {"space.lora.rank": {"low": 4, "high": 64}, "space.steps": (30,)}
    sweep.run(config(manifest, trials=4, **space), tmp_path)
    chosen = [trial["settings"] for trial in results(tmp_path)["trials"]]
    assert all(each["steps"] == 30 and isinstance(each["lora.rank"], int) for each in chosen)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"space.rate": {"low": 0.0, "high": 1.0}}, "config.space.rate: low = 0.0, high = 1.0; give 0 < low <= high"),
        ({"space.rate": 1e-4}, "config.space.rate = 0.0001; give a range {low, high} or numbers or words"),
        ({"space.steps": ()}, "config.space.steps = (); give a range"),
        ({"space.lora": {"targets": (("attention",),)}}, "config.space.lora.targets = (('attention',),); give a range"),
        ({"space.lora": {"rang": (4,)}}, "config.space.lora.rang: config.tune has no such setting"),
        ({"space": {}}, "config.space is empty"),
        ({"tune.validation_draws": 0}, "nothing to judge by; needs a validation split"),
        ({"tune.manifest": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_one_line(tmp_path, manifest, tune, changes, said):
    tune()
    with pytest.raises(UserError) as error:
        sweep.run(config(manifest, **changes), tmp_path)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / sweep.DATABASE).exists()


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"space.lora.rank": (4, 8)},
            "config.space.lora.rank = (4, 8): earlier trials had other choices; give those, or",
        ),
        ({"space.lora.rank": {"low": 4, "high": 8}}, "config.space.lora.rank = {"),
        ({"space.loss": {"snr_gamma": (0.0, 5.0)}}, "config.space.loss.snr_gamma: not in earlier trials; give the set"),
        ({"space.lora": {}}, "config.space.lora.rank: only in earlier trials"),
    ],
)
def test_a_space_that_earlier_trials_cannot_be_in_is_one_line(tmp_path, manifest, tune, changes, said):
    tune()
    sweep.run(config(manifest, trials=1), tmp_path)
    again = tune()
    with pytest.raises(UserError) as error:
        sweep.run(config(manifest, trials=2, **changes), tmp_path)
    assert said in str(error.value) and "\n" not in str(error.value) and not again.started
    sweep.run(config(manifest, trials=2, **{"space.rate": {"low": 1e-3, "high": 5e-3}}), tmp_path)
    assert len(again.started) == 1, "a range may be another"


def test_a_sweep_that_was_moved_goes_on_within_its_trial(tmp_path, manifest, tune):
    (tmp_path / "here").mkdir()
    cut = tune({(1, 30): Stopped("told to stop")})
    with pytest.raises(Stopped):
        sweep.run(config(manifest, trials=1), tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    sweep.run(config(manifest, trials=1), tmp_path / "there")
    assert cut.started[0] == cut.started[1]


def test_a_study_without_room_or_damaged_is_one_line(tmp_path):
    asked = {"startup": 1, "patience": 1}
    with pytest.raises(UserError, match=r"study.db: .+; make room"), sweep.open_study(tmp_path, **asked) as study:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "study.db").stat().st_size, hard))
        try:
            for _ in range(300):
                study.tell(study.ask(sweep.distributions({"rate": {"low": 1e-5, "high": 1e-3}})), 1.0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (tmp_path / "study.db").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match=r"file is not a database.*delete it"), sweep.open_study(tmp_path, **asked):
        pass


def test_the_study_is_quiet(tmp_path):
    with sweep.open_study(tmp_path, startup=1, patience=1):
        pass
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING
