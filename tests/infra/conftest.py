"""What the tests of infra/aws share."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra.aws import deploy
from infra.aws.stack import build


@pytest.fixture(scope="session")
def template() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(deploy.to_json(build()))
    return found
