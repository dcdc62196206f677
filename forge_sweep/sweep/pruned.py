"""The audit of pruned trials: a sample of them is trained again, to its end, outside the result.

It comes after the search and changes nothing of it: no audited score enters the study, where sampler and pruner would
read it, and none can win. The trial is trained from its first epoch on, with its parameters and its seed: a checkpoint
of each pruned trial would have to be kept until then, and the same seed goes the same way, which is checked.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from forge_sweep.errors import TrialFailed
from forge_sweep.study import NO_COST, TrialRow
from forge_sweep.study.diagnosis import AUDIT_NOTE, sample
from forge_sweep.sweep import budget
from forge_sweep.sweep.budget import Account
from forge_sweep.sweep.confirm import log_end
from forge_sweep.sweep.context import Context, finish, finish_failed, finite, stop_if_asked
from forge_sweep.sweep.jobs import Monitor, infeasible
from forge_sweep.sweep.pool import WorkerPool, forget_progress
from forge_sweep.sweep.trials import trial_name, trial_seed
from forge_sweep.training import FileCheckpoint
from forge_sweep.workers import Worker, WorkerUnfit


def left(context: Context) -> list[TrialRow]:
    """The trials of the sample that have no end yet."""
    known = context.study.notes(AUDIT_NOTE)
    rows = sample(context.study, context.experiment.study.audit_pruned)
    return [row for row in rows if f"{AUDIT_NOTE}{row.number:04d}" not in known]


def audit_pruned(context: Context, pool: WorkerPool) -> None:
    """Audit what is left of the sample, on the workers of the sweep, and say what came of it."""
    rows = left(context)
    if rows:
        context.enter("audit_pruned", total=len(rows))
        pool.run(_Audit(context, pool, rows).work)
    if rows and (found := context.study.audit()) is not None:
        say = context.warn if found.better or found.differing else context.inform
        say(f"audit of pruned trials: {found.words()}")


class _Audit:
    """Trains a list of trials to their ends. Its workers share it."""

    def __init__(self, context: Context, pool: WorkerPool, rows: list[TrialRow]) -> None:
        self.context = context
        self.pool = pool
        self._left = deque(rows)

    def work(self, worker: Worker) -> None:
        """The loop of one worker: train what is left."""
        while self._left and not worker.stopping:
            try:
                row = self._left.popleft()
            except IndexError:  # another worker took the last one
                return
            try:
                self._train(worker, row)
            except WorkerUnfit:
                self._left.append(row)
                raise

    def _train(self, worker: Worker, row: TrialRow) -> None:
        """One trial as a child run, noted with its whole curve; one that fails is noted, too, and not tried again."""
        context, name, key = self.context, audit_name(row.number), f"{AUDIT_NOTE}{row.number:04d}"
        stop_if_asked(context)
        context.tell("audit_started", name=name, number=row.number)
        seed = trial_seed(context, row.number)
        params = {**row.params, "seed": seed, "trial_number": row.number}
        run = context.open_run(name, "audit", params, {"forge.audits": trial_name(row.number), **self.pool.tags})
        checkpoint = FileCheckpoint((context.checkpoints / f"{name}.npz").absolute())
        # Its time is none of the search's: this account is read here and kept with the note alone.
        account = Account(context.study, row.number, NO_COST, self.pool.gpus_each, budget.CLOCKS.wall)
        monitor = Monitor(context, run, account=account)
        note: dict[str, Any]
        try:
            for attempt in self.pool.attempts(name):
                with attempt:
                    outcome = self.pool.train(worker, row.params, seed, checkpoint, monitor)
            if (missed := infeasible(context.experiment, outcome)) is not None:
                raise missed
            log_end(context, run, outcome)
        except TrialFailed as failure:
            finish_failed(run, failure)
            note = {"value": None, "cause": f"{failure.failure}: {failure.message}"}
        except BaseException:
            finish(run, "interrupted", "KILLED")
            raise
        else:
            recorded = context.study.reports(row.number)
            off = [abs(monitor.seen.get(epoch, float("inf")) - value) for epoch, value in recorded.items()]
            reached = finite({"off": max(off, default=0.0)})
            curve = finite({str(epoch + 1): value for epoch, value in monitor.seen.items()})
            note = {"value": outcome.value, "epochs": outcome.epochs, "curve": curve, **reached}
        context.study.note(key, {**note, "cost": account.cost.total.to_dict()})
        forget_progress(checkpoint)  # last: its state is kept until the end is noted
        context.tell("audit", name=name, number=row.number, value=note["value"])


def audit_name(number: int) -> str:
    """Name of the run that audits a trial."""
    return f"audit-{number:04d}"
