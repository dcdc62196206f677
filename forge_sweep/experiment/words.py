"""What messages about an experiment file are made of."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from forge_sweep.errors import Mistake

Mistakes = Iterator[Mistake]

SHOWN = 200
"""Characters of a value in a message."""


def as_toml(value: Any) -> str:
    """A value as it would stand in the file; a long one is cut."""
    if isinstance(value, dict):
        text = f"{{ {', '.join(value)} }}"
    else:
        text = json.dumps(value, default=str, ensure_ascii=False)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def wrong(path: str, value: Any, expected: str, hint: str = "") -> Mistake:
    """A mistake that shows the value."""
    return Mistake(path, as_toml(value), expected, hint)


def missing(path: str, expected: str, hint: str = "") -> Mistake:
    """A mistake without a value to show."""
    return Mistake(path, "", expected, hint)


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``did you mean "width"?`` or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f'did you mean "{close[0]}"?' if close else ""


SYNONYMS: dict[str, str] = {
    **dict.fromkeys(("lr", "eta", "alpha", "step_size", "learningrate", "learning-rate"), "learning_rate"),
    **dict.fromkeys(("units", "neurons", "hidden_units", "n_units", "num_units", "hidden", "hidden_size"), "width"),
    **dict.fromkeys(("hidden_dim", "nodes", "size"), "width"),
    **dict.fromkeys(("layers", "n_layers", "num_layers", "hidden_layers", "blocks", "n_hidden"), "depth"),
    **dict.fromkeys(("l2_reg", "l2_penalty", "regularization", "regularizer", "kernel_l2"), "l2"),
    **dict.fromkeys(("wd", "decay", "weightdecay", "decoupled_weight_decay"), "weight_decay"),
    **dict.fromkeys(("clipnorm", "global_clipnorm", "grad_clip", "gradient_clip", "max_grad_norm"), "clip_norm"),
    **dict.fromkeys(("lr_schedule", "lr_scheduler", "scheduler", "learning_rate_schedule"), "schedule"),
    **dict.fromkeys(("warm_up", "warmup_ratio", "warmup_steps", "warmup_share"), "warmup"),
    **dict.fromkeys(("ema_momentum", "ema_decay", "use_ema", "polyak"), "ema"),
    **dict.fromkeys(("smoothing", "smooth", "labelsmoothing"), "label_smoothing"),
    **dict.fromkeys(("drop_out", "dropout_rate", "drop_rate"), "dropout"),
    **dict.fromkeys(("batch", "batchsize", "bs", "minibatch"), "batch_size"),
    **dict.fromkeys(("opt", "optim"), "optimizer"),
    **dict.fromkeys(("batchnorm", "batch_normalization", "bn"), "batch_norm"),
    **dict.fromkeys(("act", "nonlinearity"), "activation"),
    **dict.fromkeys(("trials", "max_trials", "num_trials", "n_iter", "max_evals"), "n_trials"),
    **dict.fromkeys(("n_epochs", "num_epochs", "max_epochs"), "epochs"),
    **dict.fromkeys(("early_stopping", "early_stopping_rounds"), "patience"),
    **dict.fromkeys(("timeout", "time_limit", "max_time"), "timeout_s"),
    **dict.fromkeys(("random_state", "random_seed"), "seed"),
    **dict.fromkeys(("label", "labels", "y", "outcome"), "target"),
    **dict.fromkeys(("file", "filename", "csv", "filepath"), "path"),
    **dict.fromkeys(("sep", "delimiter", "delim"), "separator"),
    **dict.fromkeys(("id", "index", "index_col"), "key"),
    **dict.fromkeys(("valid_size", "validation", "val"), "valid"),
    **dict.fromkeys(("workers", "n_jobs", "n_workers", "jobs"), "n"),
}
"""What other tools call our keys and hyperparameters."""
