"""The stage `records` from a folder on disk to the store, with bad input set aside or refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from synthetic_records import PtbxlFolder, ptbxl_params

from components.params import PARAMS_FILE, UserError
from components.records.build import build_records, main
from components.records.store import RecordStore

REPOSITORY = Path(__file__).resolve().parents[2]


def test_folder_to_store(ptbxl: PtbxlFolder, tmp_path: Path) -> None:
    out = tmp_path / "data" / "records"
    manifest = build_records(ptbxl_params(ptbxl.folder), out)
    assert manifest["records"] == 10
    assert manifest["dropped"]["total"] == 0
    assert manifest["counts"]["quality"] == {"static_noise": 1}
    assert manifest["params"]["source"] == "ptbxl"
    assert any("300" in note for note in manifest["notes"])
    store = RecordStore(out)
    rates = [record.measurements["heart_rate_bpm"] for record in store]
    np.testing.assert_allclose(rates, np.arange(61, 71), atol=1.5)


def test_building_twice_gives_the_same_bytes(ptbxl: PtbxlFolder, tmp_path: Path) -> None:
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        build_records(ptbxl_params(ptbxl.folder), out)
    for path in outs[0].iterdir():
        assert path.read_bytes() == (outs[1] / path.name).read_bytes()


def test_bad_records_are_set_aside_and_counted(ptbxl: PtbxlFolder, tmp_path: Path) -> None:
    ptbxl.dat(1).write_bytes(ptbxl.dat(1).read_bytes()[:1000])
    ptbxl.hea(2).write_text(ptbxl.hea(2).read_text().replace(" V6", " V9"))
    ptbxl.dat(3).write_bytes(bytes(24000))
    ptbxl.dat(4).unlink()
    manifest = build_records(ptbxl_params(ptbxl.folder), tmp_path / "records")
    assert manifest["records"] == 6
    assert manifest["dropped"]["by_reason"] == {
        "missing file": 1,
        "missing lead": 1,
        "no signal": 1,
        "truncated signal file": 1,
    }
    assert [item["record_id"] for item in manifest["dropped"]["records"]] == [f"ptbxl-{n:05d}" for n in range(1, 5)]


def _truncate(folder: PtbxlFolder) -> None:
    folder.dat(1).write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (
            _truncate,
            {"max_bad_fraction": 0.05},
            r"1 of 10 records were set aside \(10.0%\).*truncated signal file 1",
        ),
        (
            lambda f: None,
            {"sampling_rate_hz": 500},
            "10 of 10 .*missing file 10 .first ptbxl-00001: 00001_hr.hea",
        ),
        (lambda f: None, {"seconds": 12.0}, "too short 10"),
        (lambda f: f.rewrite(9, patient_id="101"), {}, "patient ptbxl-p00101.*fold 9 .validation."),
        (lambda f: f.rewrite(9, scp_codes="{'WHAT': 0.0}"), {}, "ecg_id 9 has the unknown statement 'WHAT'"),
        (lambda f: (f.folder / "ptbxl_database.csv").unlink(), {}, r"ptbxl_database\.csv: cannot be read"),
        (lambda f: f.folder.rename(f.folder.with_name("moved")), {}, r"records\.source_dir: no folder"),
        (lambda f: None, {"source": "ptb-xl"}, r"records\.source: unknown source 'ptb-xl'.*'ptbxl'"),
        (
            lambda f: None,
            {"max_bad_fraction": 1.5},
            r"records\.max_bad_fraction: found 1\.5, expected 0 to 1",
        ),
        (lambda f: None, {"limit": 0}, r"records\.limit: found 0"),
        (lambda f: None, {"shard_records": 0}, r"records\.shard_records: found 0"),
        (lambda f: None, {"seconds": 0.0}, r"records\.seconds: found 0"),
    ],
)
def test_bad_input_is_a_clear_error_and_nothing_is_left(
    ptbxl: PtbxlFolder, tmp_path: Path, damage, changes: dict[str, object], message: str
) -> None:
    damage(ptbxl)
    out = tmp_path / "data" / "records"
    with pytest.raises(UserError, match=message):
        build_records(ptbxl_params(ptbxl.folder, **changes), out)
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def test_simulated_patients_keep_their_own_measurements(tmp_path: Path) -> None:
    (tmp_path / "cohort.yaml").write_text("hospital: riverside\nbatches:\n  - {patients: 40, seed: 0}\n")
    params = ptbxl_params(tmp_path, source="simulator", shard_records=16, max_bad_fraction=0.05)
    manifest = build_records(params, tmp_path / "records")
    assert manifest["records"] + manifest["dropped"]["total"] == 40
    assert manifest["counts"]["provenance"] == {"simulator": manifest["records"]}
    store = RecordStore(tmp_path / "records")
    assert any("pr_ms" in record.measurements for record in store)
    few = build_records(dataclasses.replace(params, limit=1), tmp_path / "few")
    assert max(few["counts"]["fold"].values()) == 1


def test_a_cohort_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cohort\.yaml"):
        build_records(ptbxl_params(tmp_path / "nowhere", source="simulator"), tmp_path / "records")
    assert list(tmp_path.iterdir()) == []


def write_params(folder: Path, source_dir: str) -> None:
    params = yaml.safe_load((REPOSITORY / PARAMS_FILE).read_text())
    params["records"] |= {"source": "ptbxl", "source_dir": source_dir}
    (folder / PARAMS_FILE).write_text(yaml.safe_dump(params))


def test_the_stage_as_a_command(ptbxl: PtbxlFolder, tmp_path: Path) -> None:
    write_params(tmp_path, "ptb-xl")
    done = subprocess.run(
        [sys.executable, "-m", "components.records.build"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "10 records of 10 patients (train 8, validation 1, test 1)" in done.stdout
    assert json.loads((tmp_path / "data/records/manifest.json").read_text())["records"] == 10


def test_the_command_prints_the_error_and_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(tmp_path, "nowhere")
    monkeypatch.chdir(tmp_path)
    assert main() == 2
    assert capsys.readouterr().err.startswith("error: records.source_dir: no folder nowhere")
    assert not (tmp_path / "data").exists()


@pytest.mark.real_data
def test_some_of_the_real_part(real_data: Path, tmp_path: Path) -> None:
    manifest = build_records(ptbxl_params(real_data / "ptb-xl", limit=15, shard_records=60), tmp_path / "records")
    assert manifest["records"] == 150
    assert manifest["counts"]["split"] == {"train": 120, "validation": 15, "test": 15}
    store = RecordStore(tmp_path / "records")
    signals = np.stack([store.signal(i) for i in range(len(store))])
    assert signals.shape == (150, 12, 1000)
    assert store.table["measurements"].map(lambda measured: "heart_rate_bpm" in measured).all()


@pytest.mark.real_data
@pytest.mark.slow
def test_all_of_the_real_part(real_data: Path, tmp_path: Path) -> None:
    started = time.process_time()
    params = ptbxl_params(real_data / "ptb-xl", max_bad_fraction=0.05, shard_records=1000)
    manifest = build_records(params, tmp_path / "records")
    assert time.process_time() - started < 60
    assert manifest["records"] + manifest["dropped"]["total"] == 2801
    assert manifest["dropped"]["by_reason"] == {"implausible amplitude": 1}
    assert manifest["counts"]["split"] == {"train": 2321, "validation": 330, "test": 149}
    started = time.process_time()
    store = RecordStore(tmp_path / "records")
    assert sum(store.signal(i).nbytes for i in range(len(store))) == 2800 * 24000
    assert time.process_time() - started < 1.5


@pytest.mark.real_data
def test_real_500_hz_agrees_with_100_hz(real_data: Path, tmp_path: Path) -> None:
    rates: list[list[float]] = []
    for hz in (100, 500):
        params = ptbxl_params(real_data / "ptb-xl", sampling_rate_hz=hz, limit=4)
        build_records(params, tmp_path / str(hz))
        store = RecordStore(tmp_path / str(hz))
        assert store.signal(0).shape == (12, 10 * hz)
        rates.append([record.measurements["heart_rate_bpm"] for record in store])
    np.testing.assert_allclose(rates[0], rates[1], rtol=0.02)
