"""The sets that scikit-learn ships: no download, good for a first run and for tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from forge_sweep.errors import DataError
from forge_sweep.experiment.words import nearest
from forge_sweep.sources.assemble import assemble
from forge_sweep.sources.base import Dataset

if TYPE_CHECKING:
    from forge_sweep.experiment import DataSpec

SAMPLES = ("breast_cancer", "digits", "diabetes", "iris", "wine")
"""Binary 569 x 30; 10 classes 1,797 x 64; regression 442 x 10; 3 classes 150 x 4; 3 classes 178 x 13."""


class SampleSource:
    """Reads ``data.name``, one of `SAMPLES`; the target column is ``target``, classes are words where it has them."""

    def load(self, spec: DataSpec, *, root: Path, seed: int) -> Dataset:
        """See `forge_sweep.sources.base.Source.load`; ``root`` plays no part."""
        if spec.name not in SAMPLES:
            raise DataError(
                f"data.name = {spec.name!r}: no such sample set; expected one of {', '.join(SAMPLES)}",
                hint=nearest(str(spec.name), SAMPLES) or 'name one of them, or set source = "file" under [data]',
            )
        from sklearn import datasets

        bunch: Any = getattr(datasets, f"load_{spec.name}")(as_frame=True)
        frame: pd.DataFrame = bunch.frame
        words = [str(word) for word in bunch.get("target_names", [])]
        if not all(word.isdigit() for word in words):
            frame = frame.assign(target=pd.Series(words).loc[frame["target"]].to_numpy())
        return assemble(frame, spec, name=spec.name, source=spec.name, seed=seed)
