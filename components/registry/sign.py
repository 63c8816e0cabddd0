"""Sign a version that is registered already: it was made before there was a key, or the key was replaced."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from components.models.signatures import KEY_VARIABLE, SIGNATURE, WRITTEN_ON_USE, check_folder, sign_folder
from components.params import Params, UserError
from components.registry.champion import Desk, at_desk, own, registered_as, settle
from components.registry.files import verified
from components.registry.ledger import SIGNED
from components.registry.policy import person
from components.registry.register import SERVED
from components.registry.signing import SIGNED_BY, signature_policy, signing_key
from components.registry.versions import read_version
from components.storage import sha256


def sign(params: Params, number: int, by: str) -> str:
    """Sign the files of version `number` with the configured key, if they are still those that were registered.

    What was registered is what the ledger says: tags can be made to agree with changed files.

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
    who = person(by, "--by")

    def work(desk: Desk) -> str:
        settle(desk)
        version = read_version(desk.client, desk.model, number)
        standing = own(desk.state(), version)
        if standing is None:
            raise UserError(f"{version}: is not in the ledger as MLflow shows it; only what was registered is signed")
        believed = registered_as(version, standing)
        with verified(believed, policy=None) as folder, tempfile.TemporaryDirectory(prefix="ecg-sign-") as temporary:
            copy = Path(temporary) / SERVED
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*WRITTEN_ON_USE))
            name = sign_folder(copy, key)
            check_folder(copy, signature_policy(params))
            digest = sha256(copy / SIGNATURE)
            # The files first: what the ledger says of them is true then, wherever this is interrupted.
            desk.client.log_artifact(version.run_id, str(copy / SIGNATURE), SERVED)
        why = f"signed with the key {name[:16]}"
        desk.book.record(SIGNED, number, who=who, why=why, key=f"signed:{number}:{digest}", details={SIGNED_BY: name})
        settle(desk)
        return name

    return at_desk(params, work)
