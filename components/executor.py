"""Where the work on records and pages is done: in this process, in processes of this machine, or on a Dask cluster.

`open_executor` gives an `Executor` with one verb: `map` a task over items, results in the order of the items, only so
many at a time that memory stays bounded. A task is a pure function of plain data and lives in a module (never in
`__main__`), so that a worker can import it. What it returns is written by the one process that asked; the output is
therefore the same bytes wherever the work was done, and when a worker dies on the way, another does its work again.

Both pools are a `concurrent.futures.Executor`: `ProcessPoolExecutor`, and the one that `dask.distributed` gives for a
cluster. Scheduling, retries and transport are theirs.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

from components.params import ComputeParams, UserError
from components.storage import sources_sha256

KEY = "compute.executor"
ENVIRONMENT = "ECG_EXECUTOR"
LOCAL = "local"
SCHEMES = ("tcp", "tls")

CHUNK = 8  # items in a task: some tens of milliseconds of work, against one of a scheduler's
AHEAD = 2  # tasks in flight for each place where one can run: the next is there when one ends
# Starting processes costs two seconds of imports. Work is first looked at for LOOK_S seconds, and spread where at that
# pace more than PAYS_S are left.
LOOK_S, PAYS_S = 1.0, 8.0
ALONE_TRIES = 2  # a process of this machine may die of something else than its item, so the item is tried again

CONNECT_S = 10.0  # for the scheduler to answer
JOIN_S = 20.0  # for a first worker to be there
NO_WORKER_S = 60.0  # without any worker before the work is given up
LOOK_AGAIN_S = 2.0  # seconds between looks at a cluster that is waited for

# What the bytes of a record, an item or a page depend on, beside our own sources.
PACKAGES = (
    "cloudpickle",
    "dask",
    "distributed",
    "isal",
    "numba",
    "numpy",
    "opencv-python-headless",
    "pyarrow",
    "scipy",
)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(ABC):
    """Does tasks; see the module."""

    @abstractmethod
    def map(
        self,
        task: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        total: int,
        name: Callable[[Item], str],
    ) -> Iterator[Result]:
        """`task` of each of `items`, in their order; `items` is read only as far as the work goes.

        Args:
            task: a pure function of a module, or a `partial` of one; called anywhere, perhaps twice.
            items: plain data, which is sent to where the work is done.
            total: how many items there are.
            name: what an item is called in errors, as `ptbxl-00012`.

        Raises:
            UserError: workers died of an item, which is named; or the cluster was lost.
            Exception: what `task` raised, with a note of the item's name.
        """


class Serial(Executor):
    """One after the other in this process."""

    def map(
        self, task: Callable[[Item], Result], items: Iterable[Item], *, total: int, name: Callable[[Item], str]
    ) -> Iterator[Result]:
        return (_done(task, name, item) for item in items)


SERIAL = Serial()


@contextmanager
def open_executor(params: ComputeParams, environment: Mapping[str, str] = os.environ) -> Iterator[Executor]:
    """The executor that $ECG_EXECUTOR or else `compute.executor` names; its workers' tasks end with the block.

    While it is open, SIGTERM ends this process as ^C does: tasks are called off and half-written folders go.

    Raises:
        UserError: no such executor, no scheduler or worker there, or workers with other code or packages.
    """
    address, key = _address(params, environment)
    if params.workers is not None and params.workers < 1:
        raise UserError(f"compute.workers: found {params.workers}, expected null (one a core) or 1 and more")
    executor: Executor
    with _ended_by_terminate():
        if address != LOCAL:
            executor = _Cluster(address, key)
        elif (count := params.workers or _cores()) == 1:
            executor = SERIAL
        else:
            executor = _Processes(count, only_where_it_pays=params.workers is None)
        try:
            yield executor
        finally:
            if isinstance(executor, _Pool):
                executor.close()


class _Pool(Executor):
    """The ordered, bounded map over a `concurrent.futures.Executor`."""

    deaths: tuple[type[Exception], ...]  # what a task ends with when its worker died
    tries: int  # of an item alone, before it is held to be what workers die of

    def map(
        self, task: Callable[[Item], Result], items: Iterable[Item], *, total: int, name: Callable[[Item], str]
    ) -> Iterator[Result]:
        remaining = iter(items)
        waiting: deque[tuple[list[Item], futures.Future[list[Result]]]] = deque()
        try:
            while chunk := list(islice(remaining, CHUNK)):
                waiting.append((chunk, self.submit(task, name, chunk)))
                if len(waiting) >= AHEAD * self.places():
                    yield from self._next(waiting, task, name)
            while waiting:
                yield from self._next(waiting, task, name)
        finally:
            for _, future in waiting:
                future.cancel()

    def _next(
        self,
        waiting: deque[tuple[list[Item], futures.Future[list[Result]]]],
        task: Callable[[Item], Result],
        name: Callable[[Item], str],
    ) -> list[Result]:
        """The results of the chunk that is next in order."""
        chunk, future = waiting.popleft()
        try:
            self.wait([future])
            return future.result()
        except self.deaths:
            # Whatever else was on those workers is blamed as well. So each item is done alone, with nothing beside it:
            # the innocent give their results, and what kills again is what is named.
            self.wait([other for _, other in waiting])
            return [self._alone(task, name, item) for item in chunk]

    def _alone(self, task: Callable[[Item], Result], name: Callable[[Item], str], item: Item) -> Result:
        error: Exception | None = None
        for _ in range(self.tries):
            future = self.submit(task, name, [item])
            try:
                self.wait([future])
                return future.result()[0]
            except self.deaths as death:
                error = death
        raise UserError(
            f"{name(item)}: the workers that had it in hand died, with nothing else beside it; look at their logs "
            "(out of memory?), give them more, or take it out of the source"
        ) from error

    @abstractmethod
    def submit(
        self, task: Callable[[Item], Result], name: Callable[[Item], str], chunk: Sequence[Item]
    ) -> futures.Future[list[Result]]:
        """Begin a chunk."""

    @abstractmethod
    def wait(self, waited: Sequence[futures.Future[Any]]) -> None:
        """Until all of `waited` have ended, well or not."""

    @abstractmethod
    def places(self) -> int:
        """How many tasks can run at once."""

    @abstractmethod
    def close(self) -> None:
        """Call off what has not begun, and let go of the workers."""


class _Processes(_Pool):
    """Processes of this machine, forked from a server that has imported the task's module and no thread has touched."""

    deaths = (BrokenProcessPool,)
    tries = ALONE_TRIES

    def __init__(self, count: int, only_where_it_pays: bool) -> None:
        self._count, self._only_where_it_pays = count, only_where_it_pays
        self._pool: futures.ProcessPoolExecutor | None = None
        self._context = multiprocessing.get_context("forkserver")

    def map(
        self, task: Callable[[Item], Result], items: Iterable[Item], *, total: int, name: Callable[[Item], str]
    ) -> Iterator[Result]:
        remaining = iter(items)
        self._context.set_forkserver_preload([getattr(task, "func", task).__module__])
        if self._only_where_it_pays:
            yield from _while_short(task, remaining, total, name)
        yield from super().map(task, remaining, total=total, name=name)

    def submit(
        self, task: Callable[[Item], Result], name: Callable[[Item], str], chunk: Sequence[Item]
    ) -> futures.Future[list[Result]]:
        if self._pool is not None:
            with suppress(BrokenProcessPool):
                return self._pool.submit(_all_done, task, name, chunk)
            self._pool.shutdown()
        self._pool = futures.ProcessPoolExecutor(self._count, self._context, _begin_process)
        # All processes at once, as with fork. Python 3.11 starts them one by one as they are needed, and one that is
        # started while the pool breaks is waited for without end.
        vars(self._pool)["_safe_to_dynamically_spawn_children"] = False
        return self._pool.submit(_all_done, task, name, chunk)

    def wait(self, waited: Sequence[futures.Future[Any]]) -> None:
        futures.wait(waited)

    def places(self) -> int:
        return self._count

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class _Cluster(_Pool):
    """A Dask cluster. It does a dead worker's tasks again on others: `distributed.scheduler.allowed-failures` times."""

    tries = 1

    def __init__(self, address: str, key: str) -> None:
        from distributed import Client
        from distributed.scheduler import KilledWorker

        self.deaths = (KilledWorker,)
        self._address, self._key = address, key
        self._places, self._looked_at, self._seen_at = 1, 0.0, time.monotonic()
        try:
            with warnings.catch_warnings():  # of versions that differ: looked at below, more closely
                warnings.simplefilter("ignore")
                dask: Any = Client
                self._client = dask(address, timeout=CONNECT_S, set_as_default=False)
        except Exception as error:  # no such host, nobody there, no Dask there, or no certificate that it takes
            raise UserError(
                f"{key}: no Dask scheduler answers at {address} ({_short(error)}); start one with `dask scheduler`, "
                f"correct the address, or set {key} to {LOCAL}"
            ) from error
        try:
            self._check_workers()
        except BaseException:
            self._client.close()
            raise
        self._executor = self._client.get_executor()
        self._own = fingerprint()

    def submit(
        self, task: Callable[[Item], Result], name: Callable[[Item], str], chunk: Sequence[Item]
    ) -> futures.Future[list[Result]]:
        try:
            future: futures.Future[list[Result]] = self._executor.submit(_all_done_alike, self._own, task, name, chunk)
        except Exception as error:
            if self._client.status == "running":
                raise
            raise self._lost(error) from error
        return future

    def wait(self, waited: Sequence[futures.Future[Any]]) -> None:
        open_ones = set(waited)
        while open_ones:
            _, open_ones = futures.wait(open_ones, LOOK_AGAIN_S)
            self._look()
        if any(future.cancelled() for future in waited):
            raise self._lost(None)

    def places(self) -> int:
        if time.monotonic() - self._looked_at > LOOK_AGAIN_S:
            self._look()
        return self._places

    def close(self) -> None:
        # A client that goes takes its tasks with it: the scheduler calls off what nobody waits for.
        with suppress(Exception):
            self._client.close(timeout=CONNECT_S)

    def _look(self) -> None:
        """How many tasks can run now; an error where the scheduler, or for long every worker, is gone."""
        now = time.monotonic()
        if self._client.status != "running":
            raise self._lost(None)
        if now - self._looked_at < LOOK_AGAIN_S / 2:
            return
        try:
            threads: dict[str, int] = self._client.nthreads()
        except Exception as error:
            raise self._lost(error) from error
        self._looked_at = now
        if threads:
            self._places, self._seen_at = sum(threads.values()), now
        elif now - self._seen_at > NO_WORKER_S:
            raise UserError(
                f"{self._key}: for {NO_WORKER_S:.0f} s no worker has been left at {self._address}, and nothing was "
                "written; look at the workers' logs, start some with `dask worker`, and run it again"
            )

    def _lost(self, error: Exception | None) -> UserError:
        why = f" ({_short(error)})" if error is not None else ""
        return UserError(
            f"{self._key}: the Dask scheduler at {self._address} was lost on the way{why}, and nothing was written; "
            f"start it and run it again, or set {self._key} to {LOCAL}"
        )

    def _check_workers(self) -> None:
        """Scheduler and workers have our sources and packages. Dask itself only warns when versions differ.

        The scheduler does none of the work, but it opens every task.
        """
        try:
            found = {"the scheduler": self._on_scheduler(_probe())}
            if isinstance(found["the scheduler"], dict):
                self._client.wait_for_workers(1, timeout=JOIN_S)
                workers = self._client.run(_probe(), on_error="return")
                found |= {f"worker {worker}": workers[worker] for worker in sorted(workers)}
        except TimeoutError as error:
            raise UserError(
                f"{self._key}: the scheduler at {self._address} has no worker; start some with "
                f"`dask worker {self._address}` in a checkout of this commit"
            ) from error
        except OSError as error:
            raise self._lost(error) from error
        own = fingerprint()
        for where, theirs in found.items():
            if not isinstance(theirs, dict):
                raise UserError(
                    f"{self._key}: {where} cannot import this project ({_short(theirs)}); start it in a checkout of "
                    "the same commit, with the packages of requirements.lock"
                )
            _check_alike(self._key, where, theirs, own)

    def _on_scheduler(self, probe: Callable[[], dict[str, str]]) -> Any:
        try:
            return self._client.run_on_scheduler(probe)
        except ImportError as error:
            return error


@cache
def fingerprint() -> dict[str, str]:
    """What must be the same on a worker for its bytes to be ours: sources, Python, machine type, packages."""
    return {
        "sources of components/": sources_sha256((".",)),
        "Python": platform.python_version(),
        "machine type": platform.machine(),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _check_alike(key: str, where: str, theirs: Mapping[str, str], own: Mapping[str, str]) -> None:
    for part, expected in own.items():
        if (found := theirs.get(part, "missing")) != expected:
            raise _unlike(key, where, part, found, expected)


def _unlike(key: str, where: str, part: str, found: str, expected: str) -> UserError:
    return UserError(
        f"{key}: {where} has {part} {found[:12]}, expected {expected[:12]}; start it again in a checkout of the same "
        "commit, with the packages of requirements.lock"
    )


def _probe() -> Callable[[], dict[str, str]]:
    """A function that travels whole, so that a worker without our code can say so."""

    def probe() -> dict[str, str]:
        from components.executor import fingerprint

        return fingerprint()

    return probe


def _done(task: Callable[[Item], Result], name: Callable[[Item], str], item: Item) -> Result:
    try:
        return task(item)
    except Exception as error:
        error.add_note(f"at {name(item)}")
        raise


def _all_done(task: Callable[[Item], Result], name: Callable[[Item], str], chunk: Sequence[Item]) -> list[Result]:
    """What a worker does."""
    return [_done(task, name, item) for item in chunk]


def _all_done_alike(
    asked_by: Mapping[str, str], task: Callable[[Item], Result], name: Callable[[Item], str], chunk: Sequence[Item]
) -> list[Result]:
    """What a worker of a cluster does: it may have joined after the others were looked at."""
    if (own := fingerprint()) != asked_by:
        from distributed import get_worker

        _check_alike(KEY, f"worker {get_worker().address}", own, asked_by)
    return _all_done(task, name, chunk)


def _while_short(
    task: Callable[[Item], Result], items: Iterator[Item], total: int, name: Callable[[Item], str]
) -> Iterator[Result]:
    """Results made in this process, until it is plain that processes would pay."""
    spent = 0.0
    for done, item in enumerate(items, 1):
        started = time.perf_counter()
        result = _done(task, name, item)
        spent += time.perf_counter() - started
        yield result
        if spent > LOOK_S and spent / done * (total - done) > PAYS_S:
            return


def _begin_process() -> None:
    """^C reaches the whole group, and the parent calls off the work; without a parent there is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_after, args=(parent,), daemon=True).start()


def _leave_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def _ended_by_terminate() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _address(params: ComputeParams, environment: Mapping[str, str]) -> tuple[str, str]:
    """The executor's address, and the key that it stands in."""
    own = environment.get(ENVIRONMENT, "").strip()
    address, key = (own, f"${ENVIRONMENT}") if own else (params.executor, KEY)
    if address == LOCAL:
        return address, key
    try:
        parts = urlsplit(address)
        whole = parts.scheme in SCHEMES and parts.hostname and parts.port and not parts.path.strip("/")
    except ValueError:  # a port that is no number
        whole = False
    if not whole:
        raise UserError(f"{key}: found '{address}', expected {LOCAL}, tcp://HOST:PORT or tls://HOST:PORT")
    return address, key


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _short(error: Any) -> str:
    """The first line of what went wrong."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
