"""Training curves: what a run folder's metrics.jsonl holds, as series of (step, value)."""

from pathlib import Path

import numpy as np

from dermjax.errors import UserError
from dermjax.training import writers

Series = tuple[np.ndarray, np.ndarray]
FILE = "metrics.jsonl"


def logged(folder: Path) -> bool:
    """Whether a folder is that of a training, or holds predictions alone."""
    return (folder / FILE).is_file()


def read(folder: Path, name: str) -> Series:
    """Steps and values [points] of one scalar; empty where the run has not logged it."""
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"metrics {path}: no such file; give the workdir of a finished run")
    logged = [record for record in writers.read(path) if name in record]
    return np.array([record["step"] for record in logged], int), np.array([record[name] for record in logged], float)
