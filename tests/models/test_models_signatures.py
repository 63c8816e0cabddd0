"""OpenSSF signatures of folders: what is signed holds, and whatever is done to it afterwards does not."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from components.models.signatures import (
    SIGNATURE,
    SignaturePolicy,
    check_folder,
    fingerprint,
    make_keys,
    policy_of_environment,
    sign_folder,
)
from components.params import UserError


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two key pairs, `ours` and `theirs`."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        make_keys(folder / name)
    return folder


@pytest.fixture(scope="module")
def signed_once(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signed") / "model"
    (folder / "code").mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(bytes(range(256)) * 20)
    (folder / "manifest.json").write_text('{"base": "ecg-tiny"}')
    (folder / "code" / "reader.py").write_text("READ = True\n")
    (folder / ".gitignore").write_text("nothing\n")
    sign_folder(folder, keys / "ours")
    return folder


@pytest.fixture
def folder(signed_once: Path, tmp_path: Path) -> Path:
    """A copy of a signed folder, to be spoilt."""
    return Path(shutil.copytree(signed_once, tmp_path / "model"))


def trusting(keys: Path, *names: str, required: bool = True) -> SignaturePolicy:
    return SignaturePolicy(tuple(keys / f"{name}.pub" for name in names), required)


def test_a_private_key_is_for_its_owner_alone(keys: Path) -> None:
    assert stat.S_IMODE((keys / "ours").stat().st_mode) == 0o600
    assert "PRIVATE" not in (keys / "ours.pub").read_text()


def test_a_key_is_never_overwritten_and_never_in_a_checkout(keys: Path, tmp_path: Path) -> None:
    before = (keys / "ours").read_bytes()
    with pytest.raises(UserError, match="never overwritten"):
        make_keys(keys / "ours")
    assert (keys / "ours").read_bytes() == before
    (tmp_path / ".git").mkdir()
    with pytest.raises(UserError, match="lies in the git checkout"):
        make_keys(tmp_path / "deep" / "down" / "key")
    assert not (tmp_path / "deep").exists()
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="lies in the git checkout"):
        make_keys(tmp_path.parent / f"{tmp_path.name}-link" / "key")


def test_a_signature_names_its_key_and_holds(folder: Path, keys: Path) -> None:
    assert check_folder(folder, trusting(keys, "theirs", "ours")) == fingerprint(keys / "ours.pub")


def test_the_librarys_own_command_line_agrees(folder: Path, keys: Path) -> None:
    """Whoever has no part of this project can check it too."""
    command = [sys.executable, "-m", "model_signing", "verify", "key", "--no-ignore-git-paths", str(folder)]
    command += ["--signature", str(folder / SIGNATURE), "--public_key"]
    told = {
        name: subprocess.run([*command, str(keys / f"{name}.pub")], capture_output=True, text=True)
        for name in ("ours", "theirs")
    }
    assert told["ours"].returncode == 0, told["ours"].stderr
    assert told["theirs"].returncode != 0


def change_a_byte(folder: Path) -> None:
    data = (folder / "adapter.safetensors").read_bytes()
    (folder / "adapter.safetensors").write_bytes(data[:99] + bytes([data[99] ^ 1]) + data[100:])


def sign_in_the_name_of_ours(folder: Path) -> None:
    """A signature of another key that says it were ours."""
    bundle = json.loads((folder / SIGNATURE).read_text())
    theirs = json.loads((folder.parent / "theirs.sig").read_text())
    theirs["verificationMaterial"]["publicKey"]["hint"] = bundle["verificationMaterial"]["publicKey"]["hint"]
    (folder / SIGNATURE).write_text(json.dumps(theirs))


def sign_nothing(folder: Path) -> None:
    bundle = json.loads((folder / SIGNATURE).read_text())
    bundle["dsseEnvelope"]["signatures"] = []
    (folder / SIGNATURE).write_text(json.dumps(bundle))


def change_the_statement(folder: Path) -> None:
    """The list of hashes says what the files are now; the signature is of the list before."""
    import base64

    bundle = json.loads((folder / SIGNATURE).read_text())
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    payload["predicate"]["resources"] = [r for r in payload["predicate"]["resources"] if r["name"] != "manifest.json"]
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    (folder / SIGNATURE).write_text(json.dumps(bundle))
    (folder / "manifest.json").unlink()


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed byte of the weights": (change_a_byte, "adapter.safetensors"),
    "a changed manifest": (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json"),
    "changed code": (lambda folder: (folder / "code" / "reader.py").write_text("READ = False\n"), "reader.py"),
    "a file more": (lambda folder: (folder / "code" / "more.py").write_text(""), "more.py"),
    "a file of git's more": (lambda folder: (folder / ".gitattributes").write_text(""), ".gitattributes"),
    "a file less": (lambda folder: (folder / "code" / "reader.py").unlink(), "reader.py"),
    "a link": (lambda folder: (folder / "link").symlink_to("manifest.json"), "link"),
    "no signature": (lambda folder: (folder / SIGNATURE).unlink(), "only signed adapters are allowed"),
    "no JSON": (lambda folder: (folder / SIGNATURE).write_text("signed!"), "the key of no name"),
    "not a bundle": (lambda folder: (folder / SIGNATURE).write_text("[]"), "the key of no name"),
    "no signature in the bundle": (sign_nothing, "does not hold"),
    "another key's in our name": (sign_in_the_name_of_ours, "does not hold"),
    "a changed statement": (change_the_statement, "does not hold"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_whatever_changed_is_refused(attack: str, folder: Path, keys: Path) -> None:
    if attack == "another key's in our name":
        other = shutil.copytree(folder, folder.parent / "other", ignore=shutil.ignore_patterns(SIGNATURE))
        sign_folder(Path(other), keys / "theirs")
        shutil.copy(Path(other) / SIGNATURE, folder.parent / "theirs.sig")
    spoil, expected = ATTACKS[attack]
    spoil(folder)
    with pytest.raises(UserError, match=expected):
        check_folder(folder, trusting(keys, "ours"))
    if attack != "no signature":  # a signature that does not hold is refused also where none is required
        with pytest.raises(UserError, match=expected):
            check_folder(folder, trusting(keys, "ours", required=False))


def test_a_key_that_is_not_trusted_is_refused(folder: Path, keys: Path) -> None:
    with pytest.raises(UserError, match=rf"signed by the key {fingerprint(keys / 'ours.pub')}, expected one of"):
        check_folder(folder, trusting(keys, "theirs"))


def test_without_a_policy_nothing_is_asked(folder: Path, keys: Path) -> None:
    assert check_folder(folder, SignaturePolicy((), required=False)) is None
    (folder / SIGNATURE).unlink()
    assert check_folder(folder, trusting(keys, "ours", required=False)) is None
    with pytest.raises(UserError, match=r"signing\.trusted: found none, but a signature is required"):
        check_folder(folder, SignaturePolicy((), required=True))


def test_what_is_written_on_use_changes_nothing(folder: Path, keys: Path) -> None:
    (folder / "registered_model_meta").write_text("model_name: x\n")
    (folder / "code" / "__pycache__").mkdir()
    (folder / "code" / "__pycache__" / "reader.cpython-311.pyc").write_bytes(b"x")
    assert check_folder(folder, trusting(keys, "ours"))


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot be read"), ("not a key", "is no private key"), ("public", "is no private key")],
)
def test_a_bad_signing_key_is_named(text: str | None, message: str, folder: Path, keys: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    if text is not None:
        key.write_text((keys / "ours.pub").read_text() if text == "public" else text)
        key.chmod(0o600)
    with pytest.raises(UserError, match=message):
        sign_folder(folder, key)


def test_a_key_that_others_can_read_signs_nothing(folder: Path, keys: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    shutil.copy(keys / "ours", key)
    key.chmod(0o640)
    with pytest.raises(UserError, match=r"mode 0640 lets others read the signing key.*chmod 600"):
        sign_folder(folder, key)


def test_a_key_with_a_password(folder: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography.hazmat.primitives import serialization

    plain = serialization.load_pem_private_key((keys / "ours").read_bytes(), None)
    locked = tmp_path / "locked"
    locked.write_bytes(
        plain.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open"),
        )
    )
    locked.chmod(0o600)
    for password in (None, "shut"):
        if password:
            monkeypatch.setenv("ECG_SIGNING_PASSWORD", password)
        with pytest.raises(UserError, match=r"\$ECG_SIGNING_PASSWORD if it has a password"):
            sign_folder(folder, locked)
    monkeypatch.setenv("ECG_SIGNING_PASSWORD", "open")
    assert sign_folder(folder, locked) == fingerprint(keys / "ours.pub")
    assert check_folder(folder, trusting(keys, "ours"))


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), (b"ssh-ed25519 AAAA", "is no public key in PEM")]
)
def test_a_bad_trusted_key_refuses_everything(
    content: bytes | None, message: str, folder: Path, keys: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.pub"
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(UserError, match=message):
        check_folder(folder, SignaturePolicy((keys / "ours.pub", bad), required=False))


def test_a_key_of_another_kind_is_named(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256K1())):
        path = tmp_path / "other.pub"
        path.write_bytes(
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        with pytest.raises(UserError, match="found a key of another kind"):
            fingerprint(path)


def test_the_environments_policy(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ECG_TRUSTED_KEYS", "ECG_SIGNATURE_REQUIRED"):
        monkeypatch.delenv(name, raising=False)
    assert policy_of_environment() == SignaturePolicy((), required=False)
    monkeypatch.setenv("ECG_TRUSTED_KEYS", f"{keys / 'ours.pub'}:{keys / 'theirs.pub'}")
    monkeypatch.setenv("ECG_SIGNATURE_REQUIRED", "1")
    assert policy_of_environment() == trusting(keys, "ours", "theirs")
    monkeypatch.setenv("ECG_SIGNATURE_REQUIRED", "maybe")
    with pytest.raises(UserError, match="found 'maybe', expected 1 or 0"):
        policy_of_environment()
