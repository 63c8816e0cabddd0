"""Who vouches for a version's files: signed when it is registered, checked before it is gated, promoted or read."""

from __future__ import annotations

import os
from pathlib import Path

from components.models.signatures import (
    KEY_VARIABLE,
    SIGNATURE,
    SignaturePolicy,
    check_folder,
    sign_folder,
    trusted_in_environment,
)
from components.params import Params, UserError
from components.registry.versions import Version

SIGNED_BY = "signed_by"  # tag: fingerprint of the key that signed


def signature_policy(params: Params) -> SignaturePolicy:
    """The recipe's policy: `signing.trusted`, or $ECG_TRUSTED_KEYS, and `approval.signature_required`."""
    trusted = trusted_in_environment()
    if trusted is None:
        trusted = tuple(Path(key).expanduser() for key in params.signing.trusted)
    return SignaturePolicy(trusted, params.approval.signature_required)


def signing_key(params: Params) -> Path | None:
    """The private key of `signing.key`, or of $ECG_SIGNING_KEY; None where neither names one."""
    key = os.environ.get(KEY_VARIABLE) or params.signing.key
    return Path(key).expanduser() if key else None


def sign_served(params: Params, folder: Path) -> str | None:
    """Sign the folder that a version will serve; returns the key's fingerprint, None where no key is configured.

    Raises:
        UserError: the key cannot be used, or the policy would refuse what it signs.
    """
    key = signing_key(params)
    if key is None:
        return None
    name = sign_folder(folder, key)
    check_folder(folder, signature_policy(params))
    return name


def check_signature(version: Version, folder: Path, policy: SignaturePolicy) -> str | None:
    """Check the signature of the files of `version` in `folder`; returns the fingerprint of the key that signed.

    Raises:
        UserError: as `check_folder`, or the version was signed and its signature is gone.
    """
    signed_by = version.tags.get(SIGNED_BY)
    if signed_by is not None and not (folder / SIGNATURE).is_file():
        raise UserError(
            f"{folder / SIGNATURE}: is missing, but its tag signed_by names the key {signed_by}; the signature "
            "was removed after registration: restore it, or sign it again: ecg sign"
        )
    return check_folder(folder, policy)
