"""What a team decides: the stack's parameters and the conditions that follow from them."""

from __future__ import annotations

from typing import Any

from troposphere import Equals, If, Not, NoValue, Parameter, Ref, Sub, Template

NO_IMAGE = "none"
GPU_IMAGE = "/aws/service/ecs/optimized-ami/amazon-linux-2023/gpu/recommended/image_id"

HAS_IMAGE, HAS_DOOR, HAS_TOKEN, IS_AURORA, IS_INSTANCE = "HasImage", "HasDoor", "HasToken", "IsAurora", "IsInstance"
HAS_HUB_TOKEN = "HasHubToken"


def add_parameters(template: Template) -> None:
    """Declare every parameter, with its default where there is a sensible one."""

    def text(name: str, about: str, default: str | None = None, **more: Any) -> None:
        _add(template, name, about, "String", default, **more)

    def number(name: str, about: str, default: int, **more: Any) -> None:
        _add(template, name, about, "Number", default, **more)

    text("ImageTag", "Tag of the servers' image in the stack's ECR repository; none: before there is one", NO_IMAGE)
    text("GpuImageTag", "Tag of the GPU workers' image there", NO_IMAGE)
    text("Repository", "https address of the project's git repository", AllowedPattern="https://.+")
    text("Branch", "What the servers check out", "main")
    text("GitTokenSecret", "ARN of a secret that holds a token to read the repository; empty: it is public", "")
    text("HubTokenSecret", "ARN of a secret that holds a token of the model hub, for a gated base; empty: none", "")
    text("AlertEmail", "Where alarms and the budget's warnings go", AllowedPattern=r"[^@\s]+@[^@\s]+")
    number("BudgetUsd", "Monthly budget of the whole account, in USD", 500, MinValue=1)

    text("CertificateArn", "ACM certificate of TeamHost; empty: no load balancer, people come by tunnel", "")
    text("TeamHost", "Name under which people reach the servers", "localhost")
    text("AllowedCidr", "Who may reach the load balancer", "127.0.0.1/32", AllowedPattern=r"[\d.]+/\d+")

    text("Database", "aurora: pauses at 0; instance: the cheapest that is always on", "aurora",
         AllowedValues=["aurora", "instance"])  # fmt: skip
    text("PostgresVersion", "PostgreSQL; Aurora pauses at 0 from 16.3 on", "16.8")

    text("LedgerMode", "COMPLIANCE: nobody can shorten it; GOVERNANCE: for a trial", "COMPLIANCE",
         AllowedValues=["COMPLIANCE", "GOVERNANCE"])  # fmt: skip
    number("LedgerDays", "How long an entry of the ledger can be neither changed nor deleted", 3650, MinValue=1)
    number("CheckpointDays", "Checkpoints that nobody wrote for so long are removed", 14, MinValue=1)
    number("OldVersionDays", "Overwritten and deleted objects can be brought back for so long", 30, MinValue=1)

    template.add_parameter(
        Parameter(
            "GpuInstanceTypes", Type="CommaDelimitedList", Default="g6e.4xlarge,g6e.8xlarge,p5.4xlarge",
            Description="What a GPU worker may be; the more, the likelier there is spot capacity",
        )
    )  # fmt: skip
    number("GpuMost", "Most GPU machines at once; the least is 0", 1, MinValue=0, MaxValue=20)
    number("GpuOnDemandPercent", "Share of GPU machines that is not spot", 0, MinValue=0, MaxValue=100)
    number("GpusPerStage", "GPUs that one stage takes", 1, MinValue=1, MaxValue=8)
    number("GpuDiskGb", "Disk of a GPU machine: the image, the base, the data", 200, MinValue=60)
    number("GpuAlarmHours", "A GPU machine up for so long without a break is an alarm", 12, MinValue=1, MaxValue=24)
    template.add_parameter(
        Parameter(
            "GpuMachineImage", Type="AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>", Default=GPU_IMAGE,
            Description="ECS-optimised machine image with NVIDIA's driver",
        )
    )  # fmt: skip

    text("CpuPool", "Prefect work pool of the worker", "cpu")
    text("GpuPool", "Prefect work pool, type ecs, of the GPU machines", "gpu")
    text(
        "WakeCron", "When the servers start, UTC; the nightly run of prefect.yaml comes after it", "cron(45 1 * * ? *)"
    )
    text("Sleeps", "yes: servers with nothing to do are stopped; no: they stay up", "yes", AllowedValues=["yes", "no"])
    number("AwakeHours", "How long servers stay up at least, once started", 2, MinValue=1, MaxValue=24)

    template.add_condition(HAS_IMAGE, Not(Equals(Ref("ImageTag"), NO_IMAGE)))
    template.add_condition(HAS_DOOR, Not(Equals(Ref("CertificateArn"), "")))
    template.add_condition(HAS_TOKEN, Not(Equals(Ref("GitTokenSecret"), "")))
    template.add_condition(HAS_HUB_TOKEN, Not(Equals(Ref("HubTokenSecret"), "")))
    template.add_condition(IS_AURORA, Equals(Ref("Database"), "aurora"))
    template.add_condition(IS_INSTANCE, Equals(Ref("Database"), "instance"))


def _add(template: Template, name: str, about: str, kind: str, default: Any, **more: Any) -> None:
    given = {} if default is None else {"Default": str(default)}
    template.add_parameter(Parameter(name, Type=kind, Description=about, **given, **more))


def named(suffix: str) -> Sub:
    """A name that starts with the stack's."""
    return Sub(f"${{AWS::StackName}}-{suffix}")


def when(condition: str, value: Any) -> If:
    """`value` where the condition holds, else as if the property were not there."""
    return If(condition, value, NoValue)


def filled(tree: Any) -> Any:
    """A tree of plain values in which every text with ${…} is filled in by CloudFormation."""
    if isinstance(tree, dict):
        return {key: filled(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [filled(value) for value in tree]
    return Sub(tree) if isinstance(tree, str) and "${" in tree else tree
