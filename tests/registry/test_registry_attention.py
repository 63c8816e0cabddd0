"""components.registry.attention: what waits, what was refused, what training has cost; on a real store and ledger."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mlflow.entities import Metric
from registry_project import NO_BETTER, Register, entries_of, tag, twin, version_of

from components.params import Params
from components.registry.approve import approve, reject
from components.registry.attention import (
    Spent,
    budget_matter,
    drift_matter,
    gate_refusal,
    look,
    mlflow_url,
    risen,
    spent_in_month,
)
from components.registry.gate import gate_version
from components.registry.matters import Matter
from components.registry.promote import decide
from components.registry.rollback import rollback
from components.registry.store import connect

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def now() -> datetime:
    return datetime.now(UTC)


def told(params: Params, kind: str, at: datetime | None = None) -> list[Matter]:
    return [one for one in look(params, LONG_AGO, at or now())[0] if one.kind == kind]


def with_pages(params: Params) -> Params:
    alerts = dataclasses.replace(params.alerts, mlflow_url="https://ada:secret@mlflow.example.org/")
    return dataclasses.replace(params, alerts=alerts)


def asked_at(params: Params, number: int) -> datetime:
    (entry,) = [one for one in entries_of(params) if one.version == number and one.event == "gated"]
    return datetime.fromisoformat(entry.at)


def test_an_approval_is_told_once_it_has_waited_longer_than_the_days(params: Params, challenger: int) -> None:
    limit = asked_at(params, challenger) + timedelta(days=params.alerts.approval_days)
    assert told(params, "approval-waiting", limit) == []
    (matter,) = told(with_pages(params), "approval-waiting", limit + timedelta(hours=1))
    assert matter.title == "ecg-tiny version 2 has waited 3 days for approval"
    assert matter.link == "https://mlflow.example.org/#/models/ecg-tiny/versions/2"
    assert "ecg review 2" in matter.text
    run = version_of(params, challenger).run_id
    assert f"runs/{run}/artifacts/review/review.html" in matter.text
    assert "secret" not in matter.text


def test_what_waits_longer_still_is_the_same_matter_until_it_is_decided(params: Params, challenger: int) -> None:
    first, later = (told(params, "approval-waiting", now() + timedelta(days=days))[0] for days in (4, 40))
    assert (first.kind, first.key) == (later.kind, later.key)
    assert [one.version for one in look(params, now(), now())[1]] == [challenger]
    reject(params, challenger, by="Ada")
    assert told(params, "approval-waiting", now() + timedelta(days=40)) == []
    assert look(params, now(), now())[1] == []


def test_a_version_older_than_the_champion_is_not_waited_for(params: Params, challenger: int) -> None:
    newer = twin(params, challenger, approved=False)
    (matter,) = told(params, "approval-waiting", now() + timedelta(days=4))
    assert f"Behind it wait: {newer}." in matter.text
    assert f"ecg review {newer}" in matter.text
    approve(params, newer, by="Ada")
    assert [one.action for one in decide(params)] == ["promoted"]
    assert told(params, "approval-waiting", now() + timedelta(days=4)) == []


def test_a_refusal_of_the_gate_is_told_rule_by_rule_the_same_by_flow_and_look(
    params: Params, registered: Register
) -> None:
    made = registered(NO_BETTER)
    verdict = gate_version(params, made.version)
    assert not verdict.passed
    (matter,) = told(params, "gate-refused")
    assert matter == gate_refusal(params, made.version)
    failed = [rule for rule in verdict.rules if not rule.passed]
    for rule in failed[:3]:
        assert f"Fails {rule.name}: " in matter.text
    assert len(matter.text.splitlines()) <= 10
    assert look(params, now(), now())[0] == []  # since then nothing


def test_a_passed_gate_is_no_refusal(params: Params, challenger: int) -> None:
    assert gate_refusal(params, challenger) is None
    assert told(params, "gate-refused") == []


def test_a_refused_promotion_and_a_change_past_the_program_are_told(params: Params, challenger: int) -> None:
    strict = dataclasses.replace(params, approval=dataclasses.replace(params.approval, approvers=("Grace",)))
    tag(params, challenger, approved_by="Mallory", approval="approved")
    connect(params.registry).set_registered_model_alias(params.registry.model, "champion", str(challenger))
    decide(strict)
    decide(strict)
    (refused,) = told(params, "promotion-refused")
    assert "Mallory" in refused.text
    changed = told(params, "change-refused")
    assert changed
    assert changed[0].severity == "failure"


def test_a_rollback_is_told(params: Params, challenger: int) -> None:
    approve(params, challenger, by="Ada")
    decide(params)
    rollback(params, "reads worse on paper", by="Ada")
    (matter,) = told(params, "rolled-back")
    assert matter.title == "ecg-tiny version 1 is champion again"
    assert "Ada rolled back from version 2: reads worse on paper" in matter.text


def test_a_ledger_that_does_not_hold_is_the_only_matter(params: Params, challenger: int) -> None:
    folder = Path(params.registry.ledger) / params.registry.model
    entry = folder / "00000002.json"
    text = entry.read_bytes()
    entry.unlink()
    entry.write_bytes(text.replace(b'"who":"', b'"who":"x'))
    (matter,), waiting = look(params, LONG_AGO, now() + timedelta(days=9))
    assert (matter.kind, matter.severity) == ("ledger-broken", "failure")
    assert "00000002.json" in matter.text
    assert waiting == []


def test_a_counter_that_starts_anew_counts_each_rise_in_its_month() -> None:
    history = [(10, 1, 1.0), (20, 2, 3.0), (30, 3, 0.5), (40, 4, 2.0)]  # resumed between 20 and 30
    assert risen(history, 0, 100) == pytest.approx(3.0 + 2.0)
    assert risen(history, 20, 30) == pytest.approx(2.0 + 0.5)
    assert risen(reversed(history), 31, 100) == pytest.approx(1.5)
    assert risen([], 0, 100) == 0.0


def test_the_months_cost_is_that_of_all_training_runs(params: Params) -> None:
    client = connect(params.registry)
    at = datetime(2026, 11, 27, 12, tzinfo=UTC)
    other = client.create_experiment("another recipe")
    home = client.get_experiment_by_name(params.registry.experiment).experiment_id

    def trained(experiment: str, hours: float, usd: float | None, day: datetime, kind: str = "training") -> str:
        run = client.create_run(experiment, tags={"kind": kind}).info.run_id
        stamp = int(day.timestamp() * 1000)
        values = {"gpu_hours": hours, **({} if usd is None else {"cost_usd": usd})}
        client.log_batch(run, metrics=[Metric(name, value, stamp, 1) for name, value in values.items()])
        return str(run)

    client.set_terminated(trained(home, 2.0, 6.0, at - timedelta(days=3)), "FINISHED")
    trained(other, 1.0, 3.0, at - timedelta(days=1))  # goes on, or was killed
    client.set_terminated(trained(other, 4.0, None, at), "FAILED")  # on a device without a price
    trained(home, 9.0, 27.0, at - timedelta(days=40))  # another month's
    trained(home, 9.0, 27.0, at, kind="examination")
    assert spent_in_month(client, at) == Spent("2026-11", 9.0, 0.0, 7.0, 3, 1)
    assert spent_in_month(client, datetime(2026, 12, 1, tzinfo=UTC)).usd == 0.0


def spent(usd: float) -> Spent:
    return Spent("2026-11", usd, 1.0, 2.0, 3, 1)


def test_the_budget_is_told_at_its_steps_once_each_and_a_raised_one_anew(params: Params) -> None:
    def matter(usd: float, budget: float | None) -> Matter | None:
        alerts = dataclasses.replace(params.alerts, budget_usd_per_month=budget)
        return budget_matter(dataclasses.replace(params, alerts=alerts), spent(usd))

    assert matter(1000.0, None) is None
    assert matter(79.0, 100.0) is None
    assert matter(0.0, 0.0) is None
    steps = [matter(usd, 100.0) for usd in (80.0, 99.0, 100.0, 250.0)]
    assert [one.severity for one in steps if one] == ["warning", "warning", "failure", "failure"]
    assert len({one.key for one in steps if one}) == 2
    raised = matter(170.0, 200.0)
    assert raised is not None
    assert raised.key not in {one.key for one in steps if one}
    assert "1 of the runs have no price" in raised.text


def test_drift_is_one_matter_for_each_new_data(params: Params) -> None:
    findings = [f"Finding {n}." for n in range(9)]
    one, again, other = (drift_matter(params, md5, findings, "It starts a retraining.", None) for md5 in "aab")
    assert one == again
    assert one.key != other.key
    assert "… and 4 more" in one.text


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        ("sqlite:///mlruns/mlflow.db", None),
        ("http://mlflow:5000/", "http://mlflow:5000"),
        ("https://ada:secret@mlflow:5000", "https://mlflow:5000"),
    ],
)
def test_where_mlflows_pages_are(params: Params, uri: str, url: str | None) -> None:
    registry = dataclasses.replace(params.registry, tracking_uri=uri)
    assert mlflow_url(dataclasses.replace(params, registry=registry)) == url


def test_a_message_is_short_and_mentions_nobody() -> None:
    body = "\n".join(["<!channel> <@U123> <https://evil|here> a < b", "x" * 900, *(f"line {n}" for n in range(20))])
    matter = Matter("test", "key", "a title\nof two lines " + "y" * 300, body, "https://link", "info")
    lines = matter.text.splitlines()
    assert len(lines) == 10
    assert lines[-1] == "https://link"
    assert lines[0] == "‹!channel> ‹@U123> ‹https://evil|here> a < b"
    assert max(map(len, lines)) <= 300
    assert "\n" not in matter.heading
    assert len(matter.heading) <= 120
