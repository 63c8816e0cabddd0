"""What a run waits for, and what it does not."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from components.params import UserError
from components.s3 import Unavailable
from flows.passing import lasting, say

# As the programs said it when their server was stopped, cut off or told to answer 503 and 500.
AWAY = [
    "dvc push --run-cache: ERROR: unexpected error - [Errno 16] Please reduce your request rate: An error occurred "
    "(SlowDown) when calling the ListObjectsV2 operation (reached max retries: 1): Please reduce your request rate",
    "dvc pull: ERROR: failed to connect to s3 (ecg/dvc/files/md5) - [Errno 16] Service Unavailable: An error occurred",
    "ERROR: unexpected error - [Errno 121] Internal Server Error: An error occurred (500) when calling the HeadObject",
    'ERROR: unexpected error - Could not connect to the endpoint URL: "http://127.0.0.1:1/ecg?list-type=2"',
    "ERROR: failed to transfer '5d41' - Connection was closed before we received a valid response from endpoint URL",
    "stage 'train': failed; its last lines: components.s3.Unavailable: ECG_CHECKPOINTS: 's3://ecg' cannot be reached",
    "fatal: unable to access 'https://example.org/x.git/': Could not resolve host: example.org",
    "API request to http://x failed with exception HTTPConnectionPool(host='x', port=1): Max retries exceeded with url",
]
ITS_OWN = [
    "dvc pull: ERROR: failed to pull data from the cloud - 1 files failed to download",
    "dvc push: ERROR: unexpected error - An error occurred (403) when calling the HeadObject operation: Forbidden",
    "dvc push: ERROR: unexpected error - The specified bucket does not exist: An error occurred (NoSuchBucket)",
    "stage 'train': train.steps: found 503, expected at least 1000",
    "stage 'records': OSError: [Errno 28] No space left on device",
]


def raising(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "there"

    return call


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr("flows.passing.time.sleep", found.append)
    return found


@pytest.mark.parametrize("told", AWAY)
def test_what_says_that_a_server_is_away_is_waited_for(told: str, pauses: list[float]) -> None:
    news: list[str] = []
    assert lasting(raising(UserError(told), RuntimeError(told)), news.append) == "there"
    assert len(news) == len(pauses) == 2


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError("refused"), RuntimeError("Failed to reach API at http://x"), Unavailable("registry.ledger: x")],
)
def test_as_are_errors_by_their_kind(error: Exception, pauses: list[float]) -> None:
    assert lasting(raising(error)) == "there"
    with pytest.raises(type(error)):
        lasting(raising(error), seconds=-1)


def test_a_cause_counts(pauses: list[float]) -> None:
    error = UserError("registry.tracking_uri: no answer")
    error.__cause__ = httpx.ReadTimeout("")
    assert lasting(raising(error)) == "there"


@pytest.mark.parametrize("told", ITS_OWN)
def test_a_fault_of_its_own_is_raised_at_once(told: str, pauses: list[float]) -> None:
    with pytest.raises(UserError):
        lasting(raising(UserError(told)))
    assert not pauses


def test_pauses_grow_to_half_a_minute(pauses: list[float]) -> None:
    lasting(raising(*[Unavailable("x")] * 20))
    assert 0.25 <= pauses[0] <= 0.5
    assert all(15.0 <= pause <= 30.0 for pause in pauses[8:])


def test_news_outside_of_a_run_go_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("waiting")
    assert capsys.readouterr().out == "waiting\n"
