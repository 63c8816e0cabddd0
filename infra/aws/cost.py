"""What a nightly run costs and what idling costs, from infra/aws/prices.yaml and the sizes the stack is made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from infra.aws import sizes
from infra.aws.database import SECRETS

PRICES = Path(__file__).with_name("prices.yaml")
PAGE = Path("docs/cost.md")
BEGIN, END = "<!-- computed: python -m infra.aws cost --write -->", "<!-- end -->"
MONTH_HOURS, NIGHTS = 730, 30


def read_prices(path: Path = PRICES) -> dict[str, Any]:
    """The table of prices and assumptions."""
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def servers_hour(prices: dict[str, Any]) -> float:
    """USD for an hour of all servers, awake, with their addresses; without the database."""
    hour, total = prices["hour"], 0.0
    for size in sizes.SERVERS:
        compute = size.cpu / 1024 * hour["fargate_vcpu"] + size.memory / 1024 * hour["fargate_gb"]
        compute += (size.disk_gb - 20) * hour["fargate_disk_gb"]
        total += compute * (prices["fargate_spot_share"] if size.spot else 1) + hour["public_address"]
    return total


def database_hour(prices: dict[str, Any]) -> float:
    """USD for an hour of Aurora while somebody is connected."""
    return float(sizes.AURORA_AWAKE * prices["hour"]["aurora_acu"])


def idle_month(prices: dict[str, Any]) -> dict[str, float]:
    """USD a month with everything asleep, by component."""
    month, assumed = prices["month"], prices["assumed"]
    return {
        "servers, GPU machines (none)": 0.0,
        "Aurora, paused": 0.0,
        f"database, {assumed['database_gb']} GB": assumed["database_gb"] * month["aurora_gb"],
        f"S3, {assumed['data_gb']} GB": assumed["data_gb"] * month["s3_gb"],
        f"images, {assumed['image_gb']} GB": assumed["image_gb"] * month["image_gb"],
        f"{len(SECRETS)} secrets": len(SECRETS) * month["secret"],
        "key": month["key"],
        "private names": month["name_zone"],
    }


def night(prices: dict[str, Any], machine: str, spot: bool) -> dict[str, float]:
    """Hours and USD of one nightly run of ecg-llama-11b on `machine`."""
    row, assumed = prices["gpu_hour"][machine], prices["assumed"]
    gpu_hours = prices["training_hours"][row["gpu"]] + assumed["overhead_hours"]
    awake = gpu_hours + assumed["hours_awake_after_run"]
    gpu = gpu_hours * (row["spot" if spot else "on_demand"] + prices["hour"]["public_address"])
    servers = awake * (servers_hour(prices) + database_hour(prices))
    return {"gpu_hours": gpu_hours, "gpu": gpu, "awake": awake, "servers": servers, "total": gpu + servers}


def breakeven_hours(prices: dict[str, Any]) -> float:
    """Hours a day above which the small instance is cheaper than Aurora."""
    month, assumed = prices["month"], prices["assumed"]
    instance = prices["hour"][sizes.INSTANCE_CLASS] * MONTH_HOURS + sizes.INSTANCE_STORAGE_GB * month["database_gb"]
    return float((instance - assumed["database_gb"] * month["aurora_gb"]) / database_hour(prices) / NIGHTS)


def tables(prices: dict[str, Any]) -> str:
    """The computed part of docs/cost.md."""
    lines = ["| nightly run of `ecg-llama-11b` | GPU hours | GPU | servers awake | servers, database | a night |"]
    lines.append("|---|---|---|---|---|---|")
    for machine in prices["gpu_hour"]:
        for spot in (True, False):
            one = night(prices, machine, spot)
            lines.append(
                f"| {machine}, {'spot' if spot else 'on demand'} | {one['gpu_hours']:.1f} | {one['gpu']:.2f} "
                f"| {one['awake']:.1f} h | {one['servers']:.2f} | **{one['total']:.2f}** |"
            )
    idle = idle_month(prices)
    lines += ["", "| idle, a month | USD |", "|---|---|"]
    lines += [f"| {name} | {usd:.2f} |" for name, usd in idle.items()]
    lines.append(f"| **all** | **{sum(idle.values()):.2f}** |")
    awake = servers_hour(prices) + database_hour(prices)
    door = (prices["hour"]["load_balancer"] + 3 * prices["hour"]["public_address"]) * MONTH_HOURS
    lines += [
        "",
        f"An hour awake: {awake:.2f} USD (servers {servers_hour(prices):.2f}, Aurora {database_hour(prices):.2f}); "
        f"always awake: {awake * MONTH_HOURS:.0f} USD a month. The load balancer (`CertificateArn`): {door:.0f} USD a "
        f"month. `Database=instance` is cheaper from {breakeven_hours(prices):.1f} hours awake a day on.",
    ]
    return "\n".join(lines)


def page(text: str, prices: dict[str, Any]) -> str:
    """`text` of docs/cost.md with its computed part made anew."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{tables(prices)}\n{END}{rest.partition(END)[2]}"
