"""What MLflow loads and serves: a real adapter on the shipped base, asked as people ask it."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.instruct.questions import REPORT_QUESTION, superclass_question
from components.models.adapters import WEIGHTS, attach, save_adapter
from components.models.bases import load_base
from components.pages.codec import decode, encode_png
from components.pages.draw import draw
from components.pages.spec import canonical_spec
from components.params import Params, UserError, load_params
from components.reading.reader import Reader
from components.records.simulator import HOSPITALS, simulate
from components.records.statements import SUPERCLASSES

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(REPOSITORY / "params.yaml")


@pytest.fixture(scope="module")
def adapter(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter that does something: its weights are random, not zero."""
    import torch

    base = load_base(params.model.base)
    model = attach(base.model, params.train)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.002, generator=torch.Generator().manual_seed(len(name)))
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    folder.mkdir()
    save_adapter(model, base, folder, {})
    return folder


@pytest.fixture(scope="module")
def served(params: Params, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from components.registry.register import save_pyfunc

    folder = tmp_path_factory.mktemp("served") / "model"
    save_pyfunc(params, adapter, folder)
    return folder


@pytest.fixture(scope="module")
def model(served: Path) -> Iterator[Any]:
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        yield mlflow.pyfunc.load_model(str(served))


@pytest.fixture(autouse=True)
def pages_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Paths lead below the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def page() -> bytes:
    record = simulate(HOSPITALS["base"], 3, 0)
    return bytes(encode_png(draw(record.signal_uv, record.sampling_rate_hz, canonical_spec(704, 512))))


@pytest.fixture
def path(page: bytes, tmp_path: Path) -> str:
    (tmp_path / "page.png").write_bytes(page)
    return str(tmp_path / "page.png")


def refused(model: Any, rows: Any, **params: Any) -> str:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException) as error:
        model.predict(rows, params=params or None)
    assert error.value.error_code == "INVALID_PARAMETER_VALUE"
    assert error.value.get_http_status_code() == 400
    return str(error.value.message)


def test_every_form_of_a_page_gives_the_answer_of_the_reader(
    model: Any, params: Params, adapter: Path, page: bytes, path: str
) -> None:
    text = base64.b64encode(page).decode()
    forms = [path, text, f"data:image/png;base64,{text}"]
    table = model.predict(pd.DataFrame({"page": forms}))
    reader = Reader.load(params.model.base, adapter)
    expected = reader.score([decode(page)], [superclass_question(name) for name in SUPERCLASSES]).p_yes[0]
    np.testing.assert_allclose(table[list(SUPERCLASSES)].to_numpy(), np.tile(expected, (3, 1)), atol=0.02)
    assert set(table["question"]) == {REPORT_QUESTION}
    assert list(table["answer"]) == reader.answer([decode(page)], REPORT_QUESTION) * 3
    assert list(table["flags"]) == [table["flags"][0]] * 3


def test_questions_are_answered_one_by_one(model: Any, path: str) -> None:
    rows = [{"page": path, "question": "What is the rhythm?"}, {"page": path}, {"page": path, "question": ""}]
    table = model.predict(rows)
    assert list(table["question"]) == ["What is the rhythm?", REPORT_QUESTION, REPORT_QUESTION]
    assert table["answer"][1] == table["answer"][2]
    short = model.predict({"page": [path]}, params={"max_new_tokens": 1})
    assert len(short["answer"][0]) < len(table["answer"][1])


def test_the_example_is_answered_and_is_no_patient(model: Any, served: Path) -> None:
    example = json.loads((served / "input_example.json").read_text())
    table = model.predict(pd.DataFrame(example["data"], columns=example["columns"]))
    assert table["question"][0] == "Is this a normal ECG?"
    assert list(table.columns) == [name["name"] for name in model.metadata.signature.outputs.to_dict()]


def test_the_adapter_is_told_where_no_version_is_known(model: Any, path: str) -> None:
    assert re.fullmatch(r"adapter [0-9a-f]{12}", model.predict([{"page": path}])["version"][0])


def encoded(pixels: np.ndarray) -> str:
    return base64.b64encode(encode_png(pixels)).decode()


@pytest.mark.parametrize(
    ("pixels", "flag"),
    [
        (np.full((512, 704, 3), 250, np.uint8), "blank-page"),
        (np.full((160, 220, 3), 250, np.uint8), "small-page"),
        (np.full((300, 1400, 3), 250, np.uint8), "unusual-shape"),
    ],
)
def test_doubtful_pages_are_flagged(model: Any, pixels: np.ndarray, flag: str) -> None:
    assert flag in model.predict([{"page": encoded(pixels)}])["flags"][0]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("no/such/page.png", "page 0: 'no/such/page.png' is no base64 of an image"),
        ("abcd", "page 0: 'abcd' is too short to be an image in base64, and no file of that name lies in the folder"),
        ("", "page 0: found '', expected the bytes"),
        ("data:image/png;base64,%%%%", "page 0: 'data:image/png;base64,%%%%' is no base64"),
        (base64.b64encode(b"plain text, no picture " * 9).decode(), "page 0: image: not an image"),
        ("\0", "page 0: "),
        ("a" * 5000 + "!", "page 0: 'aaa"),
    ],
)
def test_what_is_no_page_is_refused_with_the_reason(model: Any, page: str, expected: str) -> None:
    assert expected in refused(model, [{"page": page}])


def test_the_row_at_fault_is_named(model: Any, path: str, page: bytes) -> None:
    half = base64.b64encode(page[: len(page) // 2]).decode()
    assert "page 1: image: truncated or damaged" in refused(model, [{"page": path}, {"page": half}])


def test_other_inputs_are_refused(model: Any, path: str) -> None:
    assert "max_new_tokens: found 9999" in refused(model, [{"page": path}], max_new_tokens=9999)
    assert "at most 500 characters" in refused(model, [{"page": path, "question": "why? " * 200}])
    assert "as many questions as pages" in refused(model, {"page": [path, path], "question": ["a"]})
    assert "expected 1 to" in refused(model, [{"page": path}] * 300)
    assert "found nothing of it; expected 'page' or 'record'" in refused(model, [{"pag": path}])
    assert "row 0: found neither" in refused(model, [{"page": None}])
    assert "row 1: found both" in refused(model, [{"page": path}, {"page": path, "record": {}}])
    assert "params.adapter: found 'challenger', expected one of" in refused(
        model, [{"page": path}], adapter="challenger"
    )


def test_a_changed_byte_of_the_adapter_is_not_loaded(params: Params, adapter: Path, tmp_path: Path) -> None:
    import mlflow

    from components.registry.register import save_pyfunc

    save_pyfunc(params, adapter, tmp_path / "model")
    weights = tmp_path / "model/artifacts/adapter" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UserError, match=f"{WEIGHTS}: sha256 is"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))


def test_a_page_may_be_bytes_and_a_record_is_drawn(model: Any, page: bytes, path: str) -> None:
    record = simulate(HOSPITALS["base"], 3, 0)
    sent = {"signal_uv": record.signal_uv.tolist(), "sampling_rate_hz": record.sampling_rate_hz}
    table = model.predict(pd.DataFrame([{"page": page}, {"page": path}, {"record": sent, "question": "Which leads?"}]))
    assert list(table.loc[0, list(SUPERCLASSES)]) == list(table.loc[1, list(SUPERCLASSES)])
    assert table["question"][2] == "Which leads?"
    alone = model.predict([{"record": sent}])
    np.testing.assert_allclose(
        [alone[name][0] for name in SUPERCLASSES], [table[name][2] for name in SUPERCLASSES], atol=1e-4
    )
    assert "record 0: signal_uv: found 1 leads" in refused(model, [{"record": {**sent, "signal_uv": [[1]]}}])


def test_paths_lead_below_the_folder_that_whoever_loads_it_names(served: Path, page: bytes, tmp_path: Path) -> None:
    import mlflow

    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "page.png").write_bytes(page)
    (tmp_path / "secret.png").write_bytes(page)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        model = mlflow.pyfunc.load_model(str(served), model_config={"pages_folder": str(folder)})
    assert len(model.predict([{"page": "page.png"}, {"page": str(folder / "page.png")}])) == 2
    assert "no file of that name lies in the folder of pages" in refused(model, [{"page": "../secret.png"}])
    assert "no file of that name" in refused(model, [{"page": str(tmp_path / "secret.png")}])


def test_where_mlflow_serves_it_no_path_is_followed(model: Any, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(model.predict([{"page": path}])) == 1
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    assert "paths are not followed here" in refused(model, [{"page": path}])
    monkeypatch.undo()
    assert "no file of that name lies in the folder of pages" in refused(model, [{"page": "/etc/passwd"}])


def test_pages_that_are_too_much_together_are_refused(model: Any, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = type(model.unwrap_python_model())._pages.__globals__  # of the module as MLflow loaded it
    monkeypatch.setitem(limits, "MAX_MEGAPIXELS", 1)
    assert len(model.predict([{"page": path}] * 2)) == 2
    assert "page 2: 1 megapixels up to here, expected at most 1 in one" in refused(model, [{"page": path}] * 3)


def test_the_kind_of_a_refused_page_is_told_and_no_word_of_it(model: Any, path: str) -> None:
    reader, told = model.unwrap_python_model(), []
    reader.on_refused = told.append
    try:
        refused(model, [{"page": path}, {"page": base64.b64encode(b"John Smith, born 1950 " * 9).decode()}])
        refused(model, [{"page": path, "question": "why? " * 200}])
        refused(model, [{"page": "../../John Smith.png"}])
    finally:
        reader.on_refused = None
    assert told == ["no image", "path that is not followed"]


def test_an_unsigned_version_is_not_loaded_where_signatures_are_required(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    from components.models.signatures import make_keys, sign_folder

    public, _ = make_keys(tmp_path / "keys" / "signing.key")
    monkeypatch.setenv("ECG_SIGNATURE_REQUIRED", "1")
    monkeypatch.setenv("ECG_TRUSTED_KEYS", str(public))
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserError, match="only signed adapters are allowed"):
        mlflow.pyfunc.load_model(str(served))
    shutil.copytree(served, tmp_path / "signed")
    sign_folder(tmp_path / "signed", tmp_path / "keys" / "signing.key")
    assert mlflow.pyfunc.load_model(str(tmp_path / "signed"))
    (tmp_path / "signed" / "python_env.yaml").write_text("python: 2.7\n")
    with pytest.raises(UserError, match="signature does not hold"):
        mlflow.pyfunc.load_model(str(tmp_path / "signed"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listener(port: int) -> set[int]:
    """Processes that listen on `port`, from /proc."""
    inodes = {
        line.split()[9]
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].rpartition(":")[2], 16) == port
    }
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) in {f"socket:[{inode}]" for inode in inodes}:
                found.add(int(link.parts[2]))
        except OSError:
            continue
    return found


def _post(port: int, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.slow
def test_mlflow_serves_the_champion_by_its_alias(params: Params, served: Path, page: bytes, tmp_path: Path) -> None:
    """`mlflow models serve` in a process of its own, far from the repository: the version stands alone."""
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model("ecg-tiny")
    version = client.create_model_version("ecg-tiny", source=served.as_uri())
    client.set_registered_model_alias("ecg-tiny", "champion", version.version)
    port = _free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/ecg-tiny@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_REGISTRY_URI": uri,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment.pop("PYTHONPATH", None)
    log = tmp_path / "serve.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 240
        while not _listener(port):
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        assert all(os.getsid(process) == server.pid for process in _listener(port)), "another process listens there"
        text = base64.b64encode(page).decode()
        status, reply = _post(port, {"dataframe_records": [{"page": text, "question": "Is this a normal ECG?"}]})
        assert status == 200, reply
        (row,) = reply["predictions"]
        assert row["version"] == "ecg-tiny/1"
        assert all(0 <= row[name] <= 1 for name in SUPERCLASSES)
        assert row["answer"]
        status, reply = _post(port, {"dataframe_records": [{"page": base64.b64encode(b"no picture" * 20).decode()}]})
        assert status == 400
        assert "page 0: image: not an image" in reply["message"]
        for wrong in ({"sheet": text}, {"page": str(REPOSITORY / "docs" / "loop.svg")}, {"page": "/etc/passwd"}):
            status, reply = _post(port, {"dataframe_records": [wrong]})
            assert status == 400, reply
        record = simulate(HOSPITALS["base"], 3, 0)
        sent = {"signal_uv": record.signal_uv.tolist(), "sampling_rate_hz": record.sampling_rate_hz}
        status, reply = _post(port, {"dataframe_records": [{"record": sent, "question": "What is the rhythm?"}]})
        assert status == 200, reply
        assert reply["predictions"][0]["answer"]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)
