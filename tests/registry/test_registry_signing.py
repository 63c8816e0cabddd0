"""Versions are signed when registered; unsigned or spoilt ones are refused where the policy says so."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from registry_project import (
    GOOD,
    Register,
    aliases_of,
    register_project,
    served_folder,
    tag,
    version_of,
    write_project,
)

from components.models.signatures import SIGNATURE, fingerprint, make_keys
from components.params import Params, UserError
from components.registry.approve import approve
from components.registry.files import folder_sha256, verify_version
from components.registry.gate import gate_version
from components.registry.ledger import open_ledger
from components.registry.promote import decide
from components.registry.sign import sign
from components.registry.signing import signature_policy
from components.registry.store import connect


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two key pairs, `ours` and `theirs`."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        make_keys(folder / name)
    return folder


@pytest.fixture
def strict(params: Params, keys: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A recipe that signs with our key and takes nothing that is not signed with it."""
    for name in ("ECG_SIGNING_KEY", "ECG_TRUSTED_KEYS"):
        monkeypatch.delenv(name, raising=False)
    return with_keys(params, str(keys / "ours"), str(keys / "ours.pub"))


def with_keys(params: Params, key: str | None, *trusted: str, required: bool = True) -> Params:
    return dataclasses.replace(
        params,
        signing=dataclasses.replace(params.signing, key=key, trusted=trusted),
        approval=dataclasses.replace(params.approval, signature_required=required),
    )


def registered_in(params: Params, tmp_path: Path, seed: int = 0) -> int:
    root = write_project(tmp_path / f"project-{seed}", params, GOOD, seed=seed)
    return register_project(params, root).version


def test_a_signed_version_is_promoted_and_a_changed_one_is_not(strict: Params, keys: Path, tmp_path: Path) -> None:
    number = registered_in(strict, tmp_path)
    ours = fingerprint(keys / "ours.pub")
    assert version_of(strict, number).tags["signed_by"] == ours
    assert gate_version(strict, number).passed
    approve(strict, number, by="Ada")

    # Someone with write access to artifacts and tags makes everything agree but the signature.
    folder = served_folder(strict, number)
    code = folder / "code/components/__init__.py"
    whole = code.read_bytes()
    code.write_text("import os\n")
    before = version_of(strict, number).files_sha256
    tag(strict, number, files_sha256=folder_sha256(folder))
    (refused,) = decide(strict)
    assert refused.action == "refused"
    assert "code/components/__init__.py" in refused.reason or "files_sha256" in refused.reason
    assert "champion" not in aliases_of(strict)

    code.write_bytes(whole)
    tag(strict, number, files_sha256=str(before))
    assert [one.action for one in decide(strict)] == ["promoted"]
    assert aliases_of(strict)["champion"] == number


def test_an_unsigned_version_is_refused_until_it_is_signed(strict: Params, keys: Path, registered: Register) -> None:
    """Made before there was a key: the gate refuses it, `ecg sign` mends that."""
    number = registered(GOOD).version
    assert "signed_by" not in version_of(strict, number).tags
    with pytest.raises(UserError, match="only signed adapters are allowed; sign it: ecg sign"):
        gate_version(strict, number)
    assert sign(strict, number, by="Ada") == fingerprint(keys / "ours.pub")
    assert version_of(strict, number).tags["signed_by"] == fingerprint(keys / "ours.pub")
    assert gate_version(strict, number).passed
    approve(strict, number, by="Ada")
    assert [one.action for one in decide(strict)] == ["promoted"]
    client = connect(strict.registry)
    signed = [entry for entry in open_ledger(client, strict.registry).entries() if entry.event == "signed"]
    assert [(entry.version, entry.who) for entry in signed] == [(number, "Ada")]
    # The tag and the signature gone together, and none required: the ledger knows that there was one.
    (served_folder(strict, number) / SIGNATURE).unlink()
    client.delete_model_version_tag(strict.registry.model, str(number), "signed_by")
    lax = with_keys(strict, None, str(keys / "ours.pub"), required=False)
    later = registered(GOOD, seed=1).version
    sign(strict, later, by="Ada")
    assert "signed_by" in version_of(strict, number).tags
    with pytest.raises(UserError, match="the signature was removed after registration"):
        verify_version(version_of(strict, number), signature_policy(lax))


def test_a_strangers_signature_and_a_removed_one_are_refused(strict: Params, keys: Path, tmp_path: Path) -> None:
    number = registered_in(strict, tmp_path)
    version = version_of(strict, number)
    theirs = with_keys(strict, str(keys / "theirs"), str(keys / "theirs.pub"))
    with pytest.raises(UserError, match="signed by the key"):
        verify_version(version, signature_policy(theirs))
    signature = served_folder(strict, number) / SIGNATURE
    kept = shutil.copy(signature, tmp_path / "kept")
    signature.unlink()
    lax = with_keys(strict, None, str(keys / "ours.pub"), required=False)
    with pytest.raises(UserError, match="its tag signed_by names the key"):
        verify_version(version, signature_policy(lax))
    shutil.copy(kept, signature)
    verify_version(version, signature_policy(lax))


def test_files_that_changed_are_not_signed(strict: Params, registered: Register) -> None:
    number = registered(GOOD).version
    folder = served_folder(strict, number)
    (folder / "code/components/__init__.py").write_text("import os\n")
    tag(strict, number, files_sha256=folder_sha256(folder))  # tags can be made to agree; the ledger cannot
    with pytest.raises(UserError, match="files_sha256"):
        sign(strict, number, by="Ada")
    assert "signed_by" not in version_of(strict, number).tags


def test_a_key_that_the_policy_does_not_trust_registers_nothing(strict: Params, keys: Path, tmp_path: Path) -> None:
    mixed = with_keys(strict, str(keys / "theirs"), str(keys / "ours.pub"))
    with pytest.raises(UserError, match=r"expected one of signing\.trusted"):
        registered_in(mixed, tmp_path)
    with pytest.raises(UserError, match="found null, expected a private key"):
        sign(with_keys(strict, None, str(keys / "ours.pub")), 1, by="Ada")


def test_the_environment_goes_before_the_recipe(
    strict: Params, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECG_SIGNING_KEY", str(keys / "theirs"))
    monkeypatch.setenv("ECG_TRUSTED_KEYS", str(keys / "theirs.pub"))
    number = registered_in(strict, tmp_path)
    version = version_of(strict, number)
    assert version.tags["signed_by"] == fingerprint(keys / "theirs.pub")
    verify_version(version, signature_policy(strict))
    requirements = (served_folder(strict, number) / "requirements.txt").read_text()
    assert "model-signing==" in requirements
