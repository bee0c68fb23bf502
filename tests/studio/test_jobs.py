"""The queue: in order, one at a time, full with a fair answer, stopped at once or at the next preview."""

import threading
import time

import pytest

from dermjax.errors import UserError
from dermjax.studio import jobs
from dermjax.studio.calls import Refused
from dermjax.studio.jobs import Job, Queue


def wait_for(condition, seconds=5):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture
def gate():
    """An event that the work of these tests waits for, opened at their end."""
    event = threading.Event()
    yield event
    event.set()


def waiting(gate, client="a"):
    return Job(client=client, work=lambda job: gate.wait(10), total=1)


def test_jobs_are_made_in_order_and_a_full_queue_says_so(gate):
    queue = Queue()
    first = queue.put(waiting(gate))
    wait_for(lambda: first.state == "working")
    others = [queue.put(waiting(gate, client)) for client in "aaaabbbb"]
    assert [queue.place(job) for job in (first, *others)] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    with pytest.raises(Refused, match="the queue is full: 8 jobs wait"):
        queue.put(waiting(gate, "c"))
    queue.stop(others[-1])
    assert others[-1].state == "stopped"
    with pytest.raises(Refused, match="full for you: 4 of your jobs"):
        queue.put(waiting(gate, "a"))
    last = queue.put(waiting(gate, "c"))
    gate.set()
    wait_for(lambda: last.state == "done")
    assert all(job.state == "done" for job in others[:-1])


def test_a_working_job_stops_at_its_next_preview(gate):
    def work(job):
        for step in range(1, 1000):
            job.reach(step, b"preview")
            time.sleep(0.005)

    queue = Queue()
    job = queue.put(Job(client="a", work=work, total=1000))
    wait_for(lambda: job.step > 2)
    assert job.seconds_left > 0 and job.preview == b"preview"
    queue.stop(job)
    wait_for(lambda: job.state == "stopped")
    assert job.step < 1000 and job.error == ""


def test_a_job_that_fails_leaves_the_queue_at_work(capsys):
    def mendable(job):
        raise UserError("the prompt is too long")

    def ours(job):
        raise RuntimeError("a bug")

    queue = Queue()
    failed = [queue.put(Job(client="a", work=work, total=1)) for work in (mendable, ours)]
    after = queue.put(Job(client="a", work=lambda job: None, total=1))
    wait_for(lambda: after.state == "done")
    assert [job.state for job in failed] == ["failed", "failed"]
    assert failed[0].error == "the prompt is too long" and "a bug" not in failed[1].error
    assert "a bug" in capsys.readouterr().err


def test_old_jobs_are_forgotten():
    queue = Queue()
    for _ in range(jobs.KEPT + 10):
        job = queue.put(Job(client="a", work=lambda job: None, total=1))
        wait_for(lambda job=job: job.state == "done")
    assert len(queue.jobs) <= jobs.KEPT + 1
    with pytest.raises(Refused):
        queue.get("x")
