"""A model with all it needs to take raw rows, as one flat folder of plain data.

```
bundle.json          format version, kind, threshold, metadata, package versions
task.json            targets, labels, head, target scale
schema.json          columns that `predict` takes (a copy for readers; the preprocessor has its own)
preprocessor.json    impute, encode and scale: settings ...
preprocessor.npz     ... and learned arrays
model.keras          the network            | tree.json: XGBoost's own JSON | tree.skops: scikit-learn | constant.json
raw.keras            the network with its preprocessing inside, for plain Keras; raw.keras.inputs.json says which input
                     takes which column. Both only with model.preprocessing = "in_model"
scaler.joblib        the fitted scikit-learn scaler for people who load it themselves; absent with scaler = "none"
golden.json          some train rows as they came, and their scores when the bundle was saved
evaluation.npz       what the look at the test rows gave: scores of the registered model and of those it was compared
                     with, fingerprints of the rows, differences with intervals; no targets. Absent before registration
card.md, card.html   the model card of what was registered; absent before
manifest.json        SHA-256 of every other file
```

Nothing here is unpickled: Keras reads with ``safe_mode`` what names stock layers only (`network`); skops builds the
types in ``TRUSTED_TYPES`` and no others, XGBoost's indices and all archives are looked at first, and ``scaler.joblib``
is compared with the preprocessor by a reader that can run nothing (`scaler`). The manifest is checked before any other
file is parsed. It finds damage and careless edits; it is no signature, since who can change a file can change the
manifest as well. ``docs/security.md`` says what that leaves open.

A later format may change everything but the layout of ``manifest.json`` and the key ``format`` in ``bundle.json``.
"""

from __future__ import annotations

from forge_sweep.bundle.bundle import FORMAT, GOLDEN_TOLERANCE, Bundle, ready_backend, replay_golden
from forge_sweep.bundle.evaluation import EVALUATION, Comparison, Evaluation, ScoredModel, evaluate
from forge_sweep.bundle.golden_rows import GOLDEN_ROWS
from forge_sweep.bundle.golden_rows import choose as choose_golden
from forge_sweep.bundle.trees import TRUSTED_TYPES

__all__ = [
    "EVALUATION",
    "FORMAT",
    "GOLDEN_ROWS",
    "GOLDEN_TOLERANCE",
    "TRUSTED_TYPES",
    "Bundle",
    "Comparison",
    "Evaluation",
    "ScoredModel",
    "choose_golden",
    "evaluate",
    "ready_backend",
    "replay_golden",
]
