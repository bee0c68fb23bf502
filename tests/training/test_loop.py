"""The loop counts, evaluates and resumes to the same numbers, and says what stops it."""

import contextlib
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from dermjax import sharding
from dermjax.data import pipelines
from dermjax.errors import Stopped, UserError
from dermjax.training import checkpoints, optimizers, rounding, writers


def test_training_fits_and_counts(train, tmp_path):
    state = train(tmp_path, 20)
    records = writers.read(tmp_path / "metrics.jsonl")
    assert records[-1]["loss"] < 0.7 * records[0]["loss"]
    assert int(state.step) == 20 and int(state.variables["seen"]) == 160
    assert [r["step"] for r in records] == [1, 3, 5, 6, 9, 10, 12, 15, 18, 20]
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert checkpoints.steps(tmp_path / "checkpoints") == [15, 20]


@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_batch_in_parts_changes_no_number(train, tmp_path, accumulate):
    whole = train(tmp_path / "whole", 10)
    parts = train(tmp_path / "parts", 10, accumulate=accumulate)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    last = [writers.read(tmp_path / name / "metrics.jsonl")[-1] for name in ("whole", "parts")]
    assert last[0] == pytest.approx(last[1], rel=1e-5)


def test_resumed_equals_uninterrupted_bit_for_bit(train, tmp_path):
    whole = train(tmp_path / "whole", 20)
    train(tmp_path / "halves", 13)
    halves = train(tmp_path / "halves", 20)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(halves), strict=True):
        np.testing.assert_array_equal(a, b)
    final = [writers.read(tmp_path / name / "metrics.jsonl")[-1] for name in ("whole", "halves")]
    assert final[0]["step"] == final[1]["step"] == 20


def test_a_checkpoint_of_a_later_step_is_not_the_result_of_fewer(train, tmp_path):
    train(tmp_path, 10)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"holds step 10 and 7 steps are asked for; give 10 or more") as error:
        train(tmp_path, 7)
    assert "\n" not in str(error.value) and (tmp_path / "metrics.jsonl").read_bytes() == before
    assert int(train(tmp_path, 10).step) == 10


def test_a_run_that_ended_early_gives_its_best_again(train, tmp_path):
    losses = {0: 9.0, 5: 1.0, 10: 2.0, 15: 3.0}
    look = {"evaluate": lambda state, constants: {"held_out": losses[int(state.step)]}, "minimise": "held_out"}
    for _ in range(2):
        assert int(train(tmp_path, 20, evaluate_every=5, patience=5, **look).step) == 5


def test_a_copy_within_a_step_is_noticed(train, tmp_path, monkeypatch):
    """The guard that every test here runs under: a batch that was not placed has to be fetched by the step."""
    monkeypatch.setattr(sharding, "place", lambda batch, grid: batch)
    with pytest.raises(RuntimeError, match="Disallowed host-to-device transfer"):
        train(tmp_path, 1)


class Terminated:
    """Batches of which the fourth brings SIGTERM."""

    number = signal.SIGTERM

    def __init__(self, batches):
        self.batches, self.left = batches, 4
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
        return next(self.batches)


def test_told_to_stop_it_saves_and_goes_on_to_the_same_end(train, tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", 20)
    arrays = pipelines.array_batches
    with monkeypatch.context() as patch:
        patch.setattr(pipelines, "array_batches", lambda *args, **kwargs: Terminated(arrays(*args, **kwargs)))
        with pytest.raises(Stopped, match="told to stop, step 4 of 20 is saved"):
            train(tmp_path / "told", 20)
    assert checkpoints.steps(tmp_path / "told" / "checkpoints") == [4]
    told = train(tmp_path / "told", 20)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(told), strict=True):
        np.testing.assert_array_equal(a, b)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_metrics_written_after_the_checkpoint_are_not_doubled(train, tmp_path):
    train(tmp_path, 10)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 12, "loss": 9.0}) + '\n{"step": 13, "lo')  # killed in the middle of a line
    train(tmp_path, 20)
    steps = [r["step"] for r in writers.read(tmp_path / "metrics.jsonl")]
    assert steps == sorted(set(steps))


class Poisoned:
    """Batches of which those of the given steps hold a number that is none; each says its rows."""

    def __init__(self, batches, bad):
        self.batches, self.bad, self.count = batches, bad, 0
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self):
        self.count += 1
        batch = next(self.batches)
        rows = np.arange(8, dtype=np.int32) + self.count
        return batch | {"row": rows, "x": batch["x"] * (np.nan if self.count in self.bad else 1)}


@pytest.fixture
def poison(monkeypatch):
    """poison(steps): the batches of these steps are poisoned from now on."""
    arrays = pipelines.array_batches

    def pour(*bad):
        monkeypatch.setattr(pipelines, "array_batches", lambda *args, **kwargs: Poisoned(arrays(*args, **kwargs), bad))

    return pour


def test_a_step_without_a_finite_loss_changes_nothing_and_is_counted(train, tmp_path, poison):
    poison(3, 4, 7)
    state = train(tmp_path, 9)
    records = {r["step"]: r for r in writers.read(tmp_path / "metrics.jsonl")}
    assert int(state.variables["seen"]) == 8 * 6 and int(state.step) == 9
    assert {k: r.get("skipped", 0) for k, r in records.items()} == {1: 0, 3: 1, 5: 1, 6: 0, 9: 1}
    assert all(np.isfinite(list(r.values())).all() for r in records.values())
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_five_in_a_row_stop_it_and_say_where_and_on_what(train, tmp_path, poison):
    poison(*range(7, 20))
    names = [f"image{i}.png" for i in range(40)]
    with pytest.raises(UserError) as error:
        train(tmp_path, 20, names=names)
    said = str(error.value)
    assert "line: the loss or its gradient was not finite at steps 7 to 12, on image7.png, image8.png" in said
    assert "…; lower the rate" in said and said.endswith("00000010 is good") and "\n" not in said
    assert checkpoints.steps(tmp_path / "checkpoints") == [5, 10]


def test_bfloat16_parameters_move_by_less_than_their_steps(tmp_path):
    """The rate is below half a step of bfloat16 at one, where rounding to the nearest would leave them still."""
    params = {"kernel": jnp.ones((4, 4096), jnp.bfloat16)}
    updates = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e-3), params)
    moved = rounding.add(params, updates, jax.random.key(0))["kernel"]
    assert moved.dtype == jnp.bfloat16 and len(np.unique(np.asarray(moved, np.float32))) == 2
    assert float(moved.astype(jnp.float32).mean()) == pytest.approx(1.001, abs=2e-4)


def test_a_loss_that_is_not_finite_names_the_step(train, tmp_path, poison):
    poison(*range(1, 21))
    with pytest.raises(UserError, match="gradient was not finite at steps 1 to 5; lower the rate"):
        train(tmp_path, 20)


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_a_rate_that_is_not_finite_is_refused(train, tmp_path, rate):
    with pytest.raises(UserError, match=f"rate {rate} is not a finite number"):
        train(tmp_path, 20, rate=rate)


def test_unknown_names_list_near_ones():
    with pytest.raises(UserError, match="did you mean adamw"):
        optimizers.build("adam", rate=1.0, warmup=0, steps=1, schedule="constant", weight_decay=0.0, clip=1.0)


@pytest.mark.parametrize("rate, steps", [(1e30, 3), (1e30, 4)])
def test_a_run_whose_last_steps_do_not_count_saves_nothing(train, tmp_path, rate, steps):
    with pytest.raises(UserError, match=rf"gradient was not finite at steps? .*{steps}; lower the rate"):
        train(tmp_path, steps, rate=rate)
    assert not checkpoints.steps(tmp_path / "checkpoints")


def test_the_last_step_alone_not_counting_is_refused_too(train, tmp_path, poison):
    poison(9)
    with pytest.raises(UserError, match=r"was not finite at step 9; lower the rate or .*00000005 is good"):
        train(tmp_path, 9)


def test_periods_of_0_are_off(train, tmp_path):
    looks = []

    def look(state, constants):
        looks.append(int(state.step))
        return {}

    state = train(tmp_path, 12, save_every=0, evaluate=look, evaluate_every=0)
    assert int(state.step) == 12 and looks == []
    assert checkpoints.steps(tmp_path / "checkpoints") == [12]
    assert [r["step"] for r in writers.read(tmp_path / "metrics.jsonl")] == [1, 3, 6, 9, 12]


def test_a_held_out_loss_that_ends_as_none_is_refused(train, tmp_path):
    with pytest.raises(UserError, match="line: held_out is not finite; lower the rate"):
        train(
            tmp_path, 4, evaluate=lambda state, constants: {"held_out": np.nan}, evaluate_every=2, minimise="held_out"
        )


@pytest.mark.parametrize(("patience", "ends", "best"), [(1, 15, 10), (5, 15, 10), (9, 19, 10), (10, 20, 20)])
def test_patience_waits_for_the_next_evaluation_at_least(train, tmp_path, patience, ends, best):
    """The evaluation of step 10 is better than that of step 5, and of step 15 worse, whatever patience says."""
    losses = {0: 0.0, 5: 3.0, 10: 2.0, 15: 4.0, 20: 1.0}  # that before the first step counts for nothing

    def look(state, constants):
        return {"held_out": losses[int(state.step)]}

    state = train(tmp_path, 20, evaluate=look, evaluate_every=5, patience=patience, minimise="held_out", log_every=1)
    assert writers.read(tmp_path / "metrics.jsonl")[-1]["step"] == ends and int(state.step) == best


def test_patience_without_an_evaluation_that_may_be_the_best_is_told(train, tmp_path, capsys):
    given = {"evaluate_every": 2, "patience": 2, "minimise": "held_out"}
    assert int(train(tmp_path / "none", 4, evaluate=lambda state, constants: {}, **given).step) == 4
    assert "no evaluation may be the best, so the last step is taken" in capsys.readouterr().out
    train(tmp_path / "some", 4, evaluate=lambda state, constants: {"held_out": 1.0}, **given)
    assert "may be the best" not in capsys.readouterr().out


@pytest.fixture
def ctrl_c():
    """SIGINT as Python hears it, also where the tests were started to ignore it, as by a shell in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_told_by_ctrl_c_it_saves_and_says_so(train, tmp_path, monkeypatch):
    arrays = pipelines.array_batches
    interrupting = lambda *args, **kwargs: Interrupted(arrays(*args, **kwargs))  # noqa: E731
    monkeypatch.setattr(pipelines, "array_batches", interrupting)
    with pytest.raises(KeyboardInterrupt, match="told to stop, step 4 of 20 is saved"):
        train(tmp_path, 20)
    assert checkpoints.steps(tmp_path / "checkpoints") == [4]
    with pytest.raises(KeyboardInterrupt, match="told to stop, step 8 of 8 is saved"):  # the last one, too
        train(tmp_path, 8)


class Interrupted(Terminated):
    """Batches of which the fourth brings Ctrl-C."""

    number = signal.SIGINT


def test_tensorboard_has_the_lines_of_the_metrics_after_kills(train, tmp_path):
    """What was written after the checkpoint stands in the files still, and TensorBoard leaves it out."""
    train(tmp_path, 10)
    with contextlib.closing(writers.Writer(tmp_path, 10)) as writer:
        writer.write(12, {"loss": 9.0})
    train(tmp_path, 20)
    found = []
    for path in sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:  # TFRecord: length, its checksum, an event, its checksum
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.HasField("session_log"):
                found = [each for each in found if each[0] < event.step]
            found += [(event.step, each.simple_value) for each in event.summary.value if each.tag == "loss"]
    written = [(r["step"], np.float32(r["loss"])) for r in writers.read(tmp_path / "metrics.jsonl")]
    assert found == written
