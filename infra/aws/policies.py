"""Who may do what in the buckets, as IAM policy documents: least privilege, one document a role.

The same documents stand in the stack and come out of `python -m infra.aws policy ROLE` for another S3. Approvals are
made in MLflow, under its own roles (components/registry/team.py); here is only what bytes a key may touch. MLflow's
server reads and writes artifacts for everybody, so most people need no key to a bucket at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.params import UserError

DVC, MLFLOW, CHECKPOINTS, SOURCE, BASES = "dvc", "mlflow", "checkpoints", "source", "bases"
ENTRIES = "entries"  # in the ledger's bucket: registry.ledger is s3://LEDGER/entries

Statement = dict[str, Any]
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """The two buckets, and the key that encrypts them where there is one, by their ARNs."""

    data: str
    ledger: str
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Role:
    """What a role may do, by prefixes of the data bucket; `ledger` is '', 'read' or 'append'."""

    about: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    deletes: tuple[str, ...] = ()
    ledger: str = ""


ROLES: Mapping[str, Role] = {
    "reader": Role("looks at runs and reports past MLflow's server", reads=(MLFLOW,)),
    "approver": Role("decides in MLflow, and may check the ledger it is recorded in", ledger="read"),
    "trainer": Role(
        "pulls, trains, pushes and registers by hand",
        reads=(SOURCE, BASES, DVC, CHECKPOINTS, MLFLOW), writes=(DVC, CHECKPOINTS), deletes=(CHECKPOINTS,),
        ledger="append",
    ),
    "promoter": Role(
        "the pipeline: runs the flows, and `decide`",
        reads=(SOURCE, BASES, DVC, CHECKPOINTS, MLFLOW), writes=(DVC, CHECKPOINTS), deletes=(CHECKPOINTS,),
        ledger="append",
    ),
    "gpu-worker": Role(
        "one stage on a GPU: its inputs, its outputs, its checkpoints",
        reads=(BASES, DVC, CHECKPOINTS), writes=(DVC, CHECKPOINTS), deletes=(CHECKPOINTS,),
    ),
    "receiver": Role("records in the ledger which deliveries it refused", ledger="append"),
    "mlflow-server": Role("keeps artifacts for all who log in", reads=(MLFLOW,), writes=(MLFLOW,)),
    "supplier": Role("brings new records, and cannot read what is there", writes=(SOURCE,)),
    "cleaner": Role(
        "removes what no kept version needs; old versions of objects go by the bucket's own rule",
        reads=(DVC, CHECKPOINTS, MLFLOW), deletes=(DVC, CHECKPOINTS, MLFLOW),
        ledger="append",  # a removal is an entry first
    ),
}  # fmt: skip


def document(role: str, place: Place) -> Document:
    """The policy of `role` on the buckets of `place`.

    Raises:
        UserError: there is no such role.
    """
    if role not in ROLES:
        raise UserError(f"role: found '{role}', expected one of {', '.join(ROLES)}")
    what = ROLES[role]
    statements = [*_data(what, place.data), *_ledger(what.ledger, place.ledger), *_key(what, place.key)]
    return {"Version": "2012-10-17", "Statement": statements}


def _data(role: Role, bucket: str) -> list[Statement]:
    made = []
    if role.reads:
        # A name tells something too: each role lists its own prefixes only.
        prefixes = [pattern for prefix in role.reads for pattern in (f"{prefix}/*", prefix)]
        made.append(allow("ListData", ["s3:ListBucket"], [bucket], {"StringLike": {"s3:prefix": prefixes}}))
        made.append(allow("ReadData", ["s3:GetObject", "s3:GetObjectVersion"], _below(bucket, role.reads)))
    if role.writes:
        uploads = ["s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
        made.append(allow("WriteData", uploads, _below(bucket, role.writes)))
    if role.deletes:
        # Not s3:DeleteObjectVersion: what was deleted by mistake can be brought back until the bucket's rule acts.
        made.append(allow("DeleteData", ["s3:DeleteObject", "s3:AbortMultipartUpload"], _below(bucket, role.deletes)))
        # Uploads that a kill cut off cost room; IAM knows no prefix for this list.
        made.append(allow("ListCutOffUploads", ["s3:ListBucketMultipartUploads"], [bucket]))
    return made


def _ledger(how: str, bucket: str) -> list[Statement]:
    if not how:
        return []
    look = ["s3:ListBucket", "s3:ListBucketVersions", "s3:GetBucketObjectLockConfiguration", "s3:GetBucketVersioning"]
    made = [
        allow("LookAtLedger", look, [bucket]),
        allow("ReadLedger", ["s3:GetObject", "s3:GetObjectVersion"], _below(bucket, [ENTRIES])),
    ]
    if how == "append":
        held = {"StringEquals": {"s3:object-lock-legal-hold": "ON"}}  # set, never lifted
        made.append(allow("AppendToLedger", ["s3:PutObject"], _below(bucket, [ENTRIES])))
        made.append(allow("HoldEntries", ["s3:PutObjectLegalHold"], _below(bucket, [ENTRIES]), held))
    return made


def _key(role: Role, key: str | None) -> list[Statement]:
    if key is None:
        return []
    actions = ["kms:Decrypt"]  # uploads in parts need it too
    if role.writes or role.ledger == "append":
        actions.append("kms:GenerateDataKey")
    return [allow("UseKey", actions, [key])]


def data_bucket_policy(place: Place) -> Document:
    """Nothing in clear on the way or in the bucket, whoever asks."""
    header = "s3:x-amz-server-side-encryption"
    statements = [
        _deny("OnlyTls", ["s3:*"], [place.data, f"{place.data}/*"], {"Bool": {"aws:SecureTransport": "false"}}),
        _deny(
            "OnlyThisEncryption", ["s3:PutObject"], [f"{place.data}/*"],
            {"StringNotEquals": {header: "aws:kms"}, "Null": {header: "false"}},  # without the header: the bucket's
        ),
        _deny(
            "OnlyThisKey", ["s3:PutObject"], [f"{place.data}/*"],
            {"ArnNotEqualsIfExists": {f"{header}-aws-kms-key-id": place.key},
             "Null": {f"{header}-aws-kms-key-id": "false"}},
        ),
    ]  # fmt: skip
    return {"Version": "2012-10-17", "Statement": statements}


def ledger_bucket_policy(place: Place) -> Document:
    """Entries are written once and stay, whoever asks: the account's administrator too."""
    everything = [place.ledger, f"{place.ledger}/*"]
    statements = [
        _deny("OnlyTls", ["s3:*"], everything, {"Bool": {"aws:SecureTransport": "false"}}),
        _deny(
            "NothingIsDeleted",
            ["s3:DeleteObject", "s3:DeleteObjectVersion", "s3:BypassGovernanceRetention", "s3:DeleteBucket"],
            everything,
        ),
        _deny("NothingIsWrittenTwice", ["s3:PutObject"], [f"{place.ledger}/*"], {"Null": {"s3:if-none-match": "true"}}),
        _deny(
            "NoHoldIsLifted", ["s3:PutObjectLegalHold"], [f"{place.ledger}/*"],
            {"StringNotEquals": {"s3:object-lock-legal-hold": "ON"}},
        ),
    ]  # fmt: skip
    return {"Version": "2012-10-17", "Statement": statements}


def allow(
    sid: str, actions: Sequence[str], resources: Sequence[str], condition: Mapping[str, Any] | None = None
) -> Statement:
    """One statement that allows `actions` on `resources`."""
    made: Statement = {"Sid": sid, "Effect": "Allow", "Action": list(actions), "Resource": list(resources)}
    return made if condition is None else {**made, "Condition": dict(condition)}


def _deny(
    sid: str, actions: Sequence[str], resources: Sequence[str], condition: Mapping[str, Any] | None = None
) -> Statement:
    return {**allow(sid, actions, resources, condition), "Effect": "Deny", "Principal": "*"}


def _below(bucket: str, prefixes: Sequence[str]) -> list[str]:
    return [f"{bucket}/{prefix}/*" for prefix in prefixes]
