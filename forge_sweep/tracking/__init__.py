"""Everything that reads or writes MLflow: runs, curves, datasets, artifacts, registered models.

Every write is a small value (`writes`) that is safe to apply twice; while the store is unreachable it waits in a local
file (`journal`). All calls are synchronous, since MLflow's async logging loses 92-100 % of the points when a process is
killed. The package is also the ``loader_module`` of registered models: MLflow calls `_load_pyfunc`.
"""

from __future__ import annotations

from forge_sweep.tracking.attachments import Attached, attached
from forge_sweep.tracking.client import check_store, default_uri, prepare_store, state
from forge_sweep.tracking.ledger import Entry, Ledger
from forge_sweep.tracking.mlmodel import ForeignModel, _load_pyfunc
from forge_sweep.tracking.models import (
    Located,
    ModelVersion,
    Registry,
    fetched,
    locate,
    models_trained_on,
)
from forge_sweep.tracking.registration import FORM_TAG, requirements
from forge_sweep.tracking.run import FIRST_EPOCH, Run, Tracker, environment_tags
from forge_sweep.tracking.runs import (
    CODE,
    SOURCE_CODE,
    Found,
    Record,
    Review,
    model_is_there,
    read_record,
    space_file,
    write_verdict,
)
from forge_sweep.tracking.schema import upgrade as upgrade_store
from forge_sweep.tracking.writes import EPOCH_TAG, PARENT_TAG, Status

__all__ = [
    "CODE",
    "EPOCH_TAG",
    "FIRST_EPOCH",
    "FORM_TAG",
    "PARENT_TAG",
    "SOURCE_CODE",
    "Attached",
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
    "_load_pyfunc",
    "attached",
    "check_store",
    "default_uri",
    "environment_tags",
    "fetched",
    "locate",
    "model_is_there",
    "models_trained_on",
    "prepare_store",
    "read_record",
    "requirements",
    "space_file",
    "state",
    "upgrade_store",
    "write_verdict",
]
