"""Records and exams: the serial stage against local processes and a local Dask cluster, by turns in one run.

    python -m benchmarks.executor [--patients 1600] [--workers 2] [--ptbxl FOLDER --limit 40] [--json]

The peer is the serial stage. Processes and cluster are started before the clock, and each stage runs once unmeasured.
The bytes of all are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from components.exams.freeze import freeze_exams
from components.executor import Executor, open_executor
from components.params import ComputeParams, Params, load_params
from components.records.build import build_records


def seconds(params: Params, executor: Executor, folder: Path) -> tuple[float, float, str]:
    """Seconds of records and of exams, and the exams' manifest, which holds the hash of all."""
    started = time.perf_counter()
    build_records(params.records, folder / "records", executor)
    middle = time.perf_counter()
    exams = freeze_exams(params.exams, folder / "records", folder / "exams", executor)
    return middle - started, time.perf_counter() - middle, json.dumps(exams, sort_keys=True)


def measure(params: Params, workers: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    from distributed import LocalCluster

    with (
        tempfile.TemporaryDirectory() as temporary,
        LocalCluster(
            n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        open_executor(ComputeParams("local", 1), {}) as serial,
        open_executor(ComputeParams("local", workers), {}) as processes,
        open_executor(ComputeParams(cluster.scheduler_address, None), {}) as dask,
    ):
        executors = {"serial": serial, "processes": processes, "dask": dask}
        folder = Path(temporary)
        wanted = {seconds(params, executor, folder)[2] for executor in executors.values()}
        assert len(wanted) == 1, "the bytes differ"
        spent: dict[str, dict[str, list[float]]] = {name: {"records": [], "exams": []} for name in executors}
        for _ in range(rounds):
            for name, executor in executors.items():
                of_records, of_exams, _ = seconds(params, executor, folder)
                spent[name]["records"].append(of_records)
                spent[name]["exams"].append(of_exams)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=1600, help="of the default cohort")
    parser.add_argument("--ptbxl", type=Path, help="PTB-XL's folder, in place of the cohort")
    parser.add_argument("--limit", type=int, help="records of each fold of PTB-XL")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    arguments = parser.parse_args()
    params = load_params()
    with tempfile.TemporaryDirectory() as source:
        cohort = f"hospital: riverside\nbatches:\n  - {{patients: {arguments.patients}, seed: 112}}\n"
        (Path(source) / "cohort.yaml").write_text(cohort)
        changed = {"source_dir": source}
        if arguments.ptbxl:
            changed = {"source": "ptbxl", "source_dir": str(arguments.ptbxl), "limit": arguments.limit}
        params = dataclasses.replace(params, records=dataclasses.replace(params.records, **changed))
        spent = measure(params, arguments.workers, arguments.rounds)
    if arguments.json:
        print(json.dumps({"seconds": spent, "load": os.getloadavg()[0], "cpus": os.cpu_count()}))
        return
    for stage in ("records", "exams"):
        for name, of_stage in spent.items():
            pairs = zip(spent["serial"][stage], of_stage[stage], strict=True)
            ratios = sorted(serial / own for serial, own in pairs)
            print(
                f"{stage:8}{name:10}{statistics.median(of_stage[stage]):8.2f} s   serial / this "
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, n = {len(ratios)})"
            )
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
