"""Models that a network has to beat: trees and the constant, untuned (`fit`) and tuned (`fit_tuned`)."""

from forge_sweep.baselines.fitting import KINDS, Baseline, fit, load_xgboost
from forge_sweep.baselines.tuned import DEFAULTS, SPACES, fit_tuned, one_output, tuned_name, untuned_kind

__all__ = [
    "DEFAULTS",
    "KINDS",
    "SPACES",
    "Baseline",
    "fit",
    "fit_tuned",
    "load_xgboost",
    "one_output",
    "tuned_name",
    "untuned_kind",
]
