"""A network of its own: public subnets without a NAT gateway, and who may talk to whom in it.

Public subnets, because a NAT gateway costs more a month than everything else that is idle here. A task's address is
public but nothing listens to the world: no security group lets anything in that does not come from another of them, the
load balancer apart. What goes out is HTTPS only (packages, git, AWS). S3 is reached by a gateway, which is free.
"""

from __future__ import annotations

from dataclasses import dataclass

from troposphere import GetAtt, GetAZs, Ref, Select, Sub, Tags, Template, ec2

from infra.aws.parameters import HAS_DOOR, named

CIDR = "10.70.0.0/16"
ZONES = 3  # the more zones, the likelier there is spot capacity
MLFLOW_PORT, PREFECT_PORT, WEBHOOK_PORT, POSTGRES_PORT = 5000, 4200, 8190, 5432

GROUPS = {
    "Mlflow": "MLflow with accounts",
    "Prefect": "Prefect server",
    "Webhook": "takes deliveries of MLflow",
    "Worker": "runs flows, sends stages to GPU machines, sets up",
    "Gpu": "GPU machines",
}
CALLS = (  # from, to, port: nothing else is let in
    ("Mlflow", "Database", POSTGRES_PORT),
    ("Prefect", "Database", POSTGRES_PORT),
    ("Worker", "Mlflow", MLFLOW_PORT),
    ("Gpu", "Mlflow", MLFLOW_PORT),
    ("Webhook", "Mlflow", MLFLOW_PORT),
    ("Worker", "Prefect", PREFECT_PORT),
    ("Gpu", "Prefect", PREFECT_PORT),
    ("Webhook", "Prefect", PREFECT_PORT),
    ("Mlflow", "Webhook", WEBHOOK_PORT),
)


@dataclass(frozen=True, slots=True)
class Network:
    """Where things are put: the network, its subnets, its security groups by name."""

    vpc: Ref
    subnets: list[Ref]
    groups: dict[str, GetAtt]


def add_network(template: Template) -> Network:
    """The network, its way out and its security groups."""
    vpc = template.add_resource(
        ec2.VPC("Vpc", CidrBlock=CIDR, EnableDnsSupport=True, EnableDnsHostnames=True, Tags=Tags(Name=named("vpc")))
    )
    gateway = template.add_resource(ec2.InternetGateway("Gateway"))
    attached = template.add_resource(
        ec2.VPCGatewayAttachment("GatewayAttachment", VpcId=Ref(vpc), InternetGatewayId=Ref(gateway))
    )
    routes = template.add_resource(ec2.RouteTable("Routes", VpcId=Ref(vpc)))
    template.add_resource(
        ec2.Route(
            "WayOut", RouteTableId=Ref(routes), DestinationCidrBlock="0.0.0.0/0", GatewayId=Ref(gateway),
            DependsOn=attached.title,
        )
    )  # fmt: skip
    template.add_resource(
        ec2.VPCEndpoint(
            "S3Gateway", VpcId=Ref(vpc),
            ServiceName=Sub("com.amazonaws.${AWS::Region}.s3"), RouteTableIds=[Ref(routes)],
            VpcEndpointType="Gateway",
        )
    )  # fmt: skip
    subnets = [_subnet(template, vpc, routes, number) for number in range(ZONES)]
    return Network(Ref(vpc), subnets, _groups(template, vpc))


def _subnet(template: Template, vpc: ec2.VPC, routes: ec2.RouteTable, number: int) -> Ref:
    made = template.add_resource(
        ec2.Subnet(
            f"Subnet{number}", VpcId=Ref(vpc), AvailabilityZone=Select(number, GetAZs("")),
            CidrBlock=f"10.70.{16 * number}.0/20", MapPublicIpOnLaunch=True,
        )
    )  # fmt: skip
    template.add_resource(
        ec2.SubnetRouteTableAssociation(f"Subnet{number}Routes", SubnetId=Ref(made), RouteTableId=Ref(routes))
    )
    return Ref(made)


def _groups(template: Template, vpc: ec2.VPC) -> dict[str, GetAtt]:
    https = ec2.SecurityGroupRule(IpProtocol="tcp", FromPort=443, ToPort=443, CidrIp="0.0.0.0/0")
    inside = ec2.SecurityGroupRule(IpProtocol="tcp", FromPort=0, ToPort=65535, CidrIp=CIDR)
    nothing = ec2.SecurityGroupRule(IpProtocol="tcp", FromPort=1, ToPort=1, CidrIp="127.0.0.1/32")
    groups = {}
    for name, about in GROUPS.items():
        group = ec2.SecurityGroup(
            f"{name}Group", VpcId=Ref(vpc), GroupDescription=about, SecurityGroupEgress=[https, inside]
        )
        groups[name] = GetAtt(template.add_resource(group), "GroupId")
    database = ec2.SecurityGroup(
        "DatabaseGroup", VpcId=Ref(vpc), GroupDescription="PostgreSQL: calls nobody", SecurityGroupEgress=[nothing]
    )
    groups["Database"] = GetAtt(template.add_resource(database), "GroupId")
    for source, target, port in CALLS:
        template.add_resource(_opened(f"{source}To{target}", groups[source], groups[target], port))
    groups["Door"] = _door(template, vpc, inside)
    for target, port in (("Mlflow", MLFLOW_PORT), ("Prefect", PREFECT_PORT)):
        rule = _opened(f"DoorTo{target}", groups["Door"], groups[target], port)
        rule.Condition = HAS_DOOR
        template.add_resource(rule)
    return groups


def _opened(title: str, source: GetAtt, target: GetAtt, port: int) -> ec2.SecurityGroupIngress:
    return ec2.SecurityGroupIngress(
        title, GroupId=target, SourceSecurityGroupId=source, IpProtocol="tcp", FromPort=port, ToPort=port
    )


def _door(template: Template, vpc: ec2.VPC, inside: ec2.SecurityGroupRule) -> GetAtt:
    """The load balancer's group: the only one that the world, as far as AllowedCidr goes, may call."""
    rules = [
        ec2.SecurityGroupRule(IpProtocol="tcp", FromPort=port, ToPort=port, CidrIp=Ref("AllowedCidr"))
        for port in (443, PREFECT_PORT)
    ]
    door = ec2.SecurityGroup(
        "DoorGroup", VpcId=Ref(vpc), GroupDescription="load balancer", SecurityGroupIngress=rules,
        SecurityGroupEgress=[inside], Condition=HAS_DOOR,
    )  # fmt: skip
    return GetAtt(template.add_resource(door), "GroupId")
