"""Sign a version that is registered already: it was made before there was a key, or the key was replaced."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from components.models.signatures import KEY_VARIABLE, SIGNATURE, WRITTEN_ON_USE, check_folder, sign_folder
from components.params import Params, UserError
from components.registry.files import verified
from components.registry.ledger import SIGNED, open_ledger
from components.registry.register import SERVED
from components.registry.signing import SIGNED_BY, signature_policy, signing_key
from components.registry.store import opened
from components.registry.versions import read_version
from components.storage import sha256


def sign(params: Params, number: int, by: str) -> str:
    """Sign the files of version `number` with the configured key, if they are still those that were registered.

    Returns:
        The fingerprint of the key, which stands in the version's tag `signed_by` from now on.

    Raises:
        UserError: no key, a key that cannot be used or is not trusted, no such version, or its files were changed.
    """
    key = signing_key(params)
    if key is None:
        raise UserError(
            f"signing.key: found null, expected a private key there or in ${KEY_VARIABLE}; make one: ecg keys"
        )
    with opened(params.registry) as client:
        version = read_version(client, params.registry.model, number)
        with verified(version, policy=None) as folder, tempfile.TemporaryDirectory(prefix="ecg-sign-") as temporary:
            copy = Path(temporary) / SERVED
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*WRITTEN_ON_USE))
            name = sign_folder(copy, key)
            check_folder(copy, signature_policy(params))
            open_ledger(client, params.registry).record(
                SIGNED,
                number,
                who=by,
                why=f"signed with the key {name[:16]}",
                key=f"signed:{number}:{sha256(copy / SIGNATURE)}",
                details={SIGNED_BY: name},
            )
            client.log_artifact(version.run_id, str(copy / SIGNATURE), SERVED)
        client.set_model_version_tag(version.model, str(number), SIGNED_BY, name)
    return name
