"""PostgreSQL, and every secret: generated where it is kept, never a parameter, never in the template.

Two databases to choose from. `aurora` pauses at 0 ACU ten minutes after the last connection, so with sleeping servers
it costs its storage alone; awake it takes 0.5 ACU at least. `instance` is the cheapest machine, always on: cheaper as
soon as the servers are up more than some hours a day (docs/cost.md has the number).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from troposphere import GetAtt, If, Ref, Sub, Template, rds, secretsmanager
from troposphere.validators import double

from infra.aws import sizes
from infra.aws.network import Network
from infra.aws.parameters import IS_AURORA, IS_INSTANCE, named
from infra.aws.stores import Stores

USER = "ecg"
BACKUP_DAYS = 14
SECRETS: Mapping[str, tuple[str, int]] = {  # name -> what it opens, characters (letters and digits)
    "PostgresPassword": ("the database", 40),
    "MlflowAdminPassword": ("MLflow's admin", 32),
    "MlflowSecretKey": ("MLflow's forms", 64),
    "MlflowWebhookKey": ("the webhooks' secrets in MLflow's database", 43),  # and a '=': 32 bytes in base64
    "PipelinePassword": ("MLflow's account `pipeline`, a promoter", 32),
    "GpuPassword": ("MLflow's account `gpu`, a trainer", 32),
    "PrefectAuth": ("Prefect's API", 40),
    "WebhookSecret": ("MLflow's signature on its deliveries", 64),
}


class _Scaling(rds.ServerlessV2ScalingConfiguration):  # type: ignore[misc]
    """troposphere's own still refuses 0, which Aurora takes since November 2024."""

    props = {**rds.ServerlessV2ScalingConfiguration.props, "MinCapacity": (double, False)}  # noqa: RUF012


@dataclass(frozen=True, slots=True)
class Database:
    """Where PostgreSQL listens, and the secrets by name."""

    host: If
    secrets: dict[str, Ref]


def add_database(template: Template, network: Network, stores: Stores) -> Database:
    """The secrets, and the database that the parameter Database names."""
    secrets = {name: Ref(template.add_resource(_secret(name, stores))) for name in SECRETS}
    subnets = template.add_resource(
        rds.DBSubnetGroup("DatabaseSubnets", DBSubnetGroupDescription="ecg-adapters", SubnetIds=network.subnets)
    )
    login = {
        "MasterUsername": USER,
        "MasterUserPassword": Sub("{{resolve:secretsmanager:${PostgresPassword}}}"),
    }
    kept = {
        "StorageEncrypted": True,
        "KmsKeyId": stores.key,
        "DeletionProtection": True,
        "BackupRetentionPeriod": BACKUP_DAYS,
        "DBSubnetGroupName": Ref(subnets),
        "DeletionPolicy": "Snapshot",
        "UpdateReplacePolicy": "Snapshot",
    }
    scaling = _Scaling(
        MinCapacity=sizes.AURORA_MIN, MaxCapacity=sizes.AURORA_MAX, SecondsUntilAutoPause=sizes.AURORA_PAUSE_SECONDS
    )
    cluster = template.add_resource(
        rds.DBCluster(
            "Aurora", Condition=IS_AURORA, Engine="aurora-postgresql", EngineVersion=Ref("PostgresVersion"),
            ServerlessV2ScalingConfiguration=scaling, VpcSecurityGroupIds=[network.groups["Database"]],
            CopyTagsToSnapshot=True, **login, **kept,
        )
    )  # fmt: skip
    template.add_resource(
        rds.DBInstance(
            "AuroraWriter", Condition=IS_AURORA, Engine="aurora-postgresql", DBInstanceClass="db.serverless",
            DBClusterIdentifier=Ref(cluster), PubliclyAccessible=False,
        )
    )  # fmt: skip
    instance = template.add_resource(
        rds.DBInstance(
            "Postgres", Condition=IS_INSTANCE, Engine="postgres", EngineVersion=Ref("PostgresVersion"),
            DBInstanceClass=sizes.INSTANCE_CLASS, AllocatedStorage=str(sizes.INSTANCE_STORAGE_GB), StorageType="gp3",
            MaxAllocatedStorage=100, PubliclyAccessible=False, VPCSecurityGroups=[network.groups["Database"]],
            CopyTagsToSnapshot=True, AutoMinorVersionUpgrade=True, **login, **kept,
        )
    )  # fmt: skip
    host = If(IS_AURORA, GetAtt(cluster, "Endpoint.Address"), GetAtt(instance, "Endpoint.Address"))
    return Database(host, secrets)


def _secret(name: str, stores: Stores) -> secretsmanager.Secret:
    about, length = SECRETS[name]
    return secretsmanager.Secret(
        name, Name=named(name), Description=f"Opens {about}", KmsKeyId=stores.key,
        GenerateSecretString=secretsmanager.GenerateSecretString(ExcludePunctuation=True, PasswordLength=length),
    )  # fmt: skip
