"""The stack made by moto's CloudFormation, as far as moto goes: what is there then, and what S3 takes of the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto_stack import ACCOUNT, STACK, an_account, for_moto, make, resources

from infra.aws import policies, sizes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stack(template: dict[str, Any]) -> Iterator[list[str]]:
    """The stack with its defaults; what its change set said."""
    with an_account():
        yield make(template)


def value(template: dict[str, Any], tree: Any) -> Any:
    """A property with parameters at their defaults."""
    if isinstance(tree, dict):
        if "Ref" in tree:
            found = template["Parameters"][tree["Ref"]]
            return int(found["Default"]) if found["Type"] == "Number" else found["Default"]
        return {key: value(template, one) for key, one in tree.items()}
    return [value(template, one) for one in tree] if isinstance(tree, list) else tree


def test_the_stack_is_made_asleep_with_roles_logs_and_no_open_port(stack: list[str], template: dict[str, Any]) -> None:
    assert "Add AWS::S3::Bucket LedgerBucket" in stack
    there = resources()
    off = {"HasDoor", "IsInstance"}  # no certificate; Aurora
    wanted = {name for name, one in for_moto(template)["Resources"].items() if one.get("Condition") not in off}
    assert set(there) == wanted

    iam, ecs, logs = boto3.client("iam"), boto3.client("ecs"), boto3.client("logs")
    for role in policies.ROLES:
        document = iam.get_policy_version(
            PolicyArn=f"arn:aws:iam::{ACCOUNT}:policy/{STACK}-{role}", VersionId="v1"
        )["PolicyVersion"]["Document"]  # fmt: skip
        assert f"arn:aws:s3:::{STACK}-" in json.dumps(document)
        assert "${" not in json.dumps(document)
    trusted = {role["RoleName"]: role["AssumeRolePolicyDocument"]["Statement"][0] for role in iam.list_roles()["Roles"]}
    assert {f"{STACK}-{name}" for name in ("mlflow", "prefect", "worker", "webhook", "gpu-worker", "setup")} <= set(
        trusted
    )
    assert trusted[f"{STACK}-worker"]["Condition"] == {"StringEquals": {"aws:SourceAccount": ACCOUNT}}
    for name, policy in (("worker", "promoter"), ("gpu-worker", "gpu-worker"), ("webhook", "receiver")):
        role = "".join(word.capitalize() for word in name.split("-")) + "Role"
        given = template["Resources"][role]["Properties"]["ManagedPolicyArns"]  # moto makes a role without them
        assert given == [{"Ref": "".join(word.capitalize() for word in policy.split("-")) + "Policy"}]

    names = [size.name for size in sizes.SERVERS]
    services = ecs.describe_services(cluster=f"{STACK}-servers", services=names)["services"]
    assert {one["serviceName"]: one["desiredCount"] for one in services} == dict.fromkeys(names, 0)
    groups = logs.describe_log_groups()["logGroups"]
    assert {group["retentionInDays"] for group in groups} == {30}
    assert len(groups) == 8
    for group in boto3.client("ec2").describe_security_groups()["SecurityGroups"]:
        if group["GroupName"] != "default":
            assert not [rule for rule in group["IpPermissions"] if rule["IpRanges"] or rule.get("Ipv6Ranges")]


def test_buckets_take_what_the_template_says(stack: list[str], template: dict[str, Any]) -> None:
    """moto's CloudFormation gives a bucket its encryption only; the other properties go through S3's own calls here,
    which refuse what S3 would not take."""
    s3, there = boto3.client("s3"), resources()
    kms, key = boto3.client("kms"), f"arn:aws:kms:us-east-1:{ACCOUNT}:key/{there['Key']}"
    assert {"AliasName": f"alias/{STACK}", "TargetKeyId": there["Key"]}.items() <= next(
        one.items() for one in kms.list_aliases()["Aliases"] if one["AliasName"] == f"alias/{STACK}"
    )
    assert kms.get_key_rotation_status(KeyId=there["Key"])["KeyRotationEnabled"] is True
    for name in ("DataBucket", "LedgerBucket"):
        bucket, said = there[name], value(template, without_key(template["Resources"][name]["Properties"]))
        assert bucket == f"{STACK}-{name.removesuffix('Bucket').lower()}-{ACCOUNT}"
        (rule,) = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
        assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=said["VersioningConfiguration"])
        s3.put_public_access_block(
            Bucket=bucket, PublicAccessBlockConfiguration=said["PublicAccessBlockConfiguration"]
        )  # fmt: skip
        s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls=said["OwnershipControls"])
        assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
        assert set(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values()) == {True}
    s3.put_object_lock_configuration(
        Bucket=there["LedgerBucket"], ObjectLockConfiguration=said["ObjectLockConfiguration"]
    )  # fmt: skip
    lock = s3.get_object_lock_configuration(Bucket=there["LedgerBucket"])["ObjectLockConfiguration"]
    assert {"Mode": "COMPLIANCE", "Days": 3650}.items() <= lock["Rule"]["DefaultRetention"].items()
    said = value(template, template["Resources"]["DataBucket"]["Properties"]["LifecycleConfiguration"])
    s3.put_bucket_lifecycle_configuration(
        Bucket=there["DataBucket"], LifecycleConfiguration={"Rules": [as_s3_spells(rule) for rule in said["Rules"]]}
    )
    rules = {rule["ID"]: rule for rule in s3.get_bucket_lifecycle_configuration(Bucket=there["DataBucket"])["Rules"]}
    assert rules["checkpoints"]["Expiration"] == {"Days": 14}
    assert rules["old-versions"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
    assert rules["broken-uploads"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 3}


def without_key(properties: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in properties.items() if name not in ("BucketEncryption", "BucketName", "Tags")}


def as_s3_spells(rule: dict[str, Any]) -> dict[str, Any]:
    """A rule of a lifecycle in S3's words instead of CloudFormation's."""
    made = {"ID" if name == "Id" else name: one for name, one in rule.items()}
    prefix = made.pop("Prefix")
    expires = {}
    if "ExpirationInDays" in made:
        expires["Days"] = made.pop("ExpirationInDays")
    if "ExpiredObjectDeleteMarker" in made:
        expires["ExpiredObjectDeleteMarker"] = made.pop("ExpiredObjectDeleteMarker")
    return {**made, "Filter": {"Prefix": prefix}, **({"Expiration": expires} if expires else {})}
