"""All that is written to MLflow: runs, curves, datasets, artifacts, the registered model. MLflow lives here only.

Every write is a small value (`writes`) that may be applied twice without harm. `Tracker` applies it at once; while the
store cannot be reached it waits in a local file (`journal`) and is applied later, in order. Everything is synchronous
(MLflow's async logging loses 92-100 % of the points at a kill) and names its run (no fluent state).

The module is also the ``loader_module`` of registered models: MLflow calls `_load_pyfunc`.
"""

from __future__ import annotations

from forge_sweep.tracking.ledger import Entry, Ledger
from forge_sweep.tracking.located import Located, fetched, locate
from forge_sweep.tracking.mlmodel import ForeignModel
from forge_sweep.tracking.pyfunc import BundleModel, _load_pyfunc
from forge_sweep.tracking.records import Record, read_record, write_verdict
from forge_sweep.tracking.registration import FORM_TAG, requirements
from forge_sweep.tracking.registry import ModelVersion, Registry
from forge_sweep.tracking.review import Found, Review, model_is_there
from forge_sweep.tracking.runs import EPOCH_TAG, FIRST_EPOCH, Run
from forge_sweep.tracking.session import PARENT_TAG
from forge_sweep.tracking.store import check_store, default_uri, prepare_store
from forge_sweep.tracking.tracker import Tracker, environment_tags
from forge_sweep.tracking.trained_on import TrainedModel, downloaded, models_trained_on
from forge_sweep.tracking.writes import Status

__all__ = [
    "EPOCH_TAG",
    "FIRST_EPOCH",
    "FORM_TAG",
    "PARENT_TAG",
    "BundleModel",
    "Entry",
    "ForeignModel",
    "Found",
    "Ledger",
    "Located",
    "ModelVersion",
    "Record",
    "Registry",
    "Review",
    "Run",
    "Status",
    "Tracker",
    "TrainedModel",
    "_load_pyfunc",
    "check_store",
    "default_uri",
    "downloaded",
    "environment_tags",
    "fetched",
    "locate",
    "model_is_there",
    "models_trained_on",
    "prepare_store",
    "read_record",
    "requirements",
    "write_verdict",
]
