"""A stage on another machine, as far as no server is needed: what a lost, failed or earlier run leads to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.states import Completed, Crashed, Failed, Running, Scheduled, State

from flows import elsewhere
from flows.elsewhere import Ask, run_remote
from flows.stage import INTERRUPTED, StageFailed

ASK = Ask("train", "retrain/2026-01-01", "0" * 40, {}, "train-key")


class Server:
    """Prefect's runs of `stage` by key: how each stands when it is asked for, and how it ends."""

    def __init__(self, *runs: tuple[State[Any], State[Any]]) -> None:
        self.runs, self.asked = list(runs), []  # type: ignore[var-annotated]
        self.ends: dict[Any, State[Any]] = {}

    def submit(self, ask: Ask, key: str) -> Any:
        self.asked.append(key)
        stands, ends = self.runs.pop(0)
        run = SimpleNamespace(id=uuid4(), name=key, state=stands)
        self.ends[run.id] = ends
        return run

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> Server:
        monkeypatch.setattr(elsewhere, "_submit", self.submit)
        monkeypatch.setattr(elsewhere, "_state", self.ends.__getitem__)
        return self


def test_a_lost_worker_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    news: list[str] = []
    stopped: State[Any] = Failed(message=f"stage 'train': {INTERRUPTED}")
    server = Server((Scheduled(), Crashed()), (Scheduled(), stopped), (Scheduled(), Completed())).patch(monkeypatch)
    run_remote(ASK, news.append)
    assert server.asked == ["train-key-1", "train-key-2", "train-key-3"]
    assert sum("was lost" in text for text in news) == 2


def test_it_is_not_asked_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(*[(Scheduled(), Crashed())] * elsewhere.TRIES).patch(monkeypatch)
    with pytest.raises(StageFailed, match=f"it was lost or hindered {elsewhere.TRIES} times"):
        run_remote(ASK, lambda _: None)
    assert len(server.asked) == elsewhere.TRIES


def test_a_stage_that_fails_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server((Scheduled(), Failed(message="UserError: train.steps: found 0"))).patch(monkeypatch)
    with pytest.raises(StageFailed, match=r"train\.steps: found 0") as failed:
        run_remote(ASK, lambda _: None)
    assert failed.value.users_error
    assert len(server.asked) == 1


def test_who_asks_again_joins_the_run_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the asker died: what had ended without a result is passed over, what runs is waited for."""
    server = Server((Crashed(), Crashed()), (Failed(), Failed()), (Running(), Completed())).patch(monkeypatch)
    run_remote(ASK, lambda _: None)
    assert len(server.asked) == 3
    done = Server((Completed(), Completed())).patch(monkeypatch)
    run_remote(ASK, lambda _: None)
    assert len(done.asked) == 1


def test_a_full_disk_or_a_server_that_was_away_is_asked_for_again_after_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("flows.elsewhere.time.sleep", pauses.append)
    full: State[Any] = Failed(message="StageFailed: stage 'train': OSError: [Errno 28] No space left on device")
    little: State[Any] = Failed(message="UserError: /tmp/x: found 0.3 GiB free, expected 2 GiB; make room")
    cut: State[Any] = Failed(message="UserError: dvc pull: ERROR: Could not connect to the endpoint URL: x")
    server = Server(*((Scheduled(), end) for end in (full, little, cut, Completed()))).patch(monkeypatch)
    run_remote(ASK, lambda _: None)
    assert len(server.asked) == 4
    assert pauses == [15.0, 30.0, 60.0]
