"""The servers of infra/compose.yaml as Fargate services: MLflow, Prefect, the webhook's receiver, the worker.

The same image, commands and settings as there; what differs is where secrets, files and names come from. Each server
has a role of its own. Beside Prefect runs the watch (infra.aws.watch), which reports and puts servers with nothing to
do to sleep; a schedule wakes them before the nightly run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from troposphere import GetAtt, If, Ref, Sub, Tags, Template, ecs, iam, scheduler, servicediscovery

from infra.aws import sizes
from infra.aws.database import USER
from infra.aws.door import Door
from infra.aws.gpu import Gpu
from infra.aws.network import MLFLOW_PORT, PREFECT_PORT, WEBHOOK_PORT, Network
from infra.aws.parameters import HAS_DOOR, HAS_IMAGE, filled, named, when
from infra.aws.policies import allow
from infra.aws.sizes import Size
from infra.aws.tasks import HERE, TASKS, Tasks, checkpoints, git_token, trusts

DOMAIN = "ecg.internal"  # fixed: params.yaml, which is in git, names it
MLFLOW_URL = f"http://mlflow.{DOMAIN}:{MLFLOW_PORT}"
PREFECT_API = f"http://prefect.{DOMAIN}:{PREFECT_PORT}/api"
WEBHOOK_URL = f"http://webhook.{DOMAIN}:{WEBHOOK_PORT}/mlflow"

IN_CLONE = f"{HERE}/aws/in-clone"  # fetches the project, then runs what follows
SSM = ["ssmmessages:CreateControlChannel", "ssmmessages:CreateDataChannel"]
TUNNEL = allow("Tunnel", [*SSM, *(action.replace("Create", "Open") for action in SSM)], ["*"])  # no resource exists


@dataclass(frozen=True, slots=True)
class Servers:
    """What starts runs and is started: the services by name, and the task that sets up."""

    services: dict[str, GetAtt]
    setup: Ref


@dataclass(frozen=True, slots=True)
class _Builder:
    tasks: Tasks
    network: Network
    gpu: Gpu
    door: Door
    namespace: Ref

    def definition(self, size: Size, role: GetAtt, containers: Sequence[ecs.ContainerDefinition]) -> Ref:
        self.tasks.log_group(size.name)
        disk = {} if size.disk_gb == 20 else {"EphemeralStorage": ecs.EphemeralStorage(SizeInGiB=size.disk_gb)}
        made = ecs.TaskDefinition(
            f"{size.name.capitalize()}Task", Family=named(size.name), Cpu=str(size.cpu), Memory=str(size.memory),
            NetworkMode="awsvpc", RequiresCompatibilities=["FARGATE"], TaskRoleArn=role,
            ExecutionRoleArn=self.tasks.execution_role, ContainerDefinitions=list(containers), **disk,
        )  # fmt: skip
        return Ref(self.tasks.template.add_resource(made))

    def service(self, size: Size, definition: Ref, group: str, **more: Any) -> GetAtt:
        provider = "FARGATE_SPOT" if size.spot else "FARGATE"
        network = ecs.AwsvpcConfiguration(
            AssignPublicIp="ENABLED", Subnets=self.network.subnets, SecurityGroups=[self.network.groups[group]]
        )
        made = ecs.Service(
            f"{size.name.capitalize()}Service", ServiceName=size.name, Cluster=self.gpu.cluster,
            TaskDefinition=definition,
            # Asleep while there is no image; then left as it is: who wakes and puts to sleep is not the stack.
            DesiredCount=If(HAS_IMAGE, Ref("AWS::NoValue"), 0),
            CapacityProviderStrategy=[ecs.CapacityProviderStrategyItem(CapacityProvider=provider, Weight=1)],
            NetworkConfiguration=ecs.NetworkConfiguration(AwsvpcConfiguration=network),
            DeploymentConfiguration=ecs.DeploymentConfiguration(
                MinimumHealthyPercent=0, MaximumPercent=100,  # never two of one: the old one ends first
                DeploymentCircuitBreaker=ecs.DeploymentCircuitBreaker(Enable=True, Rollback=True),
            ),
            DependsOn=self.gpu.providers, **more,
        )  # fmt: skip
        self.tasks.template.add_resource(made)
        return GetAtt(made, "ServiceArn")

    def registered(self, name: str) -> dict[str, Any]:
        """The server is found as NAME.ecg.internal."""
        record = servicediscovery.DnsConfig(DnsRecords=[servicediscovery.DnsRecord(Type="A", TTL="10")])
        made = servicediscovery.Service(
            f"{name.capitalize()}Name", Name=name, NamespaceId=self.namespace, DnsConfig=record
        )
        self.tasks.template.add_resource(made)
        return {"ServiceRegistries": [ecs.ServiceRegistry(RegistryArn=GetAtt(made, "Arn"))]}

    def behind_door(self, name: str, port: int) -> dict[str, Any]:
        target = ecs.LoadBalancer(ContainerName=name, ContainerPort=port, TargetGroupArn=self.door.targets[name])
        # The tag makes the service wait for the listener: a target without one is refused.
        waits = If(HAS_DOOR, self.door.listeners[name], "closed")
        return {
            "LoadBalancers": when(HAS_DOOR, [target]),
            "HealthCheckGracePeriodSeconds": when(HAS_DOOR, 180),
            "Tags": Tags(door=waits),
            "EnableExecuteCommand": True,
        }


def add_servers(template: Template, network: Network, tasks: Tasks, gpu: Gpu, door: Door) -> Servers:
    """Every server, its role, its name, and the schedule that wakes them."""
    namespace = template.add_resource(servicediscovery.PrivateDnsNamespace("Names", Name=DOMAIN, Vpc=network.vpc))
    builder = _Builder(tasks, network, gpu, door, Ref(namespace))
    services = {
        "mlflow": _mlflow(builder),
        "prefect": _prefect(builder),
        "webhook": _webhook(builder),
        "worker": _worker(builder),
        "dispatcher": _dispatcher(builder),
    }
    _wake(template, gpu, services)
    return Servers(services, _setup(builder))


def _mlflow(builder: _Builder) -> GetAtt:
    """compose's `mlflow`."""
    tasks = builder.tasks
    # The key's '=' closes the base64 of its 32 bytes; a generated secret has letters and digits only.
    script = (
        f'at="postgresql://{USER}:$POSTGRES_PASSWORD@$POSTGRES_HOST"; '
        'export MLFLOW_DATABASE="$at/mlflow?sslmode=require" MLFLOW_AUTH_DATABASE="$at/accounts?sslmode=require" '
        'MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY="$MLFLOW_WEBHOOK_KEY="; '
        f"exec {HERE}/mlflow/serve"
    )
    settings = {
        "POSTGRES_HOST": tasks.database.host,
        "MLFLOW_ARTIFACTS": Sub("s3://${DataBucket}/mlflow"),
        "MLFLOW_ALLOWED_HOSTS": Sub(f"mlflow.{DOMAIN}:{MLFLOW_PORT},localhost:*,127.0.0.1:*,${{TeamHost}}"),
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",  # the receiver is on this private network
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "10",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    secrets = {
        "POSTGRES_PASSWORD": "PostgresPassword",
        "MLFLOW_AUTH_ADMIN_PASSWORD": "MlflowAdminPassword",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "MlflowSecretKey",
        "MLFLOW_WEBHOOK_KEY": "MlflowWebhookKey",
    }
    server = tasks.container(
        "mlflow", ["sh", "-euc", script], settings=settings, secrets=secrets,
        PortMappings=[ecs.PortMapping(ContainerPort=MLFLOW_PORT)], DependsOn=_after_databases(),
        HealthCheck=_answers(f"http://127.0.0.1:{MLFLOW_PORT}/health"),
    )  # fmt: skip
    role = tasks.role("mlflow", policies=["mlflow-server"], statements=[TUNNEL])
    definition = builder.definition(sizes.MLFLOW, role, [_databases(builder, "mlflow"), server])
    more = {**builder.registered("mlflow"), **builder.behind_door("mlflow", MLFLOW_PORT)}
    return builder.service(sizes.MLFLOW, definition, "Mlflow", **more)


def _prefect(builder: _Builder) -> GetAtt:
    """compose's `prefect`, and the watch beside it."""
    tasks = builder.tasks
    script = (
        "export PREFECT_API_DATABASE_CONNECTION_URL="
        f'"postgresql+asyncpg://{USER}:$POSTGRES_PASSWORD@$POSTGRES_HOST/prefect?ssl=require"; '
        f"exec prefect server start --host 0.0.0.0 --port {PREFECT_PORT}"
    )
    settings = {
        "POSTGRES_HOST": tasks.database.host,
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "flows.leases",  # kept in memory, a restart would end runs
        "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",  # a paused database takes a quarter of a minute to wake
        "PREFECT_UI_API_URL": If(
            HAS_DOOR, Sub(f"https://${{TeamHost}}:{PREFECT_PORT}/api"), f"http://localhost:{PREFECT_PORT}/api"
        ),
    }
    server = tasks.container(
        "prefect", ["sh", "-euc", script], settings=settings,
        secrets={"POSTGRES_PASSWORD": "PostgresPassword", "PREFECT_SERVER_API_AUTH_STRING": "PrefectAuth"},
        PortMappings=[ecs.PortMapping(ContainerPort=PREFECT_PORT)], DependsOn=_after_databases(),
        HealthCheck=_answers(f"http://127.0.0.1:{PREFECT_PORT}/api/health"),
    )  # fmt: skip
    names = ",".join(size.name for size in sizes.SERVERS)
    watch = tasks.container(
        "watch", ["python", "-m", "infra.aws.watch"], Essential=False, WorkingDirectory="/opt/ecg-adapters",
        settings={
            "PREFECT_API_URL": f"http://127.0.0.1:{PREFECT_PORT}/api",
            "ECG_CLUSTER": builder.gpu.cluster,
            "ECG_SERVERS": names,
            "ECG_GPU_TASKS": named("gpu"),
            "ECG_AWAKE_HOURS": Ref("AwakeHours"),
            "ECG_SLEEPS": Ref("Sleeps"),
        },
        secrets={"PREFECT_API_AUTH_STRING": "PrefectAuth"}, RestartPolicy=ecs.RestartPolicy(Enabled=True),
        DependsOn=[ecs.ContainerDependency(ContainerName="prefect", Condition="HEALTHY")],
    )  # fmt: skip
    tasks.log_group("watch")
    here = "${AWS::Region}:${AWS::AccountId}"
    services = [f"arn:${{AWS::Partition}}:ecs:{here}:service/${{Cluster}}/{size.name}" for size in sizes.SERVERS]
    in_cluster = {"ArnEquals": {"ecs:cluster": "${Cluster.Arn}"}}
    role = tasks.role(
        "prefect",
        statements=[
            TUNNEL,
            allow("PutToSleep", ["ecs:UpdateService"], services),
            allow("SeeGpuTasks", ["ecs:ListTasks"], ["*"], in_cluster),
        ],
    )
    definition = builder.definition(sizes.PREFECT, role, [_databases(builder, "prefect"), server, watch])
    more = {**builder.registered("prefect"), **builder.behind_door("prefect", PREFECT_PORT)}
    return builder.service(sizes.PREFECT, definition, "Prefect", **more)


def _webhook(builder: _Builder) -> GetAtt:
    """compose's `webhook`."""
    listens = ["--host", "0.0.0.0", "--port", str(WEBHOOK_PORT), "--state", "/state/webhook.db"]
    receiver = builder.tasks.container(
        "webhook", [IN_CLONE, "ecg", "webhook", *listens], settings=_client(), more_secrets=[git_token()],
        secrets={**_CLIENT_SECRETS, "ECG_WEBHOOK_SECRET": "WebhookSecret"},
        PortMappings=[ecs.PortMapping(ContainerPort=WEBHOOK_PORT)],
    )  # fmt: skip
    role = builder.tasks.role("webhook", policies=["receiver"])
    definition = builder.definition(sizes.WEBHOOK, role, [receiver])
    return builder.service(sizes.WEBHOOK, definition, "Webhook", **builder.registered("webhook"))


def _worker(builder: _Builder) -> GetAtt:
    """compose's `worker`: runs the flows, and the stages that need no GPU."""
    worker = builder.tasks.container(
        "worker", [IN_CLONE, "prefect", "worker", "start", "--pool", Ref("CpuPool")], secrets=_CLIENT_SECRETS,
        settings={**_client(), **checkpoints(), "PREFECT_WORKER_QUERY_SECONDS": "2"}, more_secrets=[git_token()],
        StopTimeout=120,
    )  # fmt: skip
    role = builder.tasks.role("worker", policies=["promoter"])
    return builder.service(sizes.WORKER, builder.definition(sizes.WORKER, role, [worker]), "Worker")


def _dispatcher(builder: _Builder) -> GetAtt:
    """Starts a task on a GPU machine for each run in the pool of GPU stages, and hears how it ended."""
    dispatcher = builder.tasks.container(
        "dispatcher", ["prefect", "worker", "start", "--pool", Ref("GpuPool"), "--type", "ecs"],
        settings={
            "PREFECT_API_URL": PREFECT_API,
            "PREFECT_INTEGRATIONS_AWS_ECS_OBSERVER_SQS_QUEUE_NAME": builder.gpu.events_name,
        },
        secrets={"PREFECT_API_AUTH_STRING": "PrefectAuth"},
    )  # fmt: skip
    here = "${AWS::Region}:${AWS::AccountId}"
    in_cluster = {"ArnEquals": {"ecs:cluster": "${Cluster.Arn}"}}
    running = [f"arn:${{AWS::Partition}}:ecs:{here}:task/${{Cluster}}/*"]
    role = builder.tasks.role(
        "dispatcher",
        statements=[
            allow(
                "StartStages", ["ecs:RunTask"],
                [f"arn:${{AWS::Partition}}:ecs:{here}:task-definition/${{AWS::StackName}}-gpu:*"], in_cluster,
            ),
            allow("FollowStages", ["ecs:DescribeTasks", "ecs:StopTask"], running),
            allow("NameStages", ["ecs:TagResource"], running, {"StringEquals": {"ecs:CreateAction": "RunTask"}}),
            allow("ReadDefinitions", ["ecs:DescribeTaskDefinition"], ["*"]),  # IAM knows no resource for it
            allow(
                "GiveRoles", ["iam:PassRole"], ["${GpuWorkerRole.Arn}", "${ExecutionRole.Arn}"],
                {"StringEquals": {"iam:PassedToService": TASKS}},
            ),
            allow(
                "HearEvents", ["sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:ReceiveMessage", "sqs:DeleteMessage"],
                ["${GpuEvents.Arn}"],
            ),
            allow("ReadEndings", ["logs:GetLogEvents"], ["${GpuLog.Arn}"]),
        ],
    )  # fmt: skip
    definition = builder.definition(sizes.DISPATCHER, role, [dispatcher])
    return builder.service(sizes.DISPATCHER, definition, "Worker")


def _setup(builder: _Builder) -> Ref:
    """compose's `setup` and `deploy` in one task; started by `python -m infra.aws setup`, again without harm."""
    setup = builder.tasks.container(
        "setup", [IN_CLONE, f"{HERE}/aws/setup"], more_secrets=[git_token()],
        settings={
            "ECG_REPOSITORY": Ref("Repository"),
            "ECG_BRANCH": Ref("Branch"),
            "PREFECT_API_URL": PREFECT_API,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "WEBHOOK_URL": WEBHOOK_URL,
            "CPU_POOL": Ref("CpuPool"),
            "GPU_POOL": Ref("GpuPool"),
            # What infra/pools/ecs-gpu.json is filled in with.
            "ECG_CLUSTER": builder.gpu.cluster,
            "ECG_GPU_CAPACITY_PROVIDER": builder.gpu.provider,
            "ECG_GPU_TASK_DEFINITION": named("gpu"),
            "ECG_PREFECT_AUTH_SECRET": builder.tasks.database.secrets["PrefectAuth"],
        },
        secrets={
            "MLFLOW_TRACKING_PASSWORD": "MlflowAdminPassword",
            "PREFECT_API_AUTH_STRING": "PrefectAuth",
            "PIPELINE_PASSWORD": "PipelinePassword",
            "GPU_PASSWORD": "GpuPassword",
            "ECG_WEBHOOK_SECRET": "WebhookSecret",
        },
    )  # fmt: skip
    return builder.definition(sizes.SETUP, builder.tasks.role("setup"), [setup])


def _client() -> dict[str, Any]:
    """Settings of what talks to MLflow and Prefect as the pipeline, in a clone of the project."""
    return {
        "ECG_REPOSITORY": Ref("Repository"),
        "ECG_BRANCH": Ref("Branch"),
        "PREFECT_API_URL": PREFECT_API,
        "MLFLOW_TRACKING_USERNAME": "pipeline",
    }


_CLIENT_SECRETS = {"MLFLOW_TRACKING_PASSWORD": "PipelinePassword", "PREFECT_API_AUTH_STRING": "PrefectAuth"}


def _databases(builder: _Builder, group: str) -> ecs.ContainerDefinition:
    """Makes the databases of infra/postgres/databases.sql that are not there, and ends."""
    return builder.tasks.container(
        "databases", [f"{HERE}/postgres/make-databases"], group=group, Essential=False,
        settings={"POSTGRES_HOST": builder.tasks.database.host, "POSTGRES_USER": USER},
        secrets={"POSTGRES_PASSWORD": "PostgresPassword"},
    )  # fmt: skip


def _after_databases() -> list[ecs.ContainerDependency]:
    return [ecs.ContainerDependency(ContainerName="databases", Condition="SUCCESS")]


def _answers(url: str) -> ecs.HealthCheck:
    command = ["CMD", "python", "-c", f"import urllib.request as u; u.urlopen('{url}')"]
    return ecs.HealthCheck(Command=command, Interval=10, Timeout=5, Retries=10, StartPeriod=120)


def _wake(template: Template, gpu: Gpu, services: dict[str, GetAtt]) -> None:
    """One schedule a server: it asks for one task of it. Asking for what is there already changes nothing."""
    update = {"Version": "2012-10-17", "Statement": [allow("Wake", ["ecs:UpdateService"], [])]}
    document = filled(update)
    document["Statement"][0]["Resource"] = list(services.values())
    role = template.add_resource(
        iam.Role(
            "WakeRole", RoleName=named("wake"), AssumeRolePolicyDocument=trusts("scheduler.amazonaws.com"),
            Policies=[iam.Policy(PolicyName="own", PolicyDocument=document)],
        )
    )  # fmt: skip
    for size in sizes.SERVERS:
        asks = f'{{"Cluster": "${{Cluster}}", "Service": "{size.name}", "DesiredCount": 1}}'
        template.add_resource(
            scheduler.Schedule(
                f"Wake{size.name.capitalize()}", Name=named(f"wake-{size.name}"),
                ScheduleExpression=Ref("WakeCron"), ScheduleExpressionTimezone="UTC",
                State=If(HAS_IMAGE, "ENABLED", "DISABLED"),
                FlexibleTimeWindow=scheduler.FlexibleTimeWindow(Mode="OFF"),
                Target=scheduler.Target(
                    Arn=Sub("arn:${AWS::Partition}:scheduler:::aws-sdk:ecs:updateService"),
                    RoleArn=GetAtt(role, "Arn"), Input=Sub(asks),
                ),
            )
        )  # fmt: skip
