"""Jobs: one thread makes them one after the other; a short queue says when it is full, and any job can be stopped."""

import logging
import secrets
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from dermjax.errors import Stopped, UserError
from dermjax.studio.calls import OUR_FAULT, Refused

WAITING, WAITING_EACH = 8, 4  # jobs that may wait, of all clients and of one
KEPT = 64  # jobs that can still be asked for

# which prints a traceback for every stop, that being how a computation is left in its middle
logging.getLogger("jax._src.debugging").addFilter(lambda record: "Stopped" not in str(record.exc_info))


@dataclass
class Job:
    """Something to be made in `total` steps. state: waiting, working, done, stopped or failed."""

    client: str
    work: Callable[["Job"], None]
    total: int
    key: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    state: str = "waiting"
    step: int = 0
    before: float = 0.0  # seconds of time.monotonic at the first step, of which compilation is no part
    preview: bytes = b""
    images: list[str] = field(default_factory=list)
    error: str = ""
    told_to_stop: bool = False

    def reach(self, step: int, preview: bytes) -> None:
        """Notes the step and what there is to see; raises Stopped where the job was told to stop."""
        if self.told_to_stop:
            raise Stopped("stopped")
        self.before = self.before or time.monotonic()
        self.step, self.preview = step, preview

    @property
    def seconds_left(self) -> float | None:
        """By the steps so far; None before the second."""
        if self.state != "working" or self.step < 2:
            return None
        return (time.monotonic() - self.before) / (self.step - 1) * (self.total - self.step)


class Queue:
    """Jobs in the order that they came in."""

    def __init__(self):
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self.waiting: list[Job] = []
        self.changed = threading.Condition()
        threading.Thread(target=self._work, daemon=True).start()

    def put(self, job: Job) -> Job:
        """Adds a job; Refused where the queue is full."""
        with self.changed:
            if len(self.waiting) >= WAITING:
                raise Refused(f"the queue is full: {WAITING} jobs wait; try again in a moment", 503)
            if sum(each.client == job.client for each in self.waiting) >= WAITING_EACH:
                raise Refused(
                    f"the queue is full for you: {WAITING_EACH} of your jobs wait; try again in a moment", 503
                )
            self.waiting.append(job)
            self.jobs[job.key] = job
            ended = [each.key for each in self.jobs.values() if each.state not in ("waiting", "working")]
            for key in ended[: max(len(self.jobs) - KEPT, 0)]:
                del self.jobs[key]
            self.changed.notify()
        return job

    def get(self, key: str) -> Job:
        """The job of a key; Refused where there is none."""
        if key not in self.jobs:
            raise Refused("there is no such job", 404)
        return self.jobs[key]

    def place(self, job: Job) -> int:
        """How many jobs come before this one, the working one too; 0 where it does not wait."""
        with self.changed:
            if job not in self.waiting:
                return 0
            return self.waiting.index(job) + any(each.state == "working" for each in self.jobs.values())

    def stop(self, job: Job) -> None:
        """Stops a job: at once where it waits, at its next preview where it works."""
        with self.changed:
            job.told_to_stop = True
            if job in self.waiting:
                self.waiting.remove(job)
                job.state = "stopped"

    def _work(self) -> None:
        while True:
            with self.changed:
                while not self.waiting:
                    self.changed.wait()
                job = self.waiting.pop(0)
                job.state = "working"
            job.state = _done(job)


def _done(job: Job) -> str:
    """The state that a job ends in; whatever it raises ends it, and not the thread."""
    try:
        job.work(job)
    except UserError as error:
        job.error = str(error)
    except Exception as error:  # a stop reaches us through XLA as an error of its own
        if job.told_to_stop:
            return "stopped"
        traceback.print_exception(error)
        job.error = OUR_FAULT
    return "failed" if job.error else "done"
