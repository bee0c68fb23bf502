"""A run in parts that need nothing of each other, as the array jobs of clusters start them.

Place in the flow: `--config.part=3/8`, or what Slurm, Kubernetes or SkyPilot says of this process -> a share of the
plan, always the same, and a folder of the workdir for what the part says of itself -> `dermjax merge WORKDIR`. Images
go where those of an undivided run go, so that the joined records are its records.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dermjax import buckets, run_folder
from dermjax.errors import UserError
from dermjax.run_folder import write_atomically

FILE = "part.json"  # of a part's folder, written last
SHAPES = {"stage": str, "part": str, "total": int, "places": list, "left_out": list, "causes": dict, "findings": dict}
GIVEN = re.compile(r"(\d{1,9})/(\d{1,9})")
FOLDER = re.compile(r"part-(\d{5,})-of-(\d{5,})")
SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
# Index and count of a process, from 0 on. Those below Slurm's number the processes of one program as well, where
# `jax.distributed` joins them. Kubernetes sets the index of an Indexed Job alone; its manifest has to give the count.
NUMBERED = (SLURM, ("JOB_COMPLETION_INDEX", "JOB_COMPLETION_COUNT"), ("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"))


@dataclass(frozen=True, order=True)
class Part:
    """Part `index` of `count`, from 0 on."""

    count: int
    index: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def folder(self) -> str:
        """The name of its folder in the workdir."""
        return f"part-{self.index:05d}-of-{self.count:05d}"

    def check(self, units: int, what: str) -> None:
        """Raises UserError where there are fewer units of the work than parts."""
        if units < self.count:
            raise UserError(f"config.part = {self}: there are {units} {what} to divide; take at most as many parts")

    def block(self, total: int) -> range:
        """Returns its share of so many places that follow each other; shares differ by at most one."""
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)


@dataclass(frozen=True)
class Finished:
    """What a part says once it is done.

    places: of its records in the plan, ascending, one a record. left_out: places of its share that came to no record.
    total: the places of the whole plan. causes: what all parts must have in common. findings: the stage's own.
    """

    stage: str
    part: str
    total: int
    places: Sequence[int]
    left_out: Sequence[int]
    causes: Mapping[str, Any]
    findings: Mapping[str, Any]


def read(text: str) -> Part | None:
    """Returns the part that config.part gives, None for "" and for a whole in one part; UserError for anything else."""
    if not text:
        return None
    given = GIVEN.fullmatch(text)
    index, count = map(int, given.groups()) if given else (0, 0)
    if index >= count:
        raise UserError(f"config.part = {text!r}: give i/n with i from 0 to n - 1, such as 3/8, the fourth of eight")
    return Part(count, index) if count > 1 else None


def assigned(environment: Mapping[str, str], *, joined: bool) -> str:
    """Returns the part that a cluster gave this process, as config.part has it, "" where there is none.

    joined: whether `jax.distributed` joins this process with others, whose numbers are no parts then.
    """
    for index, count in (SLURM,) if joined else NUMBERED:
        if not environment.get(index):
            continue
        if not environment.get(count):
            raise UserError(f"{index} is set and {count} not; set it to how many there are, or give --config.part=i/n")
        first = environment.get("SLURM_ARRAY_TASK_MIN", "0") if index == SLURM[0] else "0"
        last = environment.get("SLURM_ARRAY_TASK_MAX") if index == SLURM[0] else None
        numbers = [environment[index], environment[count], first, *([last] if last else [])]
        if not all(number.isdecimal() for number in numbers):
            raise UserError(f"{index}={environment[index]}, {count}={environment[count]}: not whole numbers")
        if last and int(last) - int(first) + 1 != int(environment[count]):
            raise UserError(f"{index}: the array has gaps, so that parts cannot be numbered; give --config.part=i/n")
        return f"{int(environment[index]) - int(first)}/{environment[count]}"
    return ""


def folders(workdir: Path) -> dict[Part, Path]:
    """Returns the folders of parts in a workdir, in order."""
    matches = {path: FOLDER.fullmatch(path.name) for path in (workdir.iterdir() if workdir.is_dir() else ())}
    return dict(sorted((Part(int(match[2]), int(match[1])), path) for path, match in matches.items() if match))


def refuse_others(workdir: Path, part: Part, config: Mapping) -> None:
    """Raises UserError where the workdir holds parts of another division, or of another config than this one's."""
    for other, folder in folders(workdir).items():
        if other.count != part.count:
            raise UserError(f"workdir {workdir} is divided into {other.count} parts and not {part.count}; give another")
        if (folder / run_folder.CONFIG).is_file():
            run_folder.check_config(folder, {**config, "part": str(other)}, run_folder.OR_ALLOW)


def root(workdir: Path, part: Part | None) -> Path:
    """Returns the folder that images are relative to: the workdir of the whole run."""
    return workdir.parent if part else workdir


def begin(workdir: Path) -> None:
    """Takes back that a part, or a whole run, is finished, before anything of it is made again."""
    for name in (FILE, run_folder.CAUSES):
        buckets.remove(workdir / name)


def is_finished(workdir: Path, part: Part | None, file: str, causes: Mapping) -> bool:
    """As `run_folder.is_finished`; of a part only where it says so as well, as `merge` goes by that."""
    return run_folder.is_finished(workdir, file, causes) and (not part or read_finished(workdir) is not None)


def finish(workdir: Path, finished: Finished) -> None:
    """Records that a part is done; the last file that it writes."""
    buckets.put_all(workdir)
    write_atomically(workdir / FILE, json.dumps(vars(finished), sort_keys=True) + "\n")


def read_finished(folder: Path) -> Finished | None:
    """Returns what the part in a folder says, None where it is not finished; UserError for a damaged file."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        finished = Finished(**json.loads(path.read_text()))
        misshapen = [name for name, kind in SHAPES.items() if type(getattr(finished, name)) is not kind]
        if misshapen:
            raise ValueError(f"{misshapen[0]} is no {SHAPES[misshapen[0]].__name__}")
        if any(type(place) is not int or place < 0 for place in (*finished.places, *finished.left_out)):
            raise ValueError("a place is no whole number from 0 on")
        if any(place >= after for place, after in pairwise(finished.places)):
            raise ValueError("its places do not ascend")
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run the part again") from error
    return finished
