"""Scalars and images of a run: one JSON line a record in metrics.jsonl, and TensorBoard events, which have both."""

import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from dermjax.run_folder import write_atomically


class Writer:
    """Appends scalars by step; what a run wrote after the step that it resumes from (-1 for a new one) is dropped.

    Of several processes the first one writes: all have the same scalars, and the folder may be one for all of them.
    """

    def __init__(self, workdir: Path, resumed_at: int):
        self.writes = jax.process_index() == 0
        if not self.writes:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        self.path = workdir / "metrics.jsonl"
        kept = [line for line in read(self.path) if line["step"] <= resumed_at]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = self.path.open("a")
        # a file for each start, named by its process too, as two may be in one second. Without SummaryWriter, whose
        # thread ends on a full disk, after which the one that trains waits for it for ever
        (workdir / "tensorboard").mkdir(exist_ok=True)
        self.events = EventsWriter(str(workdir / "tensorboard" / "events"), f".{os.getpid()}.{resumed_at + 1}")
        # TensorBoard leaves out what an earlier file has of this step and later ones
        self._add(resumed_at + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, record: dict[str, float | np.ndarray]) -> None:
        """Writes one record; its arrays are images uint8 [H, W, 3], which only TensorBoard takes."""
        if not self.writes:
            return
        images = {name: value for name, value in record.items() if isinstance(value, np.ndarray)}
        scalars = {name: value for name, value in record.items() if name not in images}
        self.file.write(json.dumps({"step": step, **scalars}) + "\n")
        self.file.flush()
        for name, value in scalars.items():
            self._add(step, summary=summary.scalar(name, value))
        for name, image in images.items():
            self._add(step, summary=summary.image(name, image, dataformats="HWC"))
        self.events.flush()  # as often as the other file, so that a killed run leaves the same in both

    def _add(self, step: int, **content: Any) -> None:
        self.events.write_event(Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        """Ends both files."""
        if self.writes:
            self.file.close()
            self.events.close()


def read(path: Path) -> list[dict]:
    """Returns the records of a metrics.jsonl; a last line that a killed run left half-written does not count."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
