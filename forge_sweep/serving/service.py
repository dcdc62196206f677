"""What all requests share: the version in service, the queue before it, the figures."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from forge_sweep.errors import BundleError, ForgeSweepError, masked
from forge_sweep.serving.batching import Batcher
from forge_sweep.serving.metrics import Metrics
from forge_sweep.serving.predict import Served, load
from forge_sweep.tracking import Located, locate

if TYPE_CHECKING:
    from forge_sweep.serving.settings import Settings

logger = logging.getLogger(__name__)

STUCK_S = 60.0  # from which a forward pass counts as stuck
LONGEST_PAUSE_S = 600.0  # before a version that could not be loaded is tried again


class Service:
    """One model in service: ``reference`` as the user wrote it, and the version that it means now.

    A request asks for ``served`` once and keeps to it. ``failed`` is the version that the alias means and that could
    not be taken into service, and why.
    """

    def __init__(self, reference: str, served: Served, settings: Settings) -> None:
        self.reference = reference
        self.settings = settings
        self.metrics = Metrics(self)
        most = settings.most_rows(served.row_bytes)
        self.batcher = Batcher(
            max_batch=min(settings.max_batch, most),
            max_wait_s=settings.max_wait_ms / 1000,
            max_waiting=min(settings.max_waiting, 2 * most) if served.row_bytes else settings.max_waiting,
            observe=self.metrics.batch,
        )
        self.served = served
        self.draining = False
        self.failed: tuple[str, str] | None = None
        self._checked_at: float | None = None  # seconds since 1970; None for a version or a folder
        self._lookup_failed = ""
        self._pause_s, self._again_at = settings.poll_s, 0.0

    @property
    def healthy(self) -> bool:
        """Whether the thread that owns the model lives and gets on."""
        since = self.batcher.busy_since
        return self.batcher.alive and (since is None or time.monotonic() - since < STUCK_S)

    def readiness(self) -> dict[str, Any]:
        """Whether requests are welcome, and which version answers them."""
        located = self.served.located
        failed = None if self.failed is None else {"version": self.failed[0], "why": self.failed[1]}
        return {
            "ready": self.healthy and not self.draining,
            "draining": self.draining,
            "model": located.name,
            "version": located.version,
            "alias": located.alias or None,
            "registry": {"checked_at": self._checked_at, "why": self._lookup_failed or None, "failed": failed},
        }

    def card(self) -> dict[str, Any]:
        """The version in service, and what it takes."""
        served, settings = self.served, self.settings
        bundle, located, profile = served.bundle, served.located, served.window.profile
        return {
            "model": located.name,
            "version": located.version,
            "alias": located.alias or None,
            "reference": self.reference,
            "tags": dict(located.tags),
            "kind": bundle.kind,
            "task": bundle.task.to_dict(),
            "threshold": bundle.threshold,
            "columns": bundle.preprocessor.schema.to_dict()["columns"],
            "metadata": bundle.metadata,
            "golden_difference": served.golden_difference,
            "loaded_at": served.loaded_at,
            "training_rows": None if profile is None else profile.rows,
            "extra_columns": "ignored" if settings.ignore_extra else "refused",
            "limits": {name: getattr(settings, name) for name in ("max_body", "max_waiting", "timeout_s")}
            | {"max_rows": settings.most_rows(served.row_bytes)},
        }

    async def follow(self) -> None:
        """Poll the alias for ever, and serve the version that it points to."""
        while self.served.located.alias:
            await asyncio.sleep(self.settings.poll_s)
            await self.poll()

    async def poll(self) -> None:
        """Poll once. Whatever goes wrong, the version in service stays."""
        try:
            located = await asyncio.to_thread(locate, self.reference, self.settings.store)
        except Exception as error:
            self.metrics.registry_up.set(0)
            self._checked_at, self._lookup_failed = time.time(), _words(error)
            logger.warning("the alias cannot be looked up, %s stays: %s", self.served.label, _words(error))
            return
        self.metrics.registry_up.set(1)
        self._checked_at, self._lookup_failed = time.time(), ""
        if located.version == self.served.located.version:
            self.failed = None
        elif self.failed is None or located.version != self.failed[0] or time.monotonic() >= self._again_at:
            await self._take(located)

    async def _take(self, located: Located) -> None:
        """Load a version beside the one in service, then put it in its place."""
        before = self.served
        try:
            served = await asyncio.to_thread(load, located, self.settings)
            if differing := [name for name, value in served.shape.items() if value != before.shape[name]]:
                raise BundleError(
                    f"{served.label} has other {', '.join(differing)} than {before.label}; callers would break",
                    hint="start a server for it, move the callers, then end this one",
                )
        except Exception as error:
            self.metrics.swaps.labels("failed").inc()
            known = self.failed is not None and located.version == self.failed[0]  # tried again at ever longer pauses
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if known else self.settings.poll_s
            self._again_at = time.monotonic() + self._pause_s
            self.failed, self._checked_at = (located.version, _words(error)), time.time()
            logger.error("version %s cannot be served, %s stays: %s", located.version, before.label, _words(error))
            return
        self.served, self.failed, self._checked_at = served, None, time.time()
        self.metrics.swaps.labels("done").inc()
        logger.info("%s is in service, in place of %s", served.label, before.label)


def _words(error: Exception) -> str:
    text = error.message if isinstance(error, ForgeSweepError) else f"{type(error).__name__}: {error}"
    return masked(" ".join(text.split()))[:1000]
