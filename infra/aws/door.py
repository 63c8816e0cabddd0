"""The way in for people, where there is a certificate: a load balancer with TLS before MLflow (443) and Prefect (4200).

Without a certificate there is none, which saves its monthly price: people come by SSM port forwarding
(infra/aws/README.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from troposphere import GetAtt, Ref, Template
from troposphere import elasticloadbalancingv2 as elb

from infra.aws.network import MLFLOW_PORT, PREFECT_PORT, Network
from infra.aws.parameters import HAS_DOOR

TLS_POLICY = "ELBSecurityPolicy-TLS13-1-2-2021-06"


@dataclass(frozen=True, slots=True)
class Door:
    """By server: where the load balancer sends its requests, and the listener that takes them."""

    targets: dict[str, Ref]
    listeners: dict[str, Ref]
    address: GetAtt


def add_door(template: Template, network: Network) -> Door:
    """Load balancer, listeners and targets; all of it only where there is a certificate."""
    balancer = template.add_resource(
        elb.LoadBalancer(
            "Door", Condition=HAS_DOOR, Type="application", Scheme="internet-facing", Subnets=network.subnets,
            SecurityGroups=[network.groups["Door"]],
            LoadBalancerAttributes=[
                elb.LoadBalancerAttributes(Key="routing.http.drop_invalid_header_fields.enabled", Value="true"),
                elb.LoadBalancerAttributes(Key="idle_timeout.timeout_seconds", Value="120"),
            ],
        )
    )  # fmt: skip
    targets, listeners = {}, {}
    for name, outside, inside, health in (
        ("mlflow", 443, MLFLOW_PORT, "/health"),
        ("prefect", PREFECT_PORT, PREFECT_PORT, "/api/health"),
    ):
        title = name.capitalize()
        target = template.add_resource(
            elb.TargetGroup(
                f"{title}Target", Condition=HAS_DOOR, VpcId=network.vpc, Protocol="HTTP", Port=inside, TargetType="ip",
                HealthCheckPath=health,
            )
        )  # fmt: skip
        listener = template.add_resource(
            elb.Listener(
                f"{title}Listener", Condition=HAS_DOOR, LoadBalancerArn=Ref(balancer), Port=outside, Protocol="HTTPS",
                SslPolicy=TLS_POLICY, Certificates=[elb.Certificate(CertificateArn=Ref("CertificateArn"))],
                DefaultActions=[elb.Action(Type="forward", TargetGroupArn=Ref(target))],
            )
        )  # fmt: skip
        targets[name], listeners[name] = Ref(target), Ref(listener)
    return Door(targets, listeners, GetAtt(balancer, "DNSName"))
