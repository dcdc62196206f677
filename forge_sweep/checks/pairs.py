"""The audit rule about two features that give the target away together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd

from forge_sweep.checks import groups, leaks
from forge_sweep.checks.evidence import Evidence, Seen, rule, values_of
from forge_sweep.checks.labels import statistic

MOST_COLUMNS = 60
MOST_CELLS = 1_000_000
LEAST_ROWS, MOST_ROWS = 150, 1_000
TRIED = 3
"""Of the strongest pairs, those that are measured on all rows."""

FORMS = {"/": np.divide, "*": np.multiply, "-": np.subtract, "+": np.add}


@rule("warning", "target-leak-pair")
def target_leak_pair(evidence: Evidence) -> Iterator[Seen]:
    """Two columns of numbers whose ratio, product, difference or sum alone is the target, or decides its class.

    As it is where the target was computed of them. Measured as `leaks.target_leak` does; said from the figure on from
    which that is an error, on train and on valid.
    """
    names = [name for name in evidence.numeric if evidence.features["distinct"][name] > 2]
    leak, figure = (leaks.LEAK_R, "|correlation|") if evidence.kind == "regression" else (leaks.LEAK_AUC, "AUC")
    known = {*leaks.copies(evidence), *groups.found(evidence)}
    for sample, strengths in leaks.singles(evidence):
        if not 2 <= len(names) <= MOST_COLUMNS or len(sample.y_valid) < leaks.MIN_ROWS_FOR_LEAK:
            continue
        if known.intersection(names) or any(min(strengths[name]) >= leak for name in names):
            continue  # one of them alone is said already, and any other would only be added to it
        for one, sign, other in _strongest(names, sample):
            both = (_combined(part, one, sign, other) for part in (sample.x_train, sample.x_valid))
            strength = sample.strength_of(*both)
            if min(strength) >= leak:
                seen = f"{one} {sign} {other} alone predicts target {sample.target!r} with {figure} {strength[1]:.6g} "
                seen += f"over {len(sample.y_valid)} validation rows ({strength[0]:.6g} on train)"
                fix = f'drop = ["{one}", "{other}"] under [data] if the target was computed of them'
                expected = f"{figure} below {leak} for two features"
                yield Seen(f"{one} {sign} {other}", seen, fix, expected=expected)
                break


def _combined(rows: pd.DataFrame, one: str, sign: str, other: str) -> pd.Series:
    with np.errstate(all="ignore"):
        found = FORMS[sign](values_of(rows[one]), values_of(rows[other]))
    return pd.Series(np.where(np.isfinite(found), found, np.nan))


def _strongest(names: list[str], sample: leaks.Sample) -> Iterator[tuple[str, str, str]]:
    """The pairs and forms that tell the target best on some train rows, the best first."""
    from scipy.stats import rankdata

    pairs = np.array(list(itertools.combinations(range(len(names)), 2)))
    n = min(len(sample.x_train), int(np.clip(MOST_CELLS // (len(pairs) * len(FORMS)), LEAST_ROWS, MOST_ROWS)))
    chosen = np.linspace(0, len(sample.x_train) - 1, n).astype(int)
    values = np.stack([values_of(sample.x_train[name].iloc[chosen]) for name in names])
    codes = sample.y_train[chosen]
    found = []
    for sign, combine in FORMS.items():
        with np.errstate(all="ignore"):
            numbers = combine(values[pairs[:, 0]], values[pairs[:, 1]])
        numbers[~np.isfinite(numbers)] = 0.0
        ranks = rankdata(numbers, axis=1, method="ordinal")
        ranks = ((ranks - ranks.mean(axis=1, keepdims=True)) / ranks[0].std()).astype(np.float32)
        if sample.classes:
            strength = statistic(ranks.T, codes)
        else:
            with np.errstate(all="ignore"):
                spread = numbers.std(axis=1) * codes.std()
                strength = np.abs((numbers - numbers.mean(axis=1, keepdims=True)) @ (codes - codes.mean())) / n / spread
            strength[~np.isfinite(strength)] = 0.0
        found += [(float(strength[at]), at, sign) for at in np.argsort(-strength)[:TRIED].tolist()]
    for _, at, sign in sorted(found, reverse=True)[:TRIED]:
        yield names[pairs[at, 0]], sign, names[pairs[at, 1]]
