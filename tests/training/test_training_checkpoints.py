"""Checkpoints in a folder and in S3: whole or not at all, refused by their hash, the last kept; a place that fails."""

from __future__ import annotations

import errno
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from s3_servers import Front, client, error, front, rclone, use

from components import s3
from components.folders import LocalFolders, S3Folders
from components.params import UserError
from components.training.checkpoints import STATE, TENSORS, Checkpoint, Checkpoints, checkpoints_at

INPUTS = "0123456789abcdef" * 4
BELOW = INPUTS[:16]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rclone") / "bucket"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def between(bucket: Path) -> Iterator[Front]:
    with rclone(bucket.parent) as url, front(url) as found:
        yield found


@pytest.fixture
def in_s3(between: Front, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """An address in S3, and the folder that rclone keeps it in."""
    between.judge = lambda method, path: None
    between.asked.clear()
    use(monkeypatch, between.url)
    monkeypatch.setattr("components.folders.s3_client", client)
    return f"s3://bucket/checkpoints/{tmp_path.name}", bucket / "checkpoints" / tmp_path.name / BELOW


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    if request.param == "s3":
        found: tuple[str, Path] = request.getfixturevalue("in_s3")
        return found
    return str(tmp_path / "checkpoints"), tmp_path / "checkpoints" / BELOW


def at(address: str) -> Checkpoints:
    return checkpoints_at(address, INPUTS, 2)


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"weight": torch.full((3, 2), float(step))}, {"best_step": step})


def saved(address: str, *steps: int) -> Checkpoints:
    found = at(address)
    for step in steps:
        found.save(checkpoint(step))
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def newest(address: str) -> int | None:
    found = at(address).latest()
    if found is None:
        return None
    assert found.state["best_step"] == found.step
    assert torch.equal(found.tensors["weight"], torch.full((3, 2), float(found.step)))
    return found.step


def test_the_newest_is_read_and_the_last_are_kept(place: tuple[str, Path]) -> None:
    address, folder = place
    assert newest(address) is None
    saved(address, 2, 4, 6, 10)
    assert names(folder) == ["step-00000006", "step-00000010"]
    assert newest(address) == 10
    assert checkpoints_at(address, "f" * 64, 2).latest() is None, "other inputs never find them"


def test_a_damaged_one_is_passed_over_and_goes(place: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    address, folder = place
    saved(address, 2, 4)
    tensors = folder / "step-00000004" / TENSORS
    tensors.write_bytes(tensors.read_bytes()[:-3])
    again = at(address)
    found = again.latest()
    assert found is not None
    assert found.step == 2
    assert f"{BELOW}/step-00000004: its hash does not hold; the checkpoint before it is used" in capsys.readouterr().err
    again.save(checkpoint(3))
    assert names(folder) == ["step-00000002", "step-00000003"]


def test_what_comes_one_by_one_is_written_in_files_as_it_comes(
    place: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = place
    monkeypatch.setattr("components.training.checkpoints.FILE_BYTES", 100)
    at(address).save(checkpoint(2))
    alive: list[weakref.ref[torch.Tensor]] = []

    def come() -> Iterator[tuple[str, torch.Tensor]]:
        for number in range(9):
            assert sum(before() is not None for before in alive) <= 3, "more is held than a file takes"
            tensor = torch.full((10,), float(number))
            alive.append(weakref.ref(tensor))
            yield f"more.{number}", tensor
            del tensor

    at(address).save(checkpoint(4), more=come())
    files = sorted(name for name in names(folder / "step-00000004") if name != STATE)
    assert len(files) == 4
    found = at(address).latest()
    assert found is not None
    assert [found.tensors[f"more.{number}"][0].item() for number in range(9)] == list(range(9))
    assert "weight" in found.tensors
    (folder / "step-00000004" / files[1]).write_bytes(b"")
    assert newest(address) == 2


def test_a_changed_state_is_no_checkpoint(place: tuple[str, Path]) -> None:
    address, folder = place
    saved(address, 2, 4)
    state = json.loads((folder / "step-00000004" / STATE).read_text())
    (folder / "step-00000004" / STATE).write_text(json.dumps({**state, "best_step": 99}))
    (folder / "step-00000002" / STATE).write_text("[]")
    assert newest(address) is None


def test_a_half_written_one_is_never_used_and_goes(place: tuple[str, Path]) -> None:
    address, folder = place
    saved(address, 2, 4)
    if address.startswith("s3:"):
        key = f"{address.removeprefix('s3://bucket/')}/{BELOW}/step-00000004/{STATE}"
        client().delete_object(Bucket="bucket", Key=key)
    else:
        (folder / "step-00000004" / STATE).unlink()
    assert names(folder / "step-00000004") == [TENSORS]
    assert newest(address) == 2
    saved(address, 6)
    assert names(folder) == ["step-00000002", "step-00000006"]


def test_what_a_kill_left_of_a_folder_goes(tmp_path: Path) -> None:
    folder = tmp_path / BELOW
    (folder / ".step-00000002-x1y2").mkdir(parents=True)
    saved(str(tmp_path), 4)
    assert names(folder) == ["step-00000004"]


def test_only_the_newest_is_downloaded_and_nothing_stays_here(
    in_s3: tuple[str, Path], between: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "temporary"
    here.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(here))
    saved(in_s3[0], 2, 4)
    between.asked.clear()
    assert newest(in_s3[0]) == 4
    read = {
        path.rsplit("/", 2)[1] for method, path in between.asked if method == "GET" and "step-" in path.split("?")[0]
    }
    assert read == {"step-00000004"}
    assert names(here) == []


def test_large_ones_go_in_parts_and_a_cut_off_upload_is_aborted(
    in_s3: tuple[str, Path], between: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 * 1024**2)
    prefix = in_s3[0].removeprefix("s3://bucket/") + f"/{BELOW}/"
    client().create_multipart_upload(Bucket="bucket", Key=f"{prefix}step-00000001/{TENSORS}")
    large = Checkpoint(2, {"weight": torch.arange(3 * 1024**2, dtype=torch.float32)}, {})
    at(in_s3[0]).save(large)
    assert sum("partNumber" in path for _, path in between.asked) == 3
    assert not client().list_multipart_uploads(Bucket="bucket", Prefix=prefix).get("Uploads")
    found = at(in_s3[0]).latest()
    assert found is not None
    assert torch.equal(found.tensors["weight"], large.tensors["weight"])


def away(method: str, path: str) -> Any:
    return error(503, "SlowDown", "reduce your request rate")


def full(method: str, path: str) -> Any:
    return error(507, "XMinioStorageFull", "no space") if method == "PUT" else None


def denied(method: str, path: str) -> Any:
    return error(403, "AccessDenied", "Access Denied") if method == "PUT" else None


@pytest.mark.parametrize("fault", [away, full])
def test_training_goes_on_while_s3_is_away_or_full(
    fault: Any, in_s3: tuple[str, Path], between: Front, capsys: pytest.CaptureFixture[str]
) -> None:
    address, folder = in_s3
    run = at(address)
    between.judge = fault
    run.save(checkpoint(2))
    said = capsys.readouterr().err
    assert f"train: the checkpoint of step 2 could not be written: ECG_CHECKPOINTS: '{address}/{BELOW}': " in said
    assert "training goes on, and the next checkpoint tries again; until then nothing of the run is kept" in said
    between.judge = lambda method, path: None
    run.save(checkpoint(4))
    between.judge = fault
    run.save(checkpoint(6))
    assert "until then the run up to step 4 is kept" in capsys.readouterr().err
    with pytest.raises(
        UserError, match=r"stopped at step 7, and its checkpoint could not be written: .* step 4 is kept"
    ):
        run.save(checkpoint(7), must=True)
    between.judge = lambda method, path: None
    assert newest(address) == 4
    run.save(checkpoint(8))
    assert names(folder) == ["step-00000004", "step-00000008"]


def test_the_first_refusal_for_good_stops_the_run_and_a_later_one_does_not(
    in_s3: tuple[str, Path], between: Front, capsys: pytest.CaptureFixture[str]
) -> None:
    run = at(in_s3[0])
    between.judge = denied
    with pytest.raises(UserError, match=r"checkpoint of step 2 is refused: .* may not s3:PutObject on arn:aws:s3:::"):
        run.save(checkpoint(2))
    between.judge = lambda method, path: None
    run.save(checkpoint(4))
    between.judge = denied
    run.save(checkpoint(6))
    assert "until then the run up to step 4 is kept" in capsys.readouterr().err


def test_old_ones_that_may_not_be_deleted_are_a_warning(
    in_s3: tuple[str, Path], between: Front, capsys: pytest.CaptureFixture[str]
) -> None:
    between.judge = lambda method, path: error(403, "AccessDenied") if path.endswith("?delete") else None
    saved(in_s3[0], 2, 4, 6)
    assert "old checkpoints could not be removed: ECG_CHECKPOINTS: " in capsys.readouterr().err
    assert len(names(in_s3[1])) == 3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda front, patch: setattr(front, "judge", away), r"answers 503 SlowDown"),
        (lambda front, patch: patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9"), r"cannot be reached"),
        (lambda front, patch: patch.setenv("AWS_SECRET_ACCESS_KEY", "another"), r"the secret does not belong to"),
        (lambda front, patch: setattr(front, "judge", lambda m, p: error(403, "AccessDenied")), "s3:ListBucket on"),
    ],
)
def test_a_run_never_starts_anew_because_its_place_cannot_be_read(
    spoil: Callable[[Front, pytest.MonkeyPatch], None],
    message: str,
    in_s3: tuple[str, Path],
    between: Front,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved(in_s3[0], 2)
    spoil(between, monkeypatch)
    with pytest.raises(UserError, match=rf"ECG_CHECKPOINTS: 's3://bucket/.*{message}.*the run does not start anew"):
        at(in_s3[0]).latest()


def test_a_bucket_that_is_not_there(in_s3: tuple[str, Path]) -> None:
    with pytest.raises(
        UserError, match=r"ECG_CHECKPOINTS: 's3://nobody/x/0123456789abcdef': there is no bucket 'nobod"
    ):
        at("s3://nobody/x").latest()


@pytest.mark.parametrize("address", ["s3://bucket", "gs://bucket/x", " "])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UserError, match=f"ECG_CHECKPOINTS: found '{address}', expected"):
        at(address)


def test_a_full_disk_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = saved(str(tmp_path), 2)

    def no_room(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", no_room)
        run.save(checkpoint(4))
    said = capsys.readouterr().err
    assert f"step 4 could not be written: {tmp_path / BELOW}: No space left on device; training goes on" in said
    run.save(checkpoint(6))
    assert newest(str(tmp_path)) == 6


def test_both_places_are_one_interface(in_s3: tuple[str, Path], tmp_path: Path) -> None:
    for place in (LocalFolders(tmp_path, "seal"), S3Folders("bucket", f"folders/{tmp_path.name}", "seal", "KEY")):
        for name in ("b", "a"):
            with place.writing(name) as folder:
                (folder / "seal").write_text(name)
                (folder / "more").write_text("1")
        with pytest.raises(ZeroDivisionError), place.writing("c") as folder:
            _ = (folder / "seal").write_text("half") / 0
        assert place.names() == ["a", "b"]
        with place.reading("a") as folder:
            assert ((folder / "seal").read_text(), names(folder)) == ("a", ["more", "seal"])
        place.remove(["a"])
        assert place.names() == ["b"]
        with place.writing("b") as folder:
            (folder / "seal").write_text("anew")
        with place.reading("b") as folder:
            assert (folder / "seal").read_text() == "anew"
