"""`ecg keys`: one pair, outside the repository, never overwritten."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def keys(out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", "keys", "--out", str(out), "--json"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_a_pair_is_made_once_and_outside_the_repository(tmp_path: Path) -> None:
    private = tmp_path / "new" / "key"
    made = keys(private)
    assert made.returncode == 0, made.stderr
    answer = json.loads(made.stdout)
    assert answer["public"] == f"{private}.pub"
    assert len(answer["fingerprint"]) == 64
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert "PRIVATE" not in made.stdout + made.stderr
    for out, message in ((private, "never overwritten"), (REPOSITORY / "key", "lies in the git checkout")):
        refused = keys(out)
        assert refused.returncode == 2
        assert message in json.loads(refused.stdout)["error"]
    assert not (REPOSITORY / "key").exists()
