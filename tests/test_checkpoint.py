"""A training that was cut off goes on after its last saved epoch, as if nothing had been."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from forge_sweep import training
from forge_sweep.errors import TrialFailed
from forge_sweep.training import FileCheckpoint, FitSpec
from forge_sweep.training.checkpoint import pack, unpack
from tests.test_epoch import build, problem, state

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

MONITORS = {"binary": "val_auc", "multiclass": "val_auc", "multilabel": "val_auc", "regression": "val_r2"}


class Cut(KeyboardInterrupt):
    """The process comes to its end after an epoch."""


def go_on(epoch, logs):
    return False


def spec(kind="binary", **changes):
    """A fit of eight epochs in which the learning rate is reduced and training may stop early."""
    given = {"epochs": 8, "patience": 3, "batch_size": 32, "monitor": MONITORS[kind], "direction": "maximize"}
    return FitSpec(**{**given, "seed": 7, "identity": "one", **changes})


def fit(kind, wanted, on_epoch, weights=(), **params):
    """Build the same network anew and fit it; returns network and result."""
    task, data = problem(kind, weights)
    model = build(task, **params)
    return model, training.fit(model, task, data, wanted, on_epoch)


def cut_after(kind, checkpoint, epoch, weights=(), **params):
    """A fit that ends in the middle."""

    def cut(number, logs):
        if number == epoch:
            raise Cut
        return False

    with pytest.raises(Cut):
        fit(kind, spec(kind, checkpoint=checkpoint), cut, weights, **params)


def same(first, second):
    """Whether two lists of arrays are equal bit by bit."""
    return all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("epoch", [0, 4])
@pytest.mark.parametrize(
    ("kind", "weights", "params"),
    [
        ("binary", ("class",), {"optimizer": "adam", "dropout": 0.3, "batch_norm": True, "l2": 0.01}),
        ("multiclass", (), {"optimizer": "sgd", "momentum": 0.9, "dropout": 0.2}),
        ("multilabel", ("sample",), {"optimizer": "nadam", "dropout": 0.2}),
        ("regression", (), {"optimizer": "rmsprop", "momentum": 0.5, "batch_norm": True}),
    ],
)
def test_it_ends_as_a_fit_that_was_not_cut_off(tmp_path, kind, weights, params, epoch):
    whole, expected = fit(kind, spec(kind), go_on, weights, **params)
    checkpoint = FileCheckpoint(tmp_path / "new" / "trial.npz")
    cut_after(kind, checkpoint, epoch, weights, **params)
    seen = []
    resumed, found = fit(
        kind,
        spec(kind, checkpoint=checkpoint),
        lambda number, logs: bool(seen.append((number, logs))),
        weights,
        **params,
    )
    assert same(state(whole), state(resumed))
    assert found.history == expected.history
    assert [number for number, _ in seen] == list(range(len(expected.history)))
    assert [logs for _, logs in seen] == list(expected.history)
    assert (found.best_epoch, found.state, found.batch_size) == (expected.best_epoch, "finished", expected.batch_size)
    assert [event for event in found.events if "taken up" not in event] == list(expected.events)
    assert f"taken up again after epoch {epoch + 1}" in found.events


def test_early_stopping_and_the_learning_rate_remember_what_they_saw(tmp_path):
    """Ascending the gradient makes the first epoch the best one."""
    checkpoint = FileCheckpoint(tmp_path / "trial.npz")

    def ascending(on_epoch, keep):
        task, data = problem("binary")
        model = build(task, optimizer="sgd")
        model.optimizer.learning_rate = -0.05
        wanted = spec(monitor="val_loss", direction="minimize", patience=3, checkpoint=keep)
        return training.fit(model, task, data, wanted, on_epoch)

    expected = ascending(go_on, None)
    with pytest.raises(Cut):
        ascending(lambda epoch, logs: (_ for _ in ()).throw(Cut) if epoch == 1 else False, checkpoint)
    assert ascending(go_on, checkpoint).history == expected.history
    assert len(expected.history) == 4


def test_an_epoch_that_was_the_last_one_is_only_reported_again(tmp_path):
    checkpoint = FileCheckpoint(tmp_path / "trial.npz")
    cut_after("binary", checkpoint, 7)
    whole, expected = fit("binary", spec(), go_on)
    resumed, found = fit("binary", spec(checkpoint=checkpoint), go_on)
    assert found.history == expected.history
    assert same(whole.get_weights(), resumed.get_weights())


def test_a_verdict_that_was_not_heard_is_asked_for_again(tmp_path):
    checkpoint = FileCheckpoint(tmp_path / "trial.npz")
    cut_after("binary", checkpoint, 3)
    _, found = fit("binary", spec(checkpoint=checkpoint), lambda epoch, logs: epoch == 3)
    assert (found.state, len(found.history)) == ("pruned", 4)
    assert found.history[found.best_epoch]["val_auc"] == max(row["val_auc"] for row in found.history)


def test_what_on_epoch_raises_while_epochs_are_reported_again_comes_out(tmp_path):
    checkpoint = FileCheckpoint(tmp_path / "trial.npz")
    cut_after("binary", checkpoint, 3)
    cut_after("binary", checkpoint, 1)
    assert len(unpack(checkpoint.load()).history) == 4


def test_time_counts_over_all_attempts(tmp_path):
    checkpoint = FileCheckpoint(tmp_path / "trial.npz")
    cut_after("binary", checkpoint, 3)
    checkpoint.save(pack(dataclasses.replace(unpack(checkpoint.load()), seconds=1000.0)))
    with pytest.raises(TrialFailed, match=r"longer than its 900 s") as failed:
        fit("binary", spec(checkpoint=checkpoint, deadline_s=900.0), go_on)
    assert failed.value.failure == "time-out"


def test_progress_is_saved_while_training_goes_on(tmp_path, monkeypatch):
    from forge_sweep.training import callbacks

    monkeypatch.setattr(callbacks, "SAVE_FIRST_S", 0.0)
    monkeypatch.setattr(callbacks, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(callbacks, "SAVE_SHARE", 1e9)
    checkpoint = FileCheckpoint(tmp_path / "trial.npz")
    kept = []
    model, _ = fit("binary", spec(checkpoint=checkpoint), lambda epoch, logs: bool(kept.append(checkpoint.load())))
    assert [None if content is None else len(unpack(content).history) for content in kept] == [None, *range(1, 8)]
    assert unpack(checkpoint.load()).over
    plain, _ = fit("binary", spec(), go_on)
    assert same(model.get_weights(), plain.get_weights())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[: len(content) // 2], "cannot be read"),
        (lambda content: b"", "cannot be read"),
        (lambda content: content.replace(b'"one"', b'"two"'), "cannot be read"),  # a checksum does not fit any more
        (lambda content: pack(dataclasses.replace(unpack(content), identity="two")), "that of another training"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_not_used_and_that_is_said(tmp_path, damage, words):
    checkpoint = FileCheckpoint(tmp_path / "trial.npz")
    cut_after("binary", checkpoint, 3)
    checkpoint.save(damage(checkpoint.load()))
    model, found = fit("binary", spec(checkpoint=checkpoint), go_on)
    assert any(words in event and event.startswith("trained from the beginning") for event in found.events)
    plain, expected = fit("binary", spec(), go_on)
    assert found.history == expected.history
    assert same(model.get_weights(), plain.get_weights())


def test_a_full_disk_does_not_end_a_training(tmp_path):
    (tmp_path / "file").touch()
    checkpoint = FileCheckpoint(tmp_path / "file" / "trial.npz")

    def interrupt(epoch, logs):
        if epoch == 1:
            raise Cut
        return False

    with pytest.raises(NotADirectoryError):
        checkpoint.load()
    with pytest.raises(Cut):
        fit("binary", spec(checkpoint=Unwritable()), interrupt)


class Unwritable:
    """A disk without room."""

    def load(self):
        return None

    def save(self, content):
        raise OSError("No space left on device")


def test_a_smaller_batch_goes_on_with_its_share_of_the_learning_rate(tmp_path):
    checkpoint = FileCheckpoint(tmp_path / "trial.npz")
    cut_after("binary", checkpoint, 2, optimizer="sgd", learning_rate=0.02)
    rate = unpack(checkpoint.load()).history[-1]["lr"]
    _, found = fit("binary", spec(checkpoint=checkpoint, batch_size=16), go_on, optimizer="sgd", learning_rate=0.01)
    assert found.history[3]["lr"] == pytest.approx(rate / 2)
    assert found.batch_size == 16
    assert len(found.history) > 3


def test_a_model_that_is_trained_by_fit_goes_on_too(tmp_path):
    """With another order of the rows."""
    checkpoint = FileCheckpoint(tmp_path / "trial.npz")
    task, data = problem("binary")

    def run(on_epoch):
        model = build(task, dropout=0.2)
        model.run_eagerly = True
        return training.fit(model, task, data, spec(checkpoint=checkpoint, epochs=4), on_epoch)

    with pytest.raises(Cut):
        run(lambda epoch, logs: (_ for _ in ()).throw(Cut) if epoch == 1 else False)
    first = unpack(checkpoint.load())
    found = run(go_on)
    assert list(found.history[:2]) == list(first.history)
    assert len(found.history) == 4
    assert sum("trained by model.fit" in event for event in found.events) == 1


def test_arrays_and_all_else_come_back_as_they_were(tmp_path):
    checkpoint = FileCheckpoint(tmp_path / "trial.npz")
    cut_after("binary", checkpoint, 2, dropout=0.1)
    progress = unpack(checkpoint.load())
    again = unpack(pack(progress))
    for name, value in vars(progress).items():
        if name in ("weights", "optimizer", "best"):
            assert same(value, getattr(again, name))
            assert value
        else:
            assert value == getattr(again, name)
    assert all(np.isfinite(array).all() for array in progress.weights)
    checkpoint.clear()
    assert checkpoint.load() is None
    assert not list(tmp_path.iterdir())
