"""How often the gate's rule `superior` errs: equal pairs that pass, and pairs with a true gain that are seen.

    python -m benchmarks.gate --predictions reports/predictions.parquet --simulations 2000

on the exam behind the predictions, with pairs of models like adapter and base there; and on exams of the same kind with
other numbers of records (whole patients drawn again from these), at a tenth of the simulations.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from components.evaluation.power import error_rates
from components.params import load_params


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__)
    parser.add_argument("--predictions", type=Path, default=Path("reports/predictions.parquet"))
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--patients", type=int, nargs="*", default=[300, 1000], help="other sizes of the exam")
    given = parser.parse_args()
    params = load_params()
    exam, metric = params.gate.primary_exam, params.gate.primary_metric
    answers = pd.read_parquet(given.predictions)
    answers = answers[(answers["exam"] == exam) & (answers["split"] == "test")]
    print("| records | resamples | simulations | equal, pass | gain | seen |\n|---|---|---|---|---|---|")
    sizes = [None, *given.patients]
    for size in sizes:
        drawn = answers if size is None else resized(answers, size)
        mine, theirs = (drawn[drawn["subject"] == subject] for subject in ("adapter", "base"))
        count = given.simulations if size is None else max(given.simulations // 10, 1)
        for gain in (0.01, 0.02, 0.04):
            found = error_rates(mine, theirs, exam, metric, params.evaluate, gain=gain, simulations=count)
            low, high = found.false_pass_interval
            seen = "out of reach"
            if found.power is not None and found.power_interval is not None:
                seen = f"{found.power:.1%} [{found.power_interval[0]:.1%}, {found.power_interval[1]:.1%}]"
            print(
                f"| {found.n} | {params.evaluate.resamples} | {count} | {found.false_pass:.1%} [{low:.1%}, {high:.1%}] "
                f"| {gain:g} | {seen} |",
                flush=True,
            )


def resized(answers: pd.DataFrame, patients: int) -> pd.DataFrame:
    """The answers of `patients` patients drawn from these with replacement, each draw a patient of its own."""
    drawn = np.random.default_rng(0).choice(answers["patient_id"].unique(), patients)
    by_patient = dict(list(answers.groupby("patient_id", sort=False)))
    parts = []
    for number, patient in enumerate(drawn):
        rows = by_patient[patient]
        renamed = {name: rows[name] + f"#{number}" for name in ("record_id", "patient_id", "page_id")}
        parts.append(rows.assign(**renamed))
    return pd.concat(parts, ignore_index=True)


if __name__ == "__main__":
    main()
