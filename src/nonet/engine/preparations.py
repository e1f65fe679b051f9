"""Work that a request needs done before it can run, off the step loop: others keep running meanwhile.

The request's sequences wait with a blocker. A task that fails ends its request alone; one that takes longer than the
limit counts as failed, and another thread goes on with the rest. The limit is one of processor time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nonet.core.errors import NonetError
from nonet.core.request import Request
from nonet.core.thread_limit import ThreadLimit

__all__ = ["Finished", "Preparations", "Preparer", "Task"]

LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Task:
    """`blocker` is what the sequences wait for; `work` raises a NonetError that says why it cannot be had."""

    blocker: str
    work: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Finished:
    """A task's end; `error` is None when the request may run, as far as this task goes."""

    request_id: str
    blocker: str
    error: str | None = None


Preparer = Callable[[Request], Task | None]


class Preparations:
    """Asks each preparer what a request needs, and does it on a thread of its own.

    >>> preparations = Preparations([lambda request: Task("a key", lambda: None)])
    >>> preparations.start("r", [Task("a key", lambda: None)])
    >>> preparations.wait(5.0)
    >>> preparations.finished()
    [Finished(request_id='r', blocker='a key', error=None)]
    >>> preparations.close()
    """

    def __init__(self, preparers: Sequence[Preparer] = (), limit_s: float = LIMIT_S) -> None:
        self._preparers = preparers
        self._limit_s = limit_s
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._news = threading.Event()
        self._worker: _Worker | None = None

    def tasks(self, request: Request) -> list[Task]:
        """What the request has to wait for; usually nothing."""
        found = (prepare(request) for prepare in self._preparers)
        return [task for task in found if task is not None]

    def start(self, request_id: str, tasks: Sequence[Task]) -> None:
        """Do the tasks; `finished` reports each once."""
        for task in tasks:
            self._waiting.put(_Job(request_id, task))
        if tasks and self._worker is None:
            self._worker = self._new_worker()

    def finished(self) -> list[Finished]:
        """Ends of tasks since the last call."""
        if self._worker is None:
            return []
        self._news.clear()
        late = self._worker.abandon_late()
        if late is not None:
            self._done.put(late)
            self._worker = self._new_worker()
        ended: list[Finished] = []
        while True:
            try:
                ended.append(self._done.get_nowait())
            except queue.Empty:
                return ended

    def wait(self, timeout_s: float) -> None:
        """Until a task has ended, at most `timeout_s`."""
        self._news.wait(timeout_s)

    def close(self) -> None:
        """Let the thread end; what waits is not done."""
        if self._worker is not None:
            self._waiting.put(None)

    def _new_worker(self) -> _Worker:
        worker = _Worker(self._waiting, self._done, self._news, self._limit_s)
        threading.Thread(target=worker.run, name="prepare", daemon=True).start()
        return worker


@dataclass(frozen=True, slots=True)
class _Job:
    request_id: str
    task: Task

    def end(self, error: str | None = None) -> Finished:
        return Finished(self.request_id, self.task.blocker, error)


class _Worker:
    """One thread's loop; abandoned, it ends after its job, whose end then interests nobody."""

    def __init__(
        self,
        waiting: queue.SimpleQueue[_Job | None],
        done: queue.SimpleQueue[Finished],
        news: threading.Event,
        limit_s: float,
    ) -> None:
        self._waiting = waiting
        self._done = done
        self._news = news
        self._lock = threading.Lock()
        self._is_abandoned = False
        self._limit_s = limit_s
        self._current: tuple[_Job, ThreadLimit] | None = None

    def abandon_late(self) -> Finished | None:
        """The end of the job under way, if it is past its limit; this worker then no longer counts."""
        with self._lock:
            if self._current is None:
                return None
            job, limit = self._current
            if not limit.is_over and not limit.is_late:
                return None
            self._is_abandoned = True
            seconds = limit.limit_s if limit.is_over else limit.latest_s
            return job.end(f"{job.task.blocker} took longer than {seconds:g} s")

    def run(self) -> None:
        while True:
            job = self._waiting.get()
            if job is None:
                return
            limit = ThreadLimit(self._limit_s)
            limit.start()
            self._current = (job, limit)
            ended = _done(job)
            with self._lock:
                if self._is_abandoned:
                    return
                self._current = None
            self._done.put(ended)
            self._news.set()


def _done(job: _Job) -> Finished:
    try:
        job.task.work()
    except NonetError as error:
        return job.end(str(error))
    except Exception as error:  # our defect, but this request's alone
        return job.end(f"{job.task.blocker} failed: {type(error).__name__}: {error}")
    return job.end()
