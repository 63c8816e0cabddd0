"""What the server of a team (components.registry.team) offers beyond MLflow, from the client's side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.params import UserError

LEASE = "/api/2.0/ecg/lease"
APPROVALS = "/api/2.0/ecg/approvals"


def call(uri: str, method: str, path: str, **content: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """One request to the MLflow server at `uri`, logged in as MLflow's client is: status and document.

    404 is another MLflow server's, which offers no such thing.

    Args:
        content: `json` or `params`.

    Raises:
        UserError: it does not answer, or the account may not.
    """
    import requests
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(get_default_host_creds(uri), path, method, **content)  # type: ignore[no-untyped-call]
    except (MlflowException, requests.RequestException) as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{uri}: the MLflow server does not answer ({cause}); start it and run the same again"
        ) from error
    if answer.status_code in (401, 403):
        raise UserError(
            f"{uri}: does not let this account in ({answer.status_code}: {answer.text[:200].strip()}); expected one "
            "with the rights for it in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (infra/README.md)"
        )
    try:
        document = answer.json()
    except ValueError:
        document = {}
    return int(answer.status_code), document if isinstance(document, dict) else {}


def approved_on_record(uri: str, model: str, version: int) -> frozenset[str] | None:
    """The accounts that the server itself saw approve `version`; None where MLflow knows no accounts.

    The ledger and the tags are written by clients; this is written by the server, for whoever was logged in.

    Raises:
        UserError: the server does not answer.
    """
    if not uri.startswith("http"):
        return None
    status, document = call(uri, "GET", APPROVALS, params={"name": model, "version": str(version)})
    if status == 404:
        return None
    if status != 200:
        raise UserError(f"{uri}: does not say who approved ({status}); look at the server's log")
    return frozenset(str(one["account"]) for one in document["approvals"])
