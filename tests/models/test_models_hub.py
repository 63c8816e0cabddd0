"""Hub bases, from a server laid out like the hub: a pinned commit, gates, and no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_hub import COMMIT, serve
from toy_models import save_text_model

from components.models.bases import load_base
from components.models.smol import REPO

# The hub's client reads its settings as it is imported: every case is a process of its own.
PROGRAM = """
import json, sys
from components.models.bases import load_base
from components.params import UserError
told = []
for base, revision in json.loads(sys.argv[1]):
    try:
        loaded = load_base(base, revision)
        told.append([loaded.model.config.model_type, loaded.identity])
    except UserError as error:
        told.append(str(error))
print(json.dumps(told))
"""


def ask(asked: list[tuple[str, str]], cache: Path, **environment: str) -> list:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(asked)],
        env={**os.environ, "HF_HOME": str(cache), "HF_TOKEN": "", "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    text, pickled, seeing, odd = (folder / name for name in ("text", "pickled", "seeing", "odd"))
    save_text_model(text)
    save_text_model(pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    pulse = load_base("pulse-tiny")
    pulse.model.save_pretrained(seeing)
    pulse.processor.save_pretrained(seeing)
    odd.mkdir()
    (odd / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return {"toy/text": text, "toy/pickled": pickled, "toy/seeing": seeing, "toy/odd": odd}


@pytest.mark.slow
def test_a_hub_base_at_a_pinned_commit_gates_and_offline(models, tmp_path):
    cache = tmp_path / "cache"
    with serve(models) as (endpoint, seen):
        text, seeing, closed, refused, unknown, other, pickled, odd = ask(
            [
                ("toy/text", COMMIT),
                ("toy/seeing", COMMIT),
                ("gate/closed", COMMIT),
                ("gate/token-refused", COMMIT),
                ("toy/nothing", COMMIT),
                ("toy/text", "f" * 40),
                ("toy/pickled", COMMIT),
                ("toy/odd", COMMIT),
            ],
            cache,
            HF_ENDPOINT=endpoint,
        )
    assert text == ["llama", {"base": "toy/text", "revision": COMMIT, "weights_sha256": None}]
    assert seeing[0] == "llava_next"
    for told, status in ((closed, 401), (refused, 403)):
        assert f"HTTP {status}" in told
        assert "accept its licence on http://127.0.0.1" in told
        assert "HF_TOKEN" in told
    assert "'toy/nothing'" in unknown
    assert "has no commit ffff" in other
    assert "safetensors" in pickled
    assert "model type 'gpt2' is not supported" in odd
    assert not [path for path in seen if path.endswith(".bin")]
    again, missing = ask(
        [("toy/text", COMMIT), ("toy/odd", "e" * 40)], cache, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1"
    )
    assert again == text
    assert "HF_HUB_OFFLINE=1" in missing
    assert f"hf download toy/odd --revision {'e' * 40}" in missing


@pytest.mark.slow
def test_smollm2_comes_from_the_hub_only_with_the_pinned_bytes(models, tmp_path):
    from components.models.smol import REVISION

    program = (
        "import sys; from pathlib import Path; from components.models.smol import make; "
        "from components.params import UserError\n"
        "try: make(Path(sys.argv[1]))\n"
        "except UserError as error: print(error)"
    )
    with serve({REPO: models["toy/text"]}, REVISION) as (endpoint, seen):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "smol")],
            env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": endpoint, "HF_TOKEN": ""},
            capture_output=True,
            text=True,
            check=True,
        )
    assert any("model.safetensors" in path for path in seen)
    assert "sha256 is" in done.stdout
    assert not (tmp_path / "smol").exists()
