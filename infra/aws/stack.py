"""The whole stack, from the ground up: network, stores, database, tasks, GPU machines, door, servers, alarms."""

from __future__ import annotations

from typing import Any

from troposphere import Join, Output, Ref, Sub, Tags, Template, iam

from infra.aws import policies
from infra.aws.alarms import add_alarms
from infra.aws.database import add_database
from infra.aws.door import Door, add_door
from infra.aws.gpu import STAGE, Gpu, add_gpu
from infra.aws.network import Network, add_network
from infra.aws.parameters import HAS_DOOR, add_parameters, filled, named
from infra.aws.policies import allow
from infra.aws.servers import MLFLOW_URL, PREFECT_API, Servers, add_servers
from infra.aws.stores import Stores, add_stores
from infra.aws.tasks import TASKS, Tasks, begin_tasks

TAG = {"project": "ecg-adapters"}
TAGGED = (
    *("AWS::EC2::VPC", "AWS::S3::Bucket", "AWS::KMS::Key", "AWS::ECR::Repository", "AWS::SecretsManager::Secret"),
    *("AWS::RDS::DBCluster", "AWS::RDS::DBInstance", "AWS::ECS::Cluster", "AWS::ECS::Service"),
    *("AWS::ElasticLoadBalancingV2::LoadBalancer", "AWS::Logs::LogGroup"),
)


def build() -> Template:
    """The stack as a CloudFormation template."""
    template = Template(Description="ecg-adapters: a team's servers, stores, roles and GPU machines")
    add_parameters(template)
    network = add_network(template)
    stores = add_stores(template)
    database = add_database(template, network, stores)
    tasks = begin_tasks(template, stores, database)
    gpu = add_gpu(template, network, tasks)
    door = add_door(template, network)
    servers = add_servers(template, network, tasks, gpu, door)
    _add_people(template)
    topic = add_alarms(template, stores, gpu)
    _add_outputs(template, network, stores, tasks, gpu, door, servers, topic)
    _tag(template)
    return template


def _add_people(template: Template) -> None:
    """`visitor`: comes to the servers by tunnel. `deployer`: brings images, sets up, wakes; no bucket, no policy."""
    here = "${AWS::Region}:${AWS::AccountId}"
    running = f"arn:${{AWS::Partition}}:ecs:{here}:task/${{Cluster}}/*"
    in_cluster = {"ArnEquals": {"ecs:cluster": "${Cluster.Arn}"}}
    see = [
        allow("FindServers", ["ecs:ListTasks"], ["*"], in_cluster),
        allow("SeeServers", ["ecs:DescribeTasks"], [running]),
        allow("SeeStack", ["cloudformation:DescribeStacks"], ["${AWS::StackId}"]),
    ]
    tunnel = allow(
        "Tunnel", ["ssm:StartSession"],
        [running, "arn:${AWS::Partition}:ssm:${AWS::Region}::document/AWS-StartPortForwardingSession"],
        {"BoolIfExists": {"ssm:SessionDocumentAccessCheck": "true"}},  # this document and no shell
    )  # fmt: skip
    services = f"arn:${{AWS::Partition}}:ecs:{here}:service/${{Cluster}}/*"
    deploys = [
        allow("EnterRegistry", ["ecr:GetAuthorizationToken"], ["*"]),  # IAM knows no resource for it
        allow(
            "PushImages",
            [
                *("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:CompleteLayerUpload"),
                *("ecr:DescribeImages", "ecr:InitiateLayerUpload", "ecr:PutImage", "ecr:UploadLayerPart"),
            ],
            ["${Images.Arn}"],
        ),
        allow("WakeServers", ["ecs:UpdateService", "ecs:DescribeServices"], [services]),
        allow(
            "SetUp", ["ecs:RunTask"],
            [f"arn:${{AWS::Partition}}:ecs:{here}:task-definition/${{AWS::StackName}}-setup:*"], in_cluster,
        ),
        allow(
            "GiveRoles", ["iam:PassRole"], ["${SetupRole.Arn}", "${ExecutionRole.Arn}"],
            {"StringEquals": {"iam:PassedToService": TASKS}},
        ),
        allow(
            "ReadLogs", ["logs:FilterLogEvents", "logs:GetLogEvents", "logs:DescribeLogStreams"],
            [f"arn:${{AWS::Partition}}:logs:{here}:log-group:/${{AWS::StackName}}/*"],
        ),
    ]  # fmt: skip
    for name, about, statements in (
        ("visitor", "reaches MLflow's and Prefect's pages by tunnel", [*see, tunnel]),
        ("deployer", "brings images, sets up, wakes and puts to sleep", [*see, tunnel, *deploys]),
    ):
        document = filled({"Version": "2012-10-17", "Statement": statements})
        template.add_resource(
            iam.ManagedPolicy(
                f"{name.capitalize()}Policy", ManagedPolicyName=named(name), Description=about, PolicyDocument=document
            )
        )


def _add_outputs(
    template: Template,
    network: Network,
    stores: Stores,
    tasks: Tasks,
    gpu: Gpu,
    door: Door,
    servers: Servers,
    topic: Ref,
) -> None:
    """What work pools, DVC, params.yaml and people ask for."""
    told: dict[str, tuple[str, Any]] = {
        "DvcRemote": ("DVC's remote", Sub(f"s3://${{DataBucket}}/{policies.DVC}")),
        "Checkpoints": ("Where checkpoints go", Sub(f"s3://${{DataBucket}}/{policies.CHECKPOINTS}")),
        "Source": ("Where new records are put", Sub(f"s3://${{DataBucket}}/{policies.SOURCE}")),
        "Ledger": ("registry.ledger", Sub(f"s3://${{LedgerBucket}}/{policies.ENTRIES}")),
        "TrackingUri": ("registry.tracking_uri", MLFLOW_URL),
        "PrefectApi": ("PREFECT_API_URL", PREFECT_API),
        "Images": ("Repository of images", stores.images),
        "Cluster": ("ECS cluster", gpu.cluster),
        "GpuCapacityProvider": ("Starts GPU machines", gpu.provider),
        "GpuTaskDefinition": ("Family of the task a GPU stage runs as", named("gpu")),
        "GpuContainer": ("Its container", STAGE),
        "GpuTaskRole": ("What a GPU stage may do", gpu.role),
        "GpuLogGroup": ("What GPU stages say", gpu.log),
        "GpuEventsQueue": ("How GPU tasks ended", gpu.events_name),
        "ExecutionRole": ("Fetches images and secrets for tasks", tasks.execution_role),
        "PrefectAuthSecret": ("Holds Prefect's auth string", tasks.database.secrets["PrefectAuth"]),
        "AdminSecret": ("Holds the password of MLflow's admin", tasks.database.secrets["MlflowAdminPassword"]),
        "SetupTaskDefinition": ("Sets up accounts, pools and deployments", servers.setup),
        "Subnets": ("Where tasks are put", Join(",", network.subnets)),
        "WorkerGroup": ("Security group of the worker and of the setup", network.groups["Worker"]),
        "Key": ("Encrypts everything at rest", stores.key),
        "Alerts": ("Topic of alarms", topic),
    }
    for name, (about, value) in told.items():
        template.add_output(Output(name, Description=about, Value=value))
    template.add_output(
        Output("DoorAddress", Condition=HAS_DOOR, Description="Point TeamHost here", Value=door.address)
    )


def _tag(template: Template) -> None:
    """The project's tag on what costs: a bill can be split by it."""
    for resource in template.resources.values():
        if resource.resource_type in TAGGED:
            own = getattr(resource, "Tags", None)
            resource.Tags = Tags(TAG) if own is None else own + Tags(TAG)
