"""Behaviour of `forge_sweep.workers`: a conformance suite, run for each backend."""

from __future__ import annotations

import abc

import pytest

from forge_sweep import workers
from forge_sweep.experiment import WorkersSpec
from forge_sweep.workers import Workers


class WorkersConformance(abc.ABC):
    """What every backend holds to; subclass it once per backend. Jobs are methods, so that they can be pickled."""

    @abc.abstractmethod
    def make(self) -> Workers:
        """A backend with at least one worker."""

    def test_each_worker_gets_an_id_of_its_own(self) -> None:
        ids: list[str] = []
        self.make().run(ids.append)
        assert ids
        assert all(ids)
        assert len(set(ids)) == len(ids)

    def test_run_waits_until_the_shared_work_is_done(self) -> None:
        left, done = list(range(20)), list[int]()

        def job(worker_id: str) -> None:
            while left:
                done.append(left.pop())

        self.make().run(job)
        assert sorted(done) == list(range(20))

    @pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
    def test_an_exception_of_a_job_arrives_as_it_is(self, error: BaseException) -> None:
        def job(worker_id: str) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            self.make().run(job)
        assert caught.value is error

    def test_one_backend_runs_several_jobs_one_after_the_other(self) -> None:
        ids: list[str] = []
        backend = self.make()
        backend.run(ids.append)
        first = len(ids)
        backend.run(ids.append)
        assert len(ids) == 2 * first


class TestSerial(WorkersConformance):
    def make(self) -> Workers:
        return workers.make(WorkersSpec(kind="serial"))

    def test_the_job_runs_once_in_the_calling_thread(self) -> None:
        """Ctrl-C and a debugger reach it there."""
        import threading

        threads: list[threading.Thread] = []
        self.make().run(lambda worker_id: threads.append(threading.current_thread()))
        assert threads == [threading.current_thread()]
