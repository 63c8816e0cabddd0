"""What outlives every machine: the key, two buckets, the images; and the policies of those who touch them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from troposphere import GetAtt, Ref, Sub, Template, ecr, iam, kms, s3

from infra.aws.parameters import filled, named
from infra.aws.policies import CHECKPOINTS, ROLES, Place, data_bucket_policy, document, ledger_bucket_policy

PLACE = Place(
    data="arn:${AWS::Partition}:s3:::${DataBucket}",
    ledger="arn:${AWS::Partition}:s3:::${LedgerBucket}",
    key="${Key.Arn}",
)
KEEP = {"DeletionPolicy": "Retain", "UpdateReplacePolicy": "Retain"}  # deleting the stack deletes no data


@dataclass(frozen=True, slots=True)
class Stores:
    """The key, the buckets, the repository of images, and a role's policy by the role's name."""

    key: GetAtt
    data: Ref
    ledger: Ref
    images: GetAtt
    policies: dict[str, Ref]


def add_stores(template: Template) -> Stores:
    """Key, buckets, repository and policies."""
    key = template.add_resource(
        kms.Key(
            "Key",
            Description="ecg-adapters: everything at rest",
            EnableKeyRotation=True,
            KeyPolicy=_key_policy(),
            **KEEP,
        )
    )
    template.add_resource(kms.Alias("KeyAlias", AliasName=Sub("alias/${AWS::StackName}"), TargetKeyId=Ref(key)))
    data = template.add_resource(
        s3.Bucket("DataBucket", BucketName=_bucket("data"), LifecycleConfiguration=_lifecycle(), **_private(key))
    )
    lock = s3.DefaultRetention(Mode=Ref("LedgerMode"), Days=Ref("LedgerDays"))
    ledger = template.add_resource(
        s3.Bucket(
            "LedgerBucket", BucketName=_bucket("ledger"), ObjectLockEnabled=True,
            ObjectLockConfiguration=s3.ObjectLockConfiguration(
                ObjectLockEnabled="Enabled", Rule=s3.ObjectLockRule(DefaultRetention=lock)
            ),
            **_private(key),
        )
    )  # fmt: skip
    for bucket, policy in ((data, data_bucket_policy(PLACE)), (ledger, ledger_bucket_policy(PLACE))):
        template.add_resource(
            s3.BucketPolicy(f"{bucket.title}Policy", Bucket=Ref(bucket), PolicyDocument=filled(policy))
        )
    images = template.add_resource(_images())
    policies = {role: Ref(template.add_resource(_policy(role))) for role in ROLES}
    return Stores(GetAtt(key, "Arn"), Ref(data), Ref(ledger), GetAtt(images, "RepositoryUri"), policies)


def _bucket(name: str) -> Sub:
    return Sub(f"${{AWS::StackName}}-{name}-${{AWS::AccountId}}")


def _private(key: kms.Key) -> dict[str, Any]:
    """What both buckets are: versioned, encrypted with our key, closed to the public, without ACLs, kept."""
    by_default = s3.ServerSideEncryptionByDefault(SSEAlgorithm="aws:kms", KMSMasterKeyID=GetAtt(key, "Arn"))
    return {
        "VersioningConfiguration": s3.VersioningConfiguration(Status="Enabled"),
        "BucketEncryption": s3.BucketEncryption(
            ServerSideEncryptionConfiguration=[
                # A bucket key: one call to KMS for many objects.
                s3.ServerSideEncryptionRule(ServerSideEncryptionByDefault=by_default, BucketKeyEnabled=True)
            ]
        ),
        "PublicAccessBlockConfiguration": s3.PublicAccessBlockConfiguration(
            BlockPublicAcls=True, BlockPublicPolicy=True, IgnorePublicAcls=True, RestrictPublicBuckets=True
        ),
        "OwnershipControls": s3.OwnershipControls(
            Rules=[s3.OwnershipControlsRule(ObjectOwnership="BucketOwnerEnforced")]
        ),
        **KEEP,
    }


def _lifecycle() -> s3.LifecycleConfiguration:
    return s3.LifecycleConfiguration(
        Rules=[
            s3.LifecycleRule(
                Id="checkpoints", Status="Enabled", Prefix=f"{CHECKPOINTS}/", ExpirationInDays=Ref("CheckpointDays")
            ),
            s3.LifecycleRule(
                Id="old-versions", Status="Enabled", Prefix="", ExpiredObjectDeleteMarker=True,
                NoncurrentVersionExpiration=s3.NoncurrentVersionExpiration(NoncurrentDays=Ref("OldVersionDays")),
            ),
            s3.LifecycleRule(
                Id="broken-uploads", Status="Enabled", Prefix="",
                AbortIncompleteMultipartUpload=s3.AbortIncompleteMultipartUpload(DaysAfterInitiation=3),
            ),
        ]
    )  # fmt: skip


def _images() -> ecr.Repository:
    """Tags are written once, so a tag says which image ran. The last 20 images are kept."""
    newest = (
        '{"rules": [{"rulePriority": 1, "description": "the last 20", "action": {"type": "expire"},'
        ' "selection": {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": 20}}]}'
    )
    return ecr.Repository(
        "Images", RepositoryName=named("images"), ImageTagMutability="IMMUTABLE",
        ImageScanningConfiguration=ecr.ImageScanningConfiguration(ScanOnPush=True),
        EncryptionConfiguration=ecr.EncryptionConfiguration(EncryptionType="KMS", KmsKey=Sub("${Key.Arn}")),
        LifecyclePolicy=ecr.LifecyclePolicy(LifecyclePolicyText=newest), **KEEP,
    )  # fmt: skip


def _policy(role: str) -> iam.ManagedPolicy:
    title = "".join(word.capitalize() for word in role.split("-")) + "Policy"
    return iam.ManagedPolicy(
        title, ManagedPolicyName=named(role), Description=ROLES[role].about,
        PolicyDocument=filled(document(role, PLACE)),
    )  # fmt: skip


def _key_policy() -> Any:
    """The account decides by IAM who uses the key; and AWS's own services, for what this stack has them write."""

    def service(sid: str, name: str, condition: dict[str, Any]) -> dict[str, Any]:
        return {
            "Sid": sid, "Effect": "Allow", "Principal": {"Service": name}, "Resource": "*", "Condition": condition,
            "Action": ["kms:Decrypt", "kms:GenerateDataKey*", "kms:Encrypt", "kms:ReEncrypt*", "kms:DescribeKey"],
        }  # fmt: skip

    here = {"StringEquals": {"aws:SourceAccount": "${AWS::AccountId}"}}
    groups = "arn:${AWS::Partition}:logs:${AWS::Region}:${AWS::AccountId}:log-group:/${AWS::StackName}/*"
    statements = [
        {
            "Sid": "Account", "Effect": "Allow", "Action": "kms:*", "Resource": "*",
            "Principal": {"AWS": "arn:${AWS::Partition}:iam::${AWS::AccountId}:root"},
        },
        service(
            "Logs", "logs.${AWS::Region}.amazonaws.com", {"ArnLike": {"kms:EncryptionContext:aws:logs:arn": groups}}
        ),
        service("Alarms", "cloudwatch.amazonaws.com", here),
        service("Events", "events.amazonaws.com", here),
        service("Budgets", "budgets.amazonaws.com", here),
    ]  # fmt: skip
    return filled({"Version": "2012-10-17", "Statement": statements})
