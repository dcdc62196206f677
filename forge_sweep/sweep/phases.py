"""How long each phase of a sweep takes: measured here, kept in the study, so that interruptions add up."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable

from forge_sweep.study import PHASES_NOTE, Study
from forge_sweep.sweep.metering import SAVE_EVERY_S


class Stopwatch:
    """Measures one phase after the other, of one command. Threads may `tick`.

    Nothing is kept before `keep_in`: a command that finds nothing to do leaves no trace.

    Args:
        clock: of this process.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._phase, self._began = "", clock()
        self._saved_at = clock()
        self._study: Study | None = None
        self._key = f"{PHASES_NOTE}{uuid.uuid4().hex[:12]}"
        self._lock = threading.Lock()

    def enter(self, phase: str) -> None:
        """A phase begins, and so ends the one before it; ``""`` begins none."""
        with self._lock:
            self._add_up()
            self._phase = phase
        self.save()

    def keep_in(self, study: Study) -> None:
        """Keep what was measured, and what will be, in the study of the sweep that this process carries."""
        self._study = study
        self.save()

    def tick(self) -> None:
        """Save where the last time is long enough ago: `kill -9` loses no more than that."""
        if self._clock() - self._saved_at >= SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Let the study keep it."""
        if self._study is None:
            return
        with self._lock:
            self._add_up()
            self._saved_at = self._clock()
            seconds = {name: round(value, 3) for name, value in self._seconds.items()}
        self._study.note(self._key, seconds)

    def _add_up(self) -> None:
        now = self._clock()
        if self._phase:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._began
        self._began = now
