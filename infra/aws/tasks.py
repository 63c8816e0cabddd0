"""How a container is told what it needs: image, command, settings, secrets, logs. Secrets come by reference only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from troposphere import GetAtt, If, Ref, Sub, Template, ecs, iam, logs

from infra.aws.database import Database
from infra.aws.parameters import HAS_HUB_TOKEN, HAS_TOKEN, filled, named, when
from infra.aws.policies import CHECKPOINTS, allow
from infra.aws.stores import Stores

LOG_DAYS = 30
HERE = "/opt/ecg-adapters/infra"  # of the image (infra/Dockerfile)
TASKS = "ecs-tasks.amazonaws.com"


@dataclass(frozen=True, slots=True)
class Tasks:
    """What every task has in common."""

    template: Template
    stores: Stores
    database: Database
    execution_role: GetAtt

    def container(
        self,
        name: str,
        command: Sequence[str] | None,
        *,
        tag: str = "ImageTag",
        group: str | None = None,
        settings: Mapping[str, Any] | None = None,
        secrets: Mapping[str, str] | None = None,
        more_secrets: Sequence[Any] = (),
        **more: Any,
    ) -> ecs.ContainerDefinition:
        """One container of the stack's image.

        Args:
            command: what it runs; None: whoever starts the task says.
            tag: the parameter that holds the image's tag.
            group: its log group is the one of this name, its own by default.
            settings: environment variables in clear.
            secrets: environment variable -> one of `infra.aws.database.SECRETS`.
            more_secrets: as `git_token`.
        """
        environment = {"AWS_REGION": Ref("AWS::Region"), "AWS_DEFAULT_REGION": Ref("AWS::Region"), **(settings or {})}
        taken = [
            ecs.Secret(Name=variable, ValueFrom=self.database.secrets[secret])
            for variable, secret in (secrets or {}).items()
        ]
        lines = {
            "awslogs-group": Sub(f"/${{AWS::StackName}}/{group or name}"),
            "awslogs-region": Ref("AWS::Region"),
            "awslogs-stream-prefix": name,
        }
        given = {} if command is None else {"Command": list(command)}
        return ecs.ContainerDefinition(
            Name=name, Image=Sub(f"${{Images.RepositoryUri}}:${{{tag}}}"),
            Environment=[ecs.Environment(Name=key, Value=value) for key, value in environment.items()],
            Secrets=[*taken, *more_secrets], LogConfiguration=ecs.LogConfiguration(LogDriver="awslogs", Options=lines),
            **{"Essential": True, **given, **more},
        )  # fmt: skip

    def role(
        self, name: str, *, policies: Sequence[str] = (), statements: Sequence[dict[str, Any]] = (), who: str = TASKS
    ) -> GetAtt:
        """A role for `who`: policies of `infra.aws.policies.ROLES` by name, and statements of its own."""
        title = "".join(word.capitalize() for word in name.split("-")) + "Role"
        inline = []
        if statements:
            own = {"Version": "2012-10-17", "Statement": list(statements)}
            inline = [iam.Policy(PolicyName="own", PolicyDocument=filled(own))]
        made = iam.Role(
            title, RoleName=named(name), AssumeRolePolicyDocument=trusts(who), Policies=inline,
            ManagedPolicyArns=[self.stores.policies[policy] for policy in policies],
        )  # fmt: skip
        return GetAtt(self.template.add_resource(made), "Arn")

    def log_group(self, name: str) -> logs.LogGroup:
        """Where a server's lines go: encrypted, kept for a month."""
        made: logs.LogGroup = self.template.add_resource(
            logs.LogGroup(
                f"{name.capitalize()}Log", LogGroupName=Sub(f"/${{AWS::StackName}}/{name}"),
                RetentionInDays=LOG_DAYS, KmsKeyId=self.stores.key,
            )
        )  # fmt: skip
        return made


def begin_tasks(template: Template, stores: Stores, database: Database) -> Tasks:
    """What every task needs first: the role by which ECS, not the container, fetches image and secrets."""
    known = [f"${{{name}}}" for name in database.secrets]
    own = {
        "Version": "2012-10-17",
        "Statement": [
            allow("EnterRegistry", ["ecr:GetAuthorizationToken"], ["*"]),  # IAM knows no resource for it
            allow(
                "PullImages",
                ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability"],
                ["${Images.Arn}"],
            ),
            allow(
                "WriteLogs",
                ["logs:CreateLogStream", "logs:PutLogEvents"],
                ["arn:${AWS::Partition}:logs:${AWS::Region}:${AWS::AccountId}:log-group:/${AWS::StackName}/*"],
            ),
            allow("UseKey", ["kms:Decrypt"], ["${Key.Arn}"]),
        ],
    }
    secrets = allow("FetchSecrets", ["secretsmanager:GetSecretValue"], known)
    document = filled(own)
    given = [when(HAS_TOKEN, Ref("GitTokenSecret")), when(HAS_HUB_TOKEN, Ref("HubTokenSecret"))]
    document["Statement"].append({**filled(secrets), "Resource": [*filled(known), *given]})
    role = template.add_resource(
        iam.Role(
            "ExecutionRole", RoleName=named("execution"), AssumeRolePolicyDocument=trusts(TASKS),
            Policies=[iam.Policy(PolicyName="own", PolicyDocument=document)],
        )
    )  # fmt: skip
    return Tasks(template, stores, database, GetAtt(role, "Arn"))


def trusts(service: str) -> Any:
    """Only `service`, and only for this account, may take on the role."""
    here = {"StringEquals": {"aws:SourceAccount": "${AWS::AccountId}"}}
    # An EC2 machine takes on its profile's role without naming an account.
    condition = {} if service.startswith("ec2.") else {"Condition": here}
    statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole", **condition}
    return filled({"Version": "2012-10-17", "Statement": [statement]})


def checkpoints() -> dict[str, Sub]:
    """Where a training's checkpoints go: on its own disk they would go with a spot machine."""
    return {"ECG_CHECKPOINTS": Sub(f"s3://${{DataBucket}}/{CHECKPOINTS}")}


def git_token() -> If:
    """The token for a repository that is not public."""
    return when(HAS_TOKEN, ecs.Secret(Name="ECG_GIT_TOKEN", ValueFrom=Ref("GitTokenSecret")))


def hub_token() -> If:
    """The token for a gated base."""
    return when(HAS_HUB_TOKEN, ecs.Secret(Name="HF_TOKEN", ValueFrom=Ref("HubTokenSecret")))
