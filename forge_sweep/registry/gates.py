"""Gates that need no test row: is it whole, does it answer as it did, fast enough, here, and on data that still holds?

Every gate gives findings: ``info`` where it is passed, with the figure; ``warning`` where something cannot be known;
``error`` where it refuses.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from forge_sweep import environment
from forge_sweep.bundle import GOLDEN_TOLERANCE, golden_rows, replay_golden
from forge_sweep.bundle.card import CARD_FILES
from forge_sweep.checks.drift import compare
from forge_sweep.checks.findings import Finding, Severity
from forge_sweep.environment import NONE, UNKNOWN
from forge_sweep.errors import ForgeSweepError
from forge_sweep.registry.candidate import Candidate, Terms

if TYPE_CHECKING:
    from forge_sweep.sources.feature_store.address import Address
    from forge_sweep.sources.feature_store.versions import Version

WARM_UP, TIMED = 10, 200
"""Rows predicted one by one: before, and while the clock runs."""

DECISIVE = ("numpy", "pandas", "scikit-learn", "skops", "keras", "tensorflow", "jax", "torch", "xgboost-cpu", "xgboost")
"""Packages that decide what a bundle answers. A bundle lists the versions of those that were installed."""


def without_test(candidate: Candidate, terms: Terms) -> Iterator[Finding]:
    """Every gate of this module."""
    yield passed("hashes", candidate.version.uri, "every file is as the manifest has it", "the same")
    yield golden(candidate, terms)
    yield card(candidate)
    yield packages(candidate)
    yield image(candidate, terms)
    yield latency(candidate, terms)
    yield from superseded(candidate)


def passed(code: str, subject: str, seen: str, expected: str) -> Finding:
    """A gate that is passed."""
    return Finding("info", code, subject, seen, expected, "nothing to do")


def golden(candidate: Candidate, terms: Terms) -> Finding:
    """The golden rows get the scores that they had."""
    _, scores = golden_rows.read(candidate.folder)
    allowed = terms.settings.max_golden_difference
    if allowed is None:
        allowed = GOLDEN_TOLERANCE * max(1.0, float(np.abs(scores).max()))
    off = replay_golden(candidate.folder, candidate.bundle)
    seen = f"the scores of {len(scores)} golden rows are {off:.3g} off"
    if off <= allowed:
        return passed("golden", candidate.version.uri, seen, f"at most {allowed:.1g}")
    fix = "install the packages it was saved with, or raise max_golden_difference under [promotion]"
    return Finding("error", "golden", candidate.version.uri, seen, f"at most {allowed:.1g}", fix)


def card(candidate: Candidate) -> Finding:
    """The model card is in the bundle."""
    missing = sorted(name for name in CARD_FILES if not (candidate.folder / name).is_file())
    if not missing:
        return passed("card", candidate.version.uri, f"{' and '.join(sorted(CARD_FILES))} are there", "a model card")
    fix = "register it anew with this forge-sweep: run the sweep again under another name"
    return Finding(
        "error", "card", candidate.version.uri, f"{', '.join(missing)} missing in the bundle", "a model card", fix
    )


def packages(candidate: Candidate) -> Finding:
    """The packages that decide its answers are pinned, and those of this environment are the same."""
    here = {name: version for name in candidate.packages if (version := installed(name))}
    other = [
        f"{name} {version} (here {here.get(name, 'none')})"
        for name, version in candidate.packages.items()
        if name in DECISIVE and here.get(name) != version and matters(candidate, name)
    ]
    if candidate.requirements is None or not candidate.packages:
        seen, fix = "it does not say which packages it needs", "register it anew with this forge-sweep"
    elif other:
        seen, fix = (
            f"it was saved with {', '.join(other)}",
            "promote from the environment that serves, made from its lock",
        )
    else:
        pinned = sum("==" in line for line in candidate.requirements)
        seen = f"{pinned} requirements pinned; what decides its answers is the same here"
        return passed("packages", candidate.version.uri, seen, "known, and the same as here")
    return Finding("error", "packages", candidate.version.uri, seen, "known, and the same as here", fix)


def matters(candidate: Candidate, name: str) -> bool:
    """Whether a package has a part in the answers of this kind of model."""
    network = candidate.bundle.kind == "network"
    if name in ("keras", "tensorflow", "jax", "torch"):
        backend = candidate.metadata.get("experiment", {}).get("backend", "tensorflow")
        return network and name in ("keras", backend)
    if name.startswith("xgboost"):
        return candidate.bundle.kind == "xgboost"
    return name != "skops" or candidate.bundle.kind in ("random_forest", "hist_gradient_boosting")


def installed(name: str) -> str | None:
    """Version of a package here."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def image(candidate: Candidate, terms: Terms) -> Finding:
    """It was trained in the image that this process, which stands for the serving environment, runs in."""
    trained = candidate.version.tags.get("forge.image_digest", UNKNOWN)
    here = environment.image_digest(os.environ, environment.in_container())
    seen = f"trained in {trained}, and this environment is {here}"
    subject, expected = candidate.version.uri, "one image digest, the same in training and serving"
    unknown = {trained, here} & {NONE, UNKNOWN}
    if not unknown and trained.rpartition("@")[2] == here.rpartition("@")[2]:
        return passed("image", subject, seen, expected)
    if unknown:
        severity: Severity = "error" if terms.settings.image == "required" else "warning"
        fix = f"train and promote in the image, with {environment.IMAGE_VARIABLE} set (`make image-run` does)"
        return Finding(severity, "image", subject, seen, expected, fix)
    return Finding("error", "image", subject, seen, expected, "promote from the image that it was trained in")


def latency(candidate: Candidate, terms: Terms) -> Finding:
    """One raw row is answered fast enough, measured here."""
    p95, limit = milliseconds(candidate), terms.settings.max_latency_ms
    seen = f"{p95:.2f} ms for one row (95th percentile of {TIMED} calls)"
    if p95 <= limit:
        return passed("latency", candidate.version.uri, seen, f"at most {limit:g} ms")
    fix = "search for smaller networks, or raise max_latency_ms under [promotion]"
    return Finding("error", "latency", candidate.version.uri, seen, f"at most {limit:g} ms", fix)


def milliseconds(candidate: Candidate) -> float:
    """The 95th percentile of predicting one golden row at a time."""
    frame, _ = golden_rows.read(candidate.folder)
    rows = [frame.iloc[[i % len(frame)]] for i in range(WARM_UP + TIMED)]
    seconds = []
    for row in rows:
        began = time.perf_counter()
        candidate.bundle.predict(row)
        seconds.append(time.perf_counter() - began)
    return 1000 * float(np.quantile(seconds[WARM_UP:], 0.95))


def superseded(candidate: Candidate) -> Iterator[Finding]:
    """No version that was made from its data has drifted away from it."""
    trained, recorded = str(candidate.metadata.get("dataset_version")), candidate.metadata.get("experiment", {})
    if recorded.get("data", {}).get("source") != "postgres":
        seen = f"{trained} is no version of the feature store: newer ones are not on record"
        yield passed("superseded", trained, seen, "no newer version that drifted (not applicable)")
        return
    from forge_sweep.sources.feature_store.address import Address

    try:
        yield newer_versions(Address.from_environment(), trained)
    except ForgeSweepError as error:
        fix = "set FORGE_SWEEP_DATABASE_URL to the store of its data; see `forge-sweep data list`"
        seen = f"the feature store was not asked: {' '.join(error.message.split())}"
        yield Finding("error", "superseded", trained, seen, "no newer version that drifted", fix)


def newer_versions(address: Address, trained: str) -> Finding:
    """The newest version that was made from this one, compared with it."""
    from forge_sweep.sources.feature_store.connection import connect, retrying
    from forge_sweep.sources.feature_store.versions import versions

    def work() -> list[Version]:
        with connect(address) as connection:
            return versions(connection)

    known = retrying(work)
    expected = "no version made from it that drifted"
    made = descendants(known, trained.partition("@")[0])
    if not made:
        return passed("superseded", trained, "no version was made from it", expected)
    drifted = drift(address, trained.partition("@")[0], made[-1].name)
    if not drifted:
        return passed("superseded", trained, f"{made[-1].version}, made from it, shows no drift", expected)
    seen = f"{made[-1].version}, made from it, drifted in {', '.join(drifted)}"
    fix = f"train on it; see `forge-sweep data drift {trained.partition('@')[0]} {made[-1].name}`"
    return Finding("error", "superseded", trained, seen, expected, fix)


def descendants(known: list[Version], name: str) -> list[Version]:
    """Versions that were made from one, or from such a version; the oldest first."""
    names, found = {name}, []
    for version in known:  # the oldest first
        if version.parent in names:
            names.add(version.name)
            found.append(version)
    return found


def drift(address: Address, a: str, b: str) -> list[str]:
    """Columns that drifted from A to B, over training and validation rows."""
    frames, targets, labels = [], set(), set()
    for name in (a, b):
        version, frame = visible_rows(address, name)
        frames.append(frame)
        targets |= {column.name for column in version.targets}
        labels |= {column.name for column in version.targets if version.task != "regression"}
    return [finding.subject for finding in compare(*frames, targets=targets, discrete=labels).findings]


def visible_rows(address: Address, name: str) -> tuple[Version, pd.DataFrame]:
    """A version and its training and validation rows."""
    from forge_sweep.sources.feature_store.source import as_split, visible

    version, block = visible(address, name)
    split = as_split(version, block)
    return version, pd.concat([split.features, split.targets], axis=1)
