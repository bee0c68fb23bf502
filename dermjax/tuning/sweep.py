"""`dermjax sweep`: which rate, rank, steps and weighting of the loss serve held-out real images best.

space -> trials, each a run of `tune` that may be pruned -> results.json and report.html
"""

import json
import shutil
from pathlib import Path

import jax
import optuna
from ml_collections import ConfigDict
from optuna.trial import TrialState

from dermjax.data import records
from dermjax.errors import UserError
from dermjax.progress import cost, say
from dermjax.run_folder import write_atomically
from dermjax.tuning import findings, search


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the trials that are still to run and leaves what they found."""
    if jax.process_count() > 1:
        raise UserError("sweep: runs in one process, over all of its devices; start it on one host")
    manifest = records.read(Path(config.tune.manifest))
    if not manifest.split("validation") or not config.tune.validation_draws:
        raise UserError("sweep: nothing to judge by; needs a validation split and config.tune.validation_draws")
    space = dict(search.dimensions(config.space.to_dict(), config.tune))
    if not space:
        raise UserError("config.space is empty: there is nothing to choose")
    search.check(space, config.tune)
    found = search.study(workdir, startup=config.startup, patience=config.patience)
    search.start_from(found, space, config.tune)
    cost("sweep", trials=config.trials, ended=len(search.ended(found)), settings=", ".join(space))
    while len(search.ended(found)) < config.trials:
        trial, chosen = search.ask(found, space, seed=config.seed, startup=config.startup)
        say(f"\nsweep: trial {len(search.ended(found)) + 1} of {config.trials}, {findings.words(chosen)}")
        try:
            found.tell(trial, search.attempt(trial, chosen, config.tune, config.looks, workdir))
        except optuna.TrialPruned:
            found.tell(trial, state=TrialState.PRUNED)
        # what is looked for is settings, not a model
        shutil.rmtree(search.place(workdir, chosen) / "checkpoints", ignore_errors=True)
        told = findings.find(found, workdir)
        write_atomically(workdir / "results.json", json.dumps(told, indent=2) + "\n")
        findings.write(workdir, told, config)
        say(f"sweep: {findings.sentence(told)}")
    say(f"sweep: results.json and report.html are in {workdir}")
