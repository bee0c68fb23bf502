import pytest

from dermjax import progress


class Terminal:
    """Standard output as a terminal has it."""

    def __init__(self):
        self.written = ""

    def write(self, text):
        self.written += text

    def flush(self):
        pass

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests wind: clock[0] is the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_elsewhere_lines_come_first_every_ten_seconds_and_last(clock, capsys):
    with progress.bar(total=150, title="tune", unit="steps", done=0) as bar:
        for _ in range(150):
            clock[0] += 0.2
            bar.update(loss=0.12345678)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "tune: 0/150 steps",
        "tune: 50/150 steps, 5 steps/s, 20 s left, loss=0.1235",
        "tune: 100/150 steps, 5 steps/s, 10 s left, loss=0.1235",
        "tune: 150/150 steps, 5 steps/s, took 30 s, loss=0.1235",
    ]


def test_a_resumed_step_counts_only_its_own_work_in_the_rate(clock, capsys):
    with progress.bar(total=150, title="tune", unit="steps", done=140) as bar:
        clock[0] += 5
        bar.update(10)
    assert capsys.readouterr().out.splitlines() == ["tune: 140/150 steps", "tune: 150/150 steps, 2 steps/s, took 5 s"]


def test_a_slow_first_step_does_not_spoil_the_time_left(clock, capsys):
    with progress.bar(total=100, title="tune", unit="steps", done=0) as bar:
        clock[0] += 60  # compilation
        bar.update()
        clock[0] += 10
        bar.update(10)
    assert capsys.readouterr().out.splitlines()[:3] == [
        "tune: 0/100 steps",
        "tune: 1/100 steps",  # not that 99 of this length are to come
        "tune: 11/100 steps, 1 steps/s, 1 min 29 s left",
    ]


def test_time_left_goes_by_the_run_not_by_its_last_ten_seconds(clock, capsys):
    with progress.bar(total=1001, title="tune", unit="steps", done=0) as bar:
        bar.update()
        for _ in range(5):  # 100 quick steps, then an evaluation
            for _ in range(100):
                clock[0] += 0.1
                bar.update()
            clock[0] += 30
            bar.update(0)
    left = [line.split(", ")[2] for line in capsys.readouterr().out.splitlines()[2:-1]]
    assert left[-2:] == ["4 min left", "3 min 20 s left"]  # 0.4 s a step; the last ten seconds would say 50 s


def test_an_exception_closes_with_what_was_done(clock, capsys):
    with pytest.raises(KeyboardInterrupt), progress.bar(total=9, title="generate", unit="images", done=0) as bar:
        clock[0] += 2
        bar.update(4)
        raise KeyboardInterrupt
    assert capsys.readouterr().out.splitlines()[-1] == "generate: 4/9 images, 2 images/s, took 2 s"


def test_nothing_to_do_is_no_division_by_zero(clock, capsys):
    with progress.bar(total=5, title="generate", unit="images", done=5):
        pass
    assert capsys.readouterr().out.splitlines() == [
        "generate: 5/5 images",
        "generate: 5/5 images, 0 images/s, took 0 s",
    ]


def test_a_terminal_gets_a_bar_and_lines_above_it(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stdout", terminal)
    with progress.bar(total=3, title="tune", unit="steps", done=1) as bar:
        progress.say("a checkpoint was saved")
        bar.update(2, loss=0.5)
    assert "a checkpoint was saved\n" in terminal.written
    assert "tune: 100%" in terminal.written
    assert "3/3" in terminal.written
    assert "loss=0.5" in terminal.written


def test_the_cost_line(capsys):
    progress.cost("tune", devices="1 cpu device", parameters=8_610_000, steps=150, test_images=64, seconds=118.0)
    assert (
        capsys.readouterr().out
        == "tune: 1 cpu device, 8.61 M parameters, 150 steps, 64 test images, about 1 min 58 s\n"
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (85, "1 min 25 s"),
        (720, "12 min"),
        (3599, "60 min"),
        (11100, "3 h 5 min"),
    ],
)
def test_durations_are_for_people(seconds, words):
    assert progress.duration(seconds) == words
