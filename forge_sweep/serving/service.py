"""What all requests share: the version in service, the queue before it, the figures."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

from forge_sweep.errors import BundleError, ForgeSweepError, masked
from forge_sweep.serving.answers import Answers
from forge_sweep.serving.batching import Batcher
from forge_sweep.serving.metrics import Metrics
from forge_sweep.serving.served import Served, load
from forge_sweep.serving.settings import Settings
from forge_sweep.tracking import Located, locate

logger = logging.getLogger(__name__)

STUCK_S = 60.0
"""Seconds after which a forward pass counts as stuck."""

LONGEST_PAUSE_S = 600.0


@dataclass(frozen=True)
class Swap:
    """What became of the last look at the registry.

    Attributes:
        checked_at: when the alias was last looked up, in seconds since 1970; None for a version or a folder.
        why: why the look-up failed; "" where it did not.
        failed: the version that the alias means and that could not be taken into service.
        failed_why: why not.
    """

    checked_at: float | None = None
    why: str = ""
    failed: str | None = None
    failed_why: str = ""


class Service:
    """One model in service.

    Args:
        reference: which model, as the user wrote it.
        served: the version that it means now.
        settings: how to serve.
    """

    def __init__(self, reference: str, served: Served, settings: Settings) -> None:
        self.reference = reference
        self.settings = settings
        self.metrics = Metrics()
        self.batcher = Batcher(
            max_batch=settings.max_batch,
            max_wait_s=settings.max_wait_ms / 1000,
            max_waiting=settings.max_waiting,
            observe=self.metrics.batch,
        )
        self.answers = Answers(served)
        self.swap = Swap()
        self._pause_s, self._again_at = settings.poll_s, 0.0
        self.draining = False
        self.metrics.watch(self)

    @property
    def served(self) -> Served:
        """The version in service. A request asks once, and keeps to what it was told."""
        return self.answers.served

    @property
    def healthy(self) -> bool:
        """Whether the thread that owns the model lives and gets on."""
        since = self.batcher.busy_since
        return self.batcher.alive and (since is None or time.monotonic() - since < STUCK_S)

    def refused(self, status: int) -> None:
        """Count a request that came to an end before its path was known."""
        self.metrics.request("(other)", status, 0.0)

    def readiness(self) -> dict[str, Any]:
        """Whether requests are welcome, and which version answers them."""
        located, swap = self.served.located, self.swap
        failed = None if swap.failed is None else {"version": swap.failed, "why": swap.failed_why}
        return {
            "ready": self.healthy and not self.draining,
            "draining": self.draining,
            "model": located.name,
            "version": located.version,
            "alias": located.alias or None,
            "registry": {"checked_at": swap.checked_at, "why": swap.why or None, "failed": failed},
        }

    async def follow(self) -> None:
        """Look where the alias points, for ever, and take the version into service that it means."""
        while self.served.located.alias:
            await asyncio.sleep(self.settings.poll_s)
            await self.look()

    async def look(self) -> None:
        """Look once. Whatever goes wrong, the version in service stays."""
        try:
            located = await asyncio.to_thread(locate, self.reference, self.settings.store)
        except Exception as error:
            self.metrics.registry_up.set(0)
            self.swap = Swap(time.time(), words(error), self.swap.failed, self.swap.failed_why)
            logger.warning("the alias cannot be looked up, %s stays: %s", self.served.label, words(error))
            return
        self.metrics.registry_up.set(1)
        self.swap = Swap(time.time(), "", self.swap.failed, self.swap.failed_why)
        if located.version == self.served.located.version:
            self.swap = Swap(time.time())
        elif located.version != self.swap.failed or time.monotonic() >= self._again_at:
            await self._take(located)

    async def _take(self, located: Located) -> None:
        """Load a version beside the one in service, then put it in its place."""
        try:
            answers = await asyncio.to_thread(self._prepare, located)
        except Exception as error:
            self.metrics.swaps.labels("failed").inc()
            known = located.version == self.swap.failed  # the same one is tried again ever later
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if known else self.settings.poll_s
            self._again_at = time.monotonic() + self._pause_s
            self.swap = Swap(time.time(), "", located.version, words(error))
            logger.error("version %s cannot be served, %s stays: %s", located.version, self.served.label, words(error))
            return
        before, self.answers = self.served.label, answers
        self.swap = Swap(time.time())
        self.metrics.swaps.labels("done").inc()
        logger.info("%s is in service, in place of %s", self.served.label, before)

    def _prepare(self, located: Located) -> Answers:
        served = load_version(located, self.settings)
        differing = [name for name, value in served.shape.items() if value != self.served.shape[name]]
        if differing:
            raise BundleError(
                f"{served.label} has other {', '.join(differing)} than {self.served.label}; callers would break",
                hint="start a server for it, move the callers, then end this one",
            )
        return Answers(served)


def load_version(located: Located, settings: Settings) -> Served:
    """A version, ready to serve."""
    return load(
        located,
        settings.store,
        window=settings.drift_window,
        least=settings.drift_least,
        ignore_extra=settings.ignore_extra,
    )


def words(error: Exception) -> str:
    """An error in one line, logins left out."""
    text = error.message if isinstance(error, ForgeSweepError) else f"{type(error).__name__}: {error}"
    return masked(" ".join(text.split()))[:1000]
