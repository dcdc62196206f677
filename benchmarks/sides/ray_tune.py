"""Ray Tune with OptunaSearch, two trials at a time on two cores, one TensorFlow thread each as our workers have.

Its worker processes are used again for the next trial (``reuse_actors``, not the default): otherwise each trial would
import TensorFlow anew. With a target, ASHA with Ray's default rungs ends hopeless trials. The start of Ray and of its
workers counts, as does that of ours.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.problems import PROBLEMS, Work


def run(**arguments: Any) -> dict[str, Any]:
    """The figures of `recording.outcome`."""
    import ray
    from ray import tune

    from benchmarks.recording import EpochLog, outcome

    work = Work(**arguments)
    arrays, log = work.arrays(), EpochLog(work.store)
    sockets = tempfile.mkdtemp(prefix="ray-")  # the path of a socket may not be long
    tuning, stopping = settings(work)
    began = time.time()
    try:
        ray.init(num_cpus=work.workers, include_dashboard=False, log_to_driver=False, _temp_dir=sockets)
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(train, work=arguments, arrays=arrays), {"cpu": 1}),
            tune_config=tuning,
            run_config=tune.RunConfig(storage_path=work.store, stop=stopping, verbose=0),
        )
        tuner.fit()
        ended = time.time()
    finally:
        ray.shutdown()
        shutil.rmtree(sockets, ignore_errors=True)
    found = outcome(log, began, ended, target=work.target, at_once=work.workers)
    return {**found, "start_s": log.lines("ready")[0]["at"] - began}


def train(config: Mapping[str, Any], work: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """One trial, in a process of Ray."""
    import keras
    import tensorflow as tf
    from ray import tune

    from benchmarks.network import ExactAuc, build
    from benchmarks.recording import EpochLog

    asked, log = Work(**work), EpochLog(work["store"])
    tf.config.threading.set_intra_op_parallelism_threads(1)  # changes nothing in a process that is used again
    tf.config.threading.set_inter_op_parallelism_threads(1)
    log.add(kind="ready")
    keras.utils.clear_session()
    keras.utils.set_random_seed(asked.seed + config["number"])
    aucs: list[float] = []

    def report(epoch: int, logs: Mapping[str, float]) -> None:
        """ASHA judges by the streaming AUC, as a user's would."""
        tune.report({"val_auc": float(logs["val_auc"]), "exact_auc": aucs[-1]})

    build(config, arrays["x_train"].shape[1]).fit(
        arrays["x_train"],
        arrays["y_train"],
        validation_data=(arrays["x_valid"], arrays["y_valid"]),
        batch_size=config["batch_size"],
        epochs=asked.spec.epochs,
        callbacks=[ExactAuc(log, arrays, aucs.append), keras.callbacks.LambdaCallback(on_epoch_end=report)],
        verbose=0,
    )


def space(problem: str, trial: Any) -> dict[str, Any]:
    """The suggested values reach Ray by themselves; what is returned are constants."""
    from benchmarks.search import suggest

    suggest(trial, PROBLEMS[problem])
    return {**PROBLEMS[problem].fixed, "number": trial.number}


def settings(work: Work) -> tuple[Any, Any]:
    """What is searched how, and what ends the search."""
    import optuna
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    from benchmarks.search import Points

    class TargetReached(tune.Stopper):
        """Ends everything at the first epoch with the target."""

        reached = False

        def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
            """Look at one epoch."""
            self.reached = self.reached or (not work.equal and result["exact_auc"] >= work.target)
            return self.reached

        def stop_all(self) -> bool:
            """Whether it was seen."""
            return self.reached

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = Points(work.points()) if work.equal else optuna.samplers.TPESampler(seed=work.seed)
    tuning = tune.TuneConfig(
        metric="val_auc",
        mode="max",
        search_alg=OptunaSearch(functools.partial(space, work.problem), metric="val_auc", mode="max", sampler=sampler),
        scheduler=None if work.equal else ASHAScheduler(max_t=work.spec.epochs),
        num_samples=work.trials if work.equal else -1,
        time_budget_s=None if work.equal else work.cap_s,
        max_concurrent_trials=work.workers,
        reuse_actors=True,
    )
    return tuning, TargetReached()
