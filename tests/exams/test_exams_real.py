"""The superclass exam about real records, against PTB-XL's own tables read independently."""

from __future__ import annotations

import ast
import dataclasses

import pandas as pd
import pytest
from tiny_cohort import tiny_params

from components.exams.freeze import freeze_exams
from components.exams.frozen import open_exam
from components.records.build import build_records


@pytest.mark.real_data
def test_truth_is_that_of_ptbxls_tables(real_data, tmp_path):
    params = tiny_params()
    source = dataclasses.replace(
        params.records, source="ptbxl", source_dir=str(real_data / "ptb-xl"), limit=12, max_bad_fraction=0.5
    )
    build_records(source, tmp_path / "records")
    freeze_exams(dataclasses.replace(params.exams, style="clean"), tmp_path / "records", tmp_path / "exams")
    exam = open_exam(tmp_path / "exams")

    database = pd.read_csv(real_data / "ptb-xl" / "ptbxl_database.csv", index_col="ecg_id")
    statements = pd.read_csv(real_data / "ptb-xl" / "scp_statements.csv", index_col=0)
    diagnostic = statements[statements["diagnostic"] == 1]["diagnostic_class"]
    items = exam.items("super")
    assert items["record_id"].nunique() >= 15
    for record_id, answers in items.groupby("record_id"):
        row = database.loc[int(record_id.removeprefix("ptbxl-"))]
        codes = ast.literal_eval(row["scp_codes"])
        expected = {diagnostic[code] for code in codes if code in diagnostic.index}
        assert set(answers[answers["truth"]]["label"]) == expected
        assert set(answers["split"]) == {{9: "validation", 10: "test"}[row["strat_fold"]]}
        assert set(answers["patient_id"]) == {f"ptbxl-p{int(row['patient_id']):05d}"}
    assert exam.page(items["record_id"][0]).shape == (256, 352, 3)
