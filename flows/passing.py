"""What may pass by itself: a server that is away or busy, a cut network, one machine's full disk. Then a run waits."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from components.s3 import Unavailable

PATIENCE_SECONDS = 900.0  # so long may a server be away under a run
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0  # each is drawn from half of it to the whole

Answer = TypeVar("Answer")
OnNews = Callable[[str], None]

# DVC, git and the stages tell of it in words alone: botocore's, fsspec's, urllib3's, MLflow's and git's own.
_AWAY = re.compile(
    r"Could not connect to the endpoint URL|Connect(?:ion)? time(?:out|d out)|Read time(?:out|d out)"
    r"|reached max retries|Connection was closed before|Connection broken|Connection (?:reset|refused|aborted)"
    r"|RemoteDisconnected|Max retries exceeded|reduce your request rate|Service Unavailable"
    r"|Internal Server Error|Bad Gateway"
    r"|too many 50\d error responses|failed with error code 50[0234]|Name or service not known|name resolution"
    r"|Could not resolve host|Failed to connect to|remote end hung up|components\.s3\.Unavailable|Failed to reach API",
    re.I,
)
_FULL = re.compile(r"No space left on device|Disk quota exceeded|GiB free, expected")  # the last: flows.preflight's


def is_away(error: BaseException) -> bool:
    """Whether an error says that a server cannot be reached or is busy, so that the same call may go well later."""
    return any(_is_away(one) for one in _with_causes(error))


def is_elsewhere_better(told: str) -> bool:
    """Whether what a run on another machine says of its end is that machine's or the network's fault, not the run's."""
    return bool(_AWAY.search(told) or _FULL.search(told))


def lasting(call: Callable[[], Answer], on_news: OnNews | None = None, seconds: float = PATIENCE_SECONDS) -> Answer:
    """What `call` gives, called again while a server is away, at first soon and then less often.

    Args:
        call: may be called several times: what it did before it failed is done again, or is found done.
        on_news: hears of each wait.
        seconds: the longest wait in all.

    Raises:
        Exception: what the call raised, where nothing is away, or something is for longer than `seconds`.
    """
    started, pause = time.monotonic(), FIRST_PAUSE_SECONDS
    while True:
        try:
            return call()
        except Exception as error:
            if not is_away(error) or time.monotonic() - started > seconds:
                raise
            if on_news is not None:
                on_news(f"waiting for a server that is away: {str(error).strip()[-300:]}")
        time.sleep(pause * random.uniform(0.5, 1.0))  # else all who wait come back at once
        pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)


def say(news: str) -> None:
    """To the log of the run that waits, which Prefect's pages show; outside of a run to the terminal."""
    from prefect import get_run_logger
    from prefect.exceptions import MissingContextError

    try:
        get_run_logger().warning(news)
    except MissingContextError:
        print(news)


def _is_away(error: BaseException) -> bool:
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    if isinstance(error, PrefectHTTPStatusError):
        return bool(error.response.status_code >= 500)
    return isinstance(error, (httpx.TransportError, Unavailable)) or bool(_AWAY.search(str(error)))


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    known: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in known:
        known.append(at)
        yield at
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
