"""OpenSSF model signatures with keys of one's own: who vouches for every byte of a folder.

A folder is signed as a whole (https://github.com/sigstore/model-transparency): `model.sig` in it is a Sigstore bundle
with the SHA-256 of each file, signed by an elliptic-curve key. `model_signing verify key` of that project checks it
without this one. No certificate, no transparency log, no network.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.params import UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

SIGNATURE = "model.sig"
# Written by MLflow and Python into a folder that is loaded in place.
WRITTEN_ON_USE = ("registered_model_meta", "__pycache__")
KEY_VARIABLE, PASSWORD_VARIABLE = "ECG_SIGNING_KEY", "ECG_SIGNING_PASSWORD"
TRUSTED_VARIABLE, REQUIRED_VARIABLE = "ECG_TRUSTED_KEYS", "ECG_SIGNATURE_REQUIRED"
CURVES = ("secp256r1", "secp384r1", "secp521r1")  # that OpenSSF signatures allow
_TRUE, _FALSE = ("1", "true", "yes"), ("", "0", "false", "no")


@dataclass(frozen=True, slots=True)
class SignaturePolicy:
    """Which signatures hold. With no trusted key nothing can be checked, so nothing signed is refused."""

    trusted: tuple[Path, ...]  # public keys, PEM
    required: bool  # what is not signed by one of them is refused


def policy_of_environment() -> SignaturePolicy:
    """The policy of a process without params.yaml: $ECG_TRUSTED_KEYS (paths, parted as in PATH) and
    $ECG_SIGNATURE_REQUIRED (1 or 0).

    Raises:
        UserError: the second is neither.
    """
    text = os.environ.get(REQUIRED_VARIABLE, "").strip().lower()
    if text not in (*_TRUE, *_FALSE):
        raise UserError(f"${REQUIRED_VARIABLE}: found '{text}', expected 1 or 0")
    return SignaturePolicy(trusted_in_environment() or (), text in _TRUE)


def trusted_in_environment() -> tuple[Path, ...] | None:
    """The keys of $ECG_TRUSTED_KEYS; None where it is not set."""
    text = os.environ.get(TRUSTED_VARIABLE)
    return None if text is None else tuple(Path(part) for part in text.split(os.pathsep) if part)


def make_keys(private: Path) -> tuple[Path, str]:
    """Write a new private key (P-256, PEM, mode 0600) and, beside it, its public key `NAME.pub`.

    Returns:
        The public key's file and its fingerprint.

    Raises:
        UserError: one of the files exists (a key is never overwritten), it would lie in a git checkout, or the folder
            cannot be written.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = private.expanduser().absolute()
    public = private.with_name(f"{private.name}.pub")
    for folder in (private.resolve(), *private.resolve().parents):
        if (folder / ".git").exists():
            raise UserError(
                f"{private}: lies in the git checkout {folder}, from where it may be pushed; expected a place outside, "
                "as ~/.config/ecg-adapters/signing.key"
            )
    for path in (private, public):
        if path.exists():
            raise UserError(f"{path}: exists, and a key is never overwritten; choose another name")
    key = ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Created with its mode: never readable by others, not even for a moment.
        with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secret)
        public.write_bytes(_pem(key.public_key()))
    except OSError as error:
        raise UserError(f"{private}: cannot be written ({error.strerror}); choose another place") from error
    return public, fingerprint(public)


def fingerprint(public: Path) -> str:
    """SHA-256 of a public key, hex, as signatures name it.

    Raises:
        UserError: no such file, or no elliptic-curve public key of P-256, P-384 or P-521 in it.
    """
    return _fingerprint(_public_key(public))


def sign_folder(folder: Path, key: Path) -> str:
    """Sign every file below `folder` and write `model.sig` there; returns the key's fingerprint.

    Raises:
        UserError: the key is missing, is no private key, others may read it, its password ($ECG_SIGNING_PASSWORD) is
            wrong, or the folder holds a link.
    """
    import model_signing

    password = os.environ.get(PASSWORD_VARIABLE)
    try:
        mode = stat.S_IMODE(key.stat().st_mode)
    except OSError as error:
        raise UserError(f"{key}: the signing key cannot be read ({error.strerror}); make one: ecg keys") from error
    if mode & 0o077:
        raise UserError(f"{key}: mode {mode:04o} lets others read the signing key, expected 0600: chmod 600 {key}")
    signer: Any = model_signing.signing.Config()  # type: ignore[no-untyped-call]
    signer.set_hashing_config(_hashing(folder))
    try:
        # The library hands the password on as it is, to a function that takes bytes.
        signer.use_elliptic_key_signer(private_key=key, password=password.encode() if password else None)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{key}: is no private key that can be used ({error}); expected an elliptic-curve key in PEM, and "
            f"${PASSWORD_VARIABLE} if it has a password"
        ) from error
    target = folder / SIGNATURE
    try:
        signer.sign(folder, target)
    except ValueError as error:
        raise UserError(f"{folder}: cannot be signed: {error}") from error
    return str(_signers_name(target))


def check_folder(folder: Path, policy: SignaturePolicy) -> str | None:
    """Check `model.sig` of `folder` and every file against it.

    Returns:
        The fingerprint of the trusted key that signed; None where there is nothing that could be checked (no
        signature, or no trusted key) and the policy does not ask for it.

    Raises:
        UserError: not signed and the policy requires it; signed by a key that is not trusted; the signature does not
            hold; a file was changed, added or removed after signing; a trusted key cannot be read.
    """
    path = folder / SIGNATURE
    if policy.required and not policy.trusted:
        raise UserError(
            f"signing.trusted: found none, but a signature is required; name the public keys there or in "
            f"${TRUSTED_VARIABLE}"
        )
    known = {fingerprint(key): key for key in policy.trusted}
    if not path.is_file():
        if policy.required:
            raise UserError(f"{path}: is missing, and only signed adapters are allowed; sign it: ecg sign VERSION")
        return None
    if not known:
        return None
    name = _signers_name(path)
    if name not in known:
        raise UserError(
            f"{path}: signed by the key {name or 'of no name'}, expected one of signing.trusted: {', '.join(known)}; "
            "trust its public key, or have it signed by one of these"
        )
    _verify(folder, known[name])
    return name


def _verify(folder: Path, public: Path) -> None:
    import model_signing

    verifier: Any = model_signing.verifying.Config()  # type: ignore[no-untyped-call]
    verifier.set_hashing_config(_hashing(folder))
    try:
        verifier.use_elliptic_key_verifier(public_key=public).verify(folder, folder / SIGNATURE)
    except Exception as error:  # the file is anybody's: whatever it makes the library raise, it is refused
        reason = str(error) or "it does not belong to this key and these files"
        raise UserError(
            f"{folder / SIGNATURE}: the signature does not hold ({reason}); restore the files as they were signed"
        ) from error


def _hashing(folder: Path) -> Any:
    """How both sides hash: every file with SHA-256, git's own files too, no links."""
    import model_signing

    skipped = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.name in WRITTEN_ON_USE]
    config: Any = model_signing.hashing.Config()  # type: ignore[no-untyped-call]
    config.use_file_serialization(hashing_algorithm="sha256")
    return config.set_ignored_paths(paths=[Path(SIGNATURE), *skipped], ignore_git_paths=False)


def _signers_name(path: Path) -> str | None:
    """The fingerprint that a signature claims; what it is worth, `_verify` finds out."""
    import json

    try:
        return str(json.loads(path.read_text())["verificationMaterial"]["publicKey"]["hint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _public_key(path: Path) -> EllipticCurvePublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: the public key cannot be read ({error.strerror}); see signing.trusted") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path}: is no public key in PEM; expected the .pub that `ecg keys` wrote") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise UserError(f"{path}: found a key of another kind, expected an elliptic curve of P-256, P-384 or P-521")
    return key


def _pem(key: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _fingerprint(key: EllipticCurvePublicKey) -> str:
    import hashlib

    return hashlib.sha256(_pem(key)).hexdigest()
