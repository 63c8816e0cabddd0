"""components.executor: the same results in the same order wherever the work is done, and whatever dies on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from executor_tasks import Number, name_of, slow_square, square, square_or_die, square_or_die_once, square_or_refuse
from tiny_cohort import tiny_params

from components import executor as executors
from components.exams.freeze import freeze_exams
from components.executor import AHEAD, CHUNK, SERIAL, Executor, open_executor
from components.instruct.build import build_items
from components.params import ComputeParams, UserError, load_params
from components.records.build import build_records

REPOSITORY = Path(__file__).resolve().parents[1]
COUNT = 40
SQUARES = [number**2 for number in range(COUNT)]


def numbers(count: int = COUNT) -> Iterator[Number]:
    return (Number(value) for value in range(count))


@pytest.fixture(scope="module")
def two_processes() -> Iterator[Executor]:
    with open_executor(ComputeParams("local", 2), {}) as executor:
        yield executor


def build_all(folder: Path, executor: Executor, patients: int = 80) -> dict[str, str]:
    """The three stages on a small cohort; the hash of every file they wrote."""
    source = folder / "source"
    source.mkdir(parents=True)
    (source / "cohort.yaml").write_text(f"hospital: riverside\nbatches:\n  - {{patients: {patients}, seed: 0}}\n")
    params = tiny_params()
    records = dataclasses.replace(params.records, source_dir=str(source), shard_records=50)
    build_records(records, folder / "records", executor)
    build_items(params.instruct, folder / "records", folder / "items", executor)
    freeze_exams(params.exams, folder / "records", folder / "exams", executor)
    written = [path for path in folder.rglob("*") if path.suffix in {".parquet", ".tar"}]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in written}


@pytest.fixture(scope="module")
def serially(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return build_all(tmp_path_factory.mktemp("serial"), SERIAL)


@pytest.mark.parametrize(
    ("executor", "workers", "environment", "message"),
    [
        ("dask", None, {}, r"compute.executor: found 'dask', expected local, tcp://HOST:PORT or tls://HOST:PORT"),
        ("http://host:1", None, {}, "compute.executor: found 'http://host:1'"),
        ("tcp://host", None, {}, "compute.executor: found 'tcp://host'"),
        ("tcp://host:port", None, {}, "compute.executor: found 'tcp://host:port'"),
        ("tcp://:8786", None, {}, "compute.executor: found 'tcp://:8786'"),
        ("local", None, {"ECG_EXECUTOR": "cluster:8786"}, r"\$ECG_EXECUTOR: found 'cluster:8786'"),
        ("local", 0, {}, r"compute.workers: found 0, expected null \(one a core\) or 1 and more"),
    ],
)
def test_a_wrong_executor_names_its_key(executor, workers, environment, message):
    with pytest.raises(UserError, match=message), open_executor(ComputeParams(executor, workers), environment):
        pytest.fail("opened")


def test_the_environment_goes_before_the_params():
    with open_executor(ComputeParams("tcp://nowhere:1", 1), {"ECG_EXECUTOR": "local"}) as executor:
        assert executor is SERIAL


def test_the_default_is_this_machine():
    assert load_params(REPOSITORY / "params.yaml").compute == ComputeParams("local", None)


def test_nobody_there_is_told_in_seconds(monkeypatch):
    monkeypatch.setattr(executors, "CONNECT_S", 1.0)
    with socket.socket() as taken:  # bound and not listening: nothing answers
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"compute.executor: no Dask scheduler answers at {address} .*dask sched"):
            open_executor(ComputeParams(address, None), {}).__enter__()


def test_results_come_in_order(two_processes):
    for executor in (SERIAL, two_processes):
        assert list(executor.map(slow_square, numbers(), total=COUNT, name=name_of)) == SQUARES
        assert list(executor.map(square, numbers(0), total=0, name=name_of)) == []


def test_only_so_much_is_read_ahead(two_processes):
    read = []
    results = two_processes.map(square, (read.append(n) or n for n in numbers(1000)), total=1000, name=name_of)
    assert next(results) == 0
    assert len(read) <= AHEAD * 2 * CHUNK
    results.close()


def test_a_task_that_raises_tells_of_which_item(two_processes):
    task = partial(square_or_refuse, bad=13)
    for executor in (SERIAL, two_processes):
        with pytest.raises(UserError, match="this one is refused") as error:
            list(executor.map(task, numbers(), total=COUNT, name=name_of))
        assert "at number-13" in error.value.__notes__


def test_a_process_that_dies_is_replaced(two_processes, tmp_path):
    task = partial(square_or_die_once, poison=13, mark=str(tmp_path / "died"))
    assert list(two_processes.map(task, numbers(), total=COUNT, name=name_of)) == SQUARES
    assert (tmp_path / "died").exists()


def test_what_kills_each_process_is_named(two_processes):
    with pytest.raises(UserError, match="number-13: the workers that had it in hand died"):
        list(two_processes.map(partial(square_or_die, poison=13), numbers(), total=COUNT, name=name_of))
    assert list(two_processes.map(square, numbers(), total=COUNT, name=name_of)) == SQUARES


def test_processes_are_started_only_where_they_pay(monkeypatch):
    with open_executor(ComputeParams("local", None), {}) as executor:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with open_executor(ComputeParams("local", None), {}) as executor:
        assert list(executor.map(square, numbers(), total=COUNT, name=name_of)) == SQUARES
        assert executor._pool is None
        monkeypatch.setattr(executors, "LOOK_S", 0.1)
        monkeypatch.setattr(executors, "PAYS_S", 0.1)
        assert list(executor.map(slow_square, numbers(), total=COUNT, name=name_of)) == SQUARES
        assert executor._pool is not None


def test_processes_write_the_same_bytes(serially, two_processes, tmp_path):
    assert build_all(tmp_path, two_processes) == serially


@pytest.mark.slow
def test_terminate_calls_off_the_work_and_leaves_nothing(tmp_path):
    (tmp_path / "cohort.yaml").write_text("hospital: riverside\nbatches:\n  - {patients: 100000, seed: 0}\n")
    program = (
        "import dataclasses, sys; from pathlib import Path\n"
        "from components.params import ComputeParams, load_params\n"
        "from components.records.build import build_records; from components.executor import open_executor\n"
        "if __name__ == '__main__':\n"
        "    params = dataclasses.replace(load_params().records, source_dir=sys.argv[1])\n"
        "    with open_executor(ComputeParams('local', 2), {}) as executor:\n"
        "        build_records(params, Path(sys.argv[1]) / 'records', executor)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stderr is not None
    line = b""
    while b"[records]" not in line or b" 0/" in line:
        line = process.stderr.readline()
        assert line, "it ended by itself"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["cohort.yaml"]
    until(lambda: not alive_in_session(process.pid))


@pytest.fixture(autouse=True, scope="module")
def same_environment() -> Iterator[None]:
    """A LocalCluster's nannies set MALLOC_TRIM_THRESHOLD_ and more for this process, and for the tests that follow."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def cluster():
    import dask
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(
            n_workers=3, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def on_cluster(cluster) -> Iterator[Executor]:
    with open_executor(ComputeParams(cluster.scheduler_address, None), {}) as executor:
        yield executor


@pytest.mark.slow
def test_a_cluster_writes_the_same_bytes_though_a_worker_is_killed(serially, cluster, on_cluster, tmp_path):
    killed: list[int] = []

    def kill_one() -> None:
        """The first worker seen with a task in hand."""
        while not killed:
            for worker in list(cluster.scheduler.workers.values()):
                if worker.processing and not killed:
                    killed.append(pid_of[worker.address])
                    os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.005)

    pid_of = on_cluster._client.run(os.getpid)
    assert len(pid_of) == 3
    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    assert build_all(tmp_path, on_cluster) == serially
    killer.join(1)
    assert len(killed) == 1
    assert killed[0] not in on_cluster._client.run(os.getpid).values()


@pytest.mark.slow
def test_what_kills_each_worker_of_a_cluster_is_named(on_cluster):
    with pytest.raises(UserError, match="number-13: the workers that had it in hand died"):
        list(on_cluster.map(partial(square_or_die, poison=13), numbers(), total=COUNT, name=name_of))
    assert list(on_cluster.map(square, numbers(), total=COUNT, name=name_of)) == SQUARES


@pytest.mark.slow
def test_a_task_that_raises_on_a_cluster_tells_of_which_item(on_cluster):
    with pytest.raises(UserError, match="this one is refused") as error:
        list(on_cluster.map(partial(square_or_refuse, bad=13), numbers(), total=COUNT, name=name_of))
    assert "at number-13" in error.value.__notes__


@pytest.mark.slow
def test_a_worker_with_other_code_or_packages_is_named(cluster, monkeypatch):
    own = executors.fingerprint()
    worker = r"compute.executor: worker tcp://127.0.0.1:\d+ has"
    sources = own["sources of components/"][:12]
    for part, message in (
        ("sources of components/", f"{worker} sources of components/ {sources}, expected x"),
        ("numpy", f"{worker} numpy {own['numpy']}, expected x; start it again in a checkout of the same commit"),
    ):
        # The scheduler of these tests is in this process, and so always like it.
        monkeypatch.setattr(executors, "fingerprint", lambda part=part: own | {part: "x"})
        with pytest.raises(UserError, match=message):
            open_executor(ComputeParams(cluster.scheduler_address, None), {}).__enter__()


@pytest.mark.slow
def test_a_worker_that_joins_later_with_other_code_is_named(cluster, on_cluster, monkeypatch):
    monkeypatch.setattr(on_cluster, "_own", executors.fingerprint() | {"scipy": "0.1"})
    with pytest.raises(UserError, match=r"worker tcp://127.0.0.1:\d+ has scipy .*, expected 0.1"):
        list(on_cluster.map(square, numbers(), total=COUNT, name=name_of))


@pytest.mark.slow
def test_schedulers_and_workers_by_their_commands(tmp_path, monkeypatch):
    """As the docs start them: without our code, without a worker, with a worker without it, lost in the middle."""
    monkeypatch.setattr(executors, "JOIN_S", 2.0)
    monkeypatch.setattr(executors, "CONNECT_S", 5.0)
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    dask = [sys.executable, "-m", "dask"]
    options = ["--nworkers", "1", "--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard"]
    # A module of the same name hides our code, also where it is installed.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "components.py").touch()
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], folder: Path, **more: str) -> subprocess.Popen[bytes]:
        log = (tmp_path / f"log-{len(started)}").open("wb")
        started.append(
            subprocess.Popen(command, cwd=folder, env=bare | more, stderr=log, stdout=log, start_new_session=True)
        )
        return started[-1]

    try:
        serve = [*dask, "scheduler", "--host", "127.0.0.1", "--no-dashboard", "--port"]
        port = free_port()
        stranger = start([*serve, str(port)], elsewhere)
        until(lambda: answers(port))
        with pytest.raises(UserError, match=r"the scheduler cannot import this project \(No module named"):
            open_executor(ComputeParams(f"tcp://127.0.0.1:{port}", None), {}).__enter__()
        end(stranger)

        port = free_port()
        address = f"tcp://127.0.0.1:{port}"
        scheduler = start([*serve, str(port)], REPOSITORY)
        until(lambda: answers(port))
        with pytest.raises(UserError, match=f"the scheduler at {address} has no worker; start some with"):
            open_executor(ComputeParams(address, None), {}).__enter__()

        monkeypatch.setattr(executors, "JOIN_S", 30.0)
        stranger = start([*dask, "worker", address, *options], elsewhere)
        with pytest.raises(UserError, match=r"worker tcp://\S+ cannot import this project \(No module named"):
            open_executor(ComputeParams(address, None), {}).__enter__()
        end(stranger)

        start([*dask, "worker", address, *options], REPOSITORY, PYTHONPATH=f"{REPOSITORY}:{REPOSITORY / 'tests'}")
        (tmp_path / "cohort.yaml").write_text("hospital: riverside\nbatches:\n  - {patients: 100000, seed: 0}\n")
        params = dataclasses.replace(tiny_params().records, source_dir=str(tmp_path))
        killer = threading.Thread(target=kill_when_written, args=(tmp_path, scheduler), daemon=True)
        until(lambda: opens(address))
        with open_executor(ComputeParams("local", None), {"ECG_EXECUTOR": address}) as executor:
            killer.start()
            with pytest.raises(UserError, match=rf"\$ECG_EXECUTOR: the Dask scheduler at {address} was lost"):
                build_records(dataclasses.replace(params, shard_records=50), tmp_path / "out" / "records", executor)
        assert list((tmp_path / "out").iterdir()) == []
    finally:
        for process in started:
            end(process)


@pytest.mark.slow
def test_a_cluster_behind_tls(tmp_path):
    import dask
    from distributed import LocalCluster
    from distributed.security import Security

    security = Security.temporary()
    files = {}
    for name in ("tls_ca_file", "tls_client_cert", "tls_client_key"):
        (tmp_path / name).write_text(getattr(security, name))
        files[name] = str(tmp_path / name)
    config = {
        "distributed.comm.tls.ca-file": files["tls_ca_file"],
        "distributed.comm.tls.client.cert": files["tls_client_cert"],
        "distributed.comm.tls.client.key": files["tls_client_key"],
    }
    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="tls://127.0.0.1", security=security, dashboard_address="127.0.0.1:0"
    ) as cluster:
        assert cluster.scheduler_address.startswith("tls://")
        params = ComputeParams(cluster.scheduler_address, None)
        with dask.config.set(config), open_executor(params, {}) as executor:
            assert list(executor.map(square, numbers(), total=COUNT, name=name_of)) == SQUARES
        with pytest.raises(UserError, match="no Dask scheduler answers at tls://"):
            open_executor(params, {}).__enter__()


def kill_when_written(folder: Path, process: subprocess.Popen[bytes]) -> None:
    while not list(folder.glob("out/.records-*/records-00000.parquet")):
        time.sleep(0.01)
    process.kill()


def opens(address: str) -> bool:
    try:
        with open_executor(ComputeParams(address, None), {}):
            return True
    except UserError:
        return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


def until(holds, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive_in_session(leader: int) -> list[str]:
    done = subprocess.run(["ps", "-o", "stat=", "-s", str(leader)], capture_output=True, text=True)
    return [line for line in done.stdout.split() if not line.startswith("Z")]


def end(process: subprocess.Popen[bytes]) -> None:
    """The process and its nanny's workers."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
