"""Prepared configs: files below the folder of the runs that a person put there, started and stopped from the page.

A file is named by its stage, tune.py or tune_few.py, and its run by the file: RUNS/tune_few, with what it prints in
RUNS/tune_few.log. The browser chooses among such files and says nothing else: no flag, no path, no command. A stop is
SIGTERM, after which a training has saved its step and goes on where it was when it is started again.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from dermjax import config_file, run_folder
from dermjax.studio import runs
from dermjax.studio.calls import Field, Refused
from dermjax.studio.folder import Folder

STAGES = tuple(dict.fromkeys(name.partition(":")[0] for name in config_file.VARIANTS))
NAME = re.compile(rf"({'|'.join(STAGES)})(_[\w-]{{1,80}})?\.py")
FIELDS = {"config": Field(kind=str, summary="a name out of /api/prepared", most=300)}


class Prepared:
    """The prepared configs of a folder, of which one is at work at a time."""

    def __init__(self, folder: Folder):
        self.folder, self.lock = folder, threading.Lock()
        self.process: subprocess.Popen | None = None
        self.started = ""  # the config that it works for

    def listed(self) -> dict:
        """The configs: the run that each makes, its state, and the last line that it printed.

        state: "" where none was made, starting until it works in its folder, else as `runs.state` says.
        """
        return {"configs": [self._state(name, path) for name, path in self._files().items()]}

    def start(self, config: str) -> dict:
        """Starts a config, or goes on with it where it was stopped; Refused while another one is at work."""
        path = self._file(config)
        with self.lock:
            if self._works():
                raise Refused(f"{self.started} is at work; stop it or wait for its end", 409)
            if run_folder.is_locked(self._workdir(path)):
                raise Refused("a run that was started elsewhere works in this folder", 409)
            stage, log = NAME.fullmatch(path.name)[1], self._log(path)
            command = [sys.executable, "-m", "dermjax", stage, f"--config={path}", f"--workdir={self._workdir(path)}"]
            # what the studio compiles is removed with it
            environment = {name: text for name, text in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
            with log.open("wb") as file:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
                )
            self.started = config
        return self._state(config, path)

    def stop(self, config: str) -> dict:
        """Tells a config that this studio started to stop."""
        path = self._file(config)
        with self.lock:
            if not self._works() or self.started != config:
                raise Refused("this studio has not started it; stop it where it was started", 409)
            self.process.send_signal(signal.SIGTERM)
        return self._state(config, path)

    def _works(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _state(self, name: str, path: Path) -> dict:
        ours, workdir = self.started == name and self._works(), self._workdir(path)
        state = runs.state(workdir) if workdir.is_dir() else ""
        if ours and state != "running":
            state = "starting"
        said = runs.last_line(self.folder, workdir)
        return {"config": name, "run": self.folder.name(workdir), "state": state, "ours": ours, "said": said}

    def _files(self) -> dict[str, Path]:
        files = {}
        for folder, names in self.folder.folders():
            for path in (folder / name for name in sorted(names) if NAME.fullmatch(name)):
                if path.is_file() and not path.is_symlink():
                    files[self.folder.name(path)] = path
        return files

    def _file(self, name: str) -> Path:
        files = self._files()
        if name not in files:
            raise Refused("there is no such config; the list of prepared configs has their names", 404)
        return files[name]

    def _workdir(self, path: Path) -> Path:
        return self.folder.root / path.stem

    def _log(self, path: Path) -> Path:
        log = runs.log(self._workdir(path))
        if log.is_symlink() or self._workdir(path).is_symlink():
            raise Refused(f"{path.stem} is a link; replace it by a folder", 403)
        return log
