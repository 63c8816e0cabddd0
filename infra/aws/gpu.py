"""GPU machines: none while nothing waits for one, spot, in an ECS capacity provider that starts and ends them.

A run in the GPU pool becomes an ECS task; a task that finds no machine makes the provider start one; a machine without
a task for a quarter of an hour is ended. When spot takes a machine back, ECS drains it, the task is told (SIGTERM, two
minutes), Prefect hears of its end at once through the queue of events, and the run goes on from its checkpoint on
another machine (docs/training.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from troposphere import Base64, GetAtt, Ref, Sub, Template, autoscaling, ec2, ecs, events, iam, sqs

from infra.aws.network import Network
from infra.aws.parameters import filled, named
from infra.aws.policies import allow
from infra.aws.tasks import Tasks, checkpoints, git_token, hub_token, trusts

STAGE = "stage"  # the container of a GPU task
GRACE_SECONDS = 110  # of the two minutes that spot gives


@dataclass(frozen=True, slots=True)
class Gpu:
    """The cluster and its GPU side, by the names that a work pool asks for."""

    cluster: Ref
    provider: Ref
    providers: str  # the resource that services wait for
    machines: Ref
    definition: Ref
    role: GetAtt
    events_name: GetAtt
    log: Ref


def add_gpu(template: Template, network: Network, tasks: Tasks) -> Gpu:
    """The cluster, the machines, and the task that a GPU stage runs as."""
    cluster = template.add_resource(ecs.Cluster("Cluster", ClusterName=named("servers")))
    machines = _machines(template, network)
    provider = template.add_resource(
        ecs.CapacityProvider(
            "GpuCapacity",
            AutoScalingGroupProvider=ecs.AutoScalingGroupProvider(
                AutoScalingGroupArn=Ref(machines), ManagedTerminationProtection="ENABLED", ManagedDraining="ENABLED",
                ManagedScaling=ecs.ManagedScaling(Status="ENABLED", TargetCapacity=100, MinimumScalingStepSize=1),
            ),
        )
    )  # fmt: skip
    providers = template.add_resource(
        ecs.ClusterCapacityProviderAssociations(
            "Capacity", Cluster=Ref(cluster), CapacityProviders=["FARGATE", "FARGATE_SPOT", Ref(provider)],
            DefaultCapacityProviderStrategy=[ecs.CapacityProviderStrategy(CapacityProvider="FARGATE", Weight=1)],
        )
    )  # fmt: skip
    log = tasks.log_group("gpu")
    role = tasks.role("gpu-worker", policies=["gpu-worker"])
    definition = _definition(tasks, role)
    queue = _events(template)
    return Gpu(
        Ref(cluster), Ref(provider), providers.title, Ref(machines), definition, role, GetAtt(queue, "QueueName"),
        Ref(log),
    )  # fmt: skip


def _machines(template: Template, network: Network) -> autoscaling.AutoScalingGroup:
    what = autoscaling.InstanceRequirements(
        AllowedInstanceTypes=Ref("GpuInstanceTypes"),
        VCpuCount=autoscaling.VCpuCountRequest(Min=1),
        MemoryMiB=autoscaling.MemoryMiBRequest(Min=1),
        # The list above is the choice; AWS would else leave out what costs twice the cheapest of it.
        SpotMaxPricePercentageOverLowestPrice=999999,
        OnDemandMaxPricePercentageOverLowestPrice=999999,
    )
    launch = autoscaling.LaunchTemplate(
        LaunchTemplateSpecification=autoscaling.LaunchTemplateSpecification(
            LaunchTemplateId=Ref("GpuLaunch"), Version=GetAtt("GpuLaunch", "LatestVersionNumber")
        ),
        Overrides=[autoscaling.LaunchTemplateOverrides(InstanceRequirements=what)],
    )
    spread = autoscaling.InstancesDistribution(
        OnDemandBaseCapacity=0,
        OnDemandPercentageAboveBaseCapacity=Ref("GpuOnDemandPercent"),
        SpotAllocationStrategy="price-capacity-optimized",
    )
    _launch_template(template, network)
    # No DesiredCapacity: the capacity provider sets it, and an update of the stack must not set it back.
    made: autoscaling.AutoScalingGroup = template.add_resource(
        autoscaling.AutoScalingGroup(
            "GpuMachines", MinSize="0", MaxSize=Ref("GpuMost"), VPCZoneIdentifier=network.subnets,
            MixedInstancesPolicy=autoscaling.MixedInstancesPolicy(LaunchTemplate=launch, InstancesDistribution=spread),
            NewInstancesProtectedFromScaleIn=True, CapacityRebalance=False,
            MetricsCollection=[
                autoscaling.MetricsCollection(Granularity="1Minute", Metrics=["GroupInServiceInstances"])
            ],
            Tags=autoscaling.Tags(Name=named("gpu"), AmazonECSManaged=""),
        )
    )  # fmt: skip
    return made


def _launch_template(template: Template, network: Network) -> None:
    # AWS's own policy for machines of a cluster. Containers cannot take on this role: one hop is too few for them.
    role = template.add_resource(
        iam.Role(
            "MachineRole", RoleName=named("gpu-machine"), AssumeRolePolicyDocument=trusts("ec2.amazonaws.com"),
            ManagedPolicyArns=[
                Sub("arn:${AWS::Partition}:iam::aws:policy/service-role/AmazonEC2ContainerServiceforEC2Role")
            ],
        )
    )  # fmt: skip
    profile = template.add_resource(iam.InstanceProfile("MachineProfile", Roles=[Ref(role)]))
    script = "\n".join(
        [
            "#!/bin/sh",
            "cat >> /etc/ecs/ecs.config <<END",
            "ECS_CLUSTER=${Cluster}",
            "ECS_ENABLE_SPOT_INSTANCE_DRAINING=true",
            f"ECS_CONTAINER_STOP_TIMEOUT={GRACE_SECONDS}s",
            "ECS_IMAGE_PULL_BEHAVIOR=prefer-cached",
            "END",
            "",
        ]
    )
    disk = ec2.LaunchTemplateBlockDeviceMapping(
        DeviceName="/dev/xvda",
        Ebs=ec2.EBSBlockDevice(
            VolumeSize=Ref("GpuDiskGb"), VolumeType="gp3", Encrypted=True, DeleteOnTermination=True, Throughput=500,
            Iops=3000,
        ),
    )  # fmt: skip
    template.add_resource(
        ec2.LaunchTemplate(
            "GpuLaunch",
            LaunchTemplateData=ec2.LaunchTemplateData(
                ImageId=Ref("GpuMachineImage"), UserData=Base64(Sub(script)), BlockDeviceMappings=[disk],
                IamInstanceProfile=ec2.IamInstanceProfile(Arn=GetAtt(profile, "Arn")),
                SecurityGroupIds=[network.groups["Gpu"]],
                MetadataOptions=ec2.MetadataOptions(
                    HttpTokens="required", HttpEndpoint="enabled", HttpPutResponseHopLimit=1
                ),
            ),
        )
    )  # fmt: skip


def _definition(tasks: Tasks, role: GetAtt) -> Ref:
    """One stage. Network `bridge`: a task with an address of its own on EC2 gets no public one, and there is no NAT."""
    stage = tasks.container(
        STAGE, None, tag="GpuImageTag", group="gpu", more_secrets=[git_token(), hub_token()],
        settings={
            "ECG_REPOSITORY": Ref("Repository"),
            "ECG_BRANCH": Ref("Branch"),
            "MLFLOW_TRACKING_USERNAME": "gpu",
            **checkpoints(),
        },
        secrets={"MLFLOW_TRACKING_PASSWORD": "GpuPassword", "PREFECT_API_AUTH_STRING": "PrefectAuth"},
        ResourceRequirements=[ecs.ResourceRequirement(Type="GPU", Value=Ref("GpusPerStage"))],
        MemoryReservation=16384,  # the least a machine must have free; a stage may take all of it
        LinuxParameters=ecs.LinuxParameters(SharedMemorySize=8192),  # torch's loaders pass pages through it
        StopTimeout=GRACE_SECONDS,
    )  # fmt: skip
    made = ecs.TaskDefinition(
        "GpuTask", Family=named("gpu"), NetworkMode="bridge", RequiresCompatibilities=["EC2"], TaskRoleArn=role,
        ExecutionRoleArn=tasks.execution_role, ContainerDefinitions=[stage],
    )  # fmt: skip
    return Ref(tasks.template.add_resource(made))


def _events(template: Template) -> sqs.Queue:
    """How tasks ended, for Prefect's observer: a run whose machine was taken back is known as crashed in seconds."""
    queue: sqs.Queue = template.add_resource(
        sqs.Queue(
            "GpuEvents", QueueName=named("gpu-events"), MessageRetentionPeriod=86400, SqsManagedSseEnabled=True
        )
    )  # fmt: skip
    rule = template.add_resource(
        events.Rule(
            "GpuEventsRule", Description="Tasks of the cluster that change state",
            EventPattern={
                "source": ["aws.ecs"], "detail-type": ["ECS Task State Change"],
                "detail": {"clusterArn": [Sub("${Cluster.Arn}")]},
            },
            Targets=[events.Target(Id="queue", Arn=GetAtt(queue, "Arn"))],
        )
    )  # fmt: skip
    by_rule = {"ArnEquals": {"aws:SourceArn": f"${{{rule.title}.Arn}}"}}
    sends = {
        **allow("Events", ["sqs:SendMessage"], ["${GpuEvents.Arn}"], by_rule),
        "Principal": {"Service": "events.amazonaws.com"},
    }
    document = filled({"Version": "2012-10-17", "Statement": [sends]})
    template.add_resource(sqs.QueuePolicy("GpuEventsPolicy", Queues=[Ref(queue)], PolicyDocument=document))
    return queue
