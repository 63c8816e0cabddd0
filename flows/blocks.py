"""The Prefect blocks that alerts go through, made from an address that never stands on a command line.

Slack and webhooks are Prefect's own blocks. For mail over SMTP Prefect ships none that can notify, and prefect-email's
is a task with a login, no notification block; `SmtpEmail` is one, over apprise, which Prefect's other blocks use too.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from prefect.blocks.notifications import (
    AppriseNotificationBlock,
    CustomWebhookNotificationBlock,
    SlackWebhook,
)
from prefect.exceptions import ObjectNotFound
from pydantic import Field, SecretStr

from components.params import UserError
from flows.report import Document

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")
SLACK = re.compile(r"https://hooks\.slack(-gov)?\.com/(services|workflows|triggers)(/[A-Za-z0-9]+)+/?")


class SmtpEmail(AppriseNotificationBlock):
    """Sends notifications as plain-text mail through an SMTP server.

    The address is apprise's: mailtos://USER:PASSWORD@HOST:587/?from=SENDER&to=ONE,ANOTHER. With mailtos:// the server's
    certificate is checked, mailto:// is not encrypted; characters such as @ in a password are written %40.
    """

    _block_type_name = "SMTP E-mail"
    _block_type_slug = "smtp-email"
    _description = "Sends notifications as plain-text mail through an SMTP server."

    url: SecretStr = Field(
        default=...,
        title="Address of the mail server and of the recipients",
        description="mailtos://USER:PASSWORD@HOST:587/?from=SENDER&to=ONE,ANOTHER",
    )

    def block_initialization(self) -> None:
        address = self.url.get_secret_value()
        # As HTML, apprise's default, the lines of a message would run together.
        self._start_apprise_client(SecretStr(f"{address}{'&' if '?' in address else '?'}format=text"))

    def takes_address(self) -> bool:
        """Whether apprise understands the address."""
        return len(self._apprise_client) == 1


Block = SlackWebhook | CustomWebhookNotificationBlock | SmtpEmail
SLUGS = {"slack": "slack-webhook", "webhook": "custom-webhook", "email": "smtp-email"}


def make_block(kind: str, address: str, name: str) -> Block:
    """A block of `kind` (slack, webhook, email) for `address`, not yet kept on the server.

    Raises:
        UserError: no such kind, or the address is none of it. The text does not repeat it: it is a secret.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"NAME: found '{name}', expected small letters, digits and '-'")
    if kind == "slack":
        if not SLACK.fullmatch(address):
            raise UserError(
                "the address is none of Slack's, expected https://hooks.slack.com/services/…; make one at "
                "https://api.slack.com/apps (Incoming Webhooks)"
            )
        return SlackWebhook(url=SecretStr(address))
    if kind == "webhook":
        if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
            raise UserError("the address is none of a webhook, expected https://HOST/…")
        # As a secret and not as `url`, which everybody sees in Prefect's pages.
        return CustomWebhookNotificationBlock.model_validate(
            {
                "name": name,
                "url": "{{address}}",
                "secrets": {"address": address},
                "json_data": {"subject": "{{subject}}", "text": "{{body}}"},
            }
        )
    if kind == "email":
        if urlsplit(address).scheme in ("mailto", "mailtos"):
            block = SmtpEmail(url=SecretStr(address))
            if block.takes_address():
                return block
        raise UserError("the address is none of mail, expected mailtos://USER:PASSWORD@HOST:587/?from=SENDER&to=WHOM")
    raise UserError(f"KIND: found '{kind}', expected one of {', '.join(SLUGS)}; others are made in Prefect's pages")


def keep_block(kind: str, name: str, address: str, replace: bool = False) -> Document:
    """Keep a block on the Prefect server, under the name that `alerts.blocks` takes.

    Raises:
        UserError: the address or the name is none, there is one already, or the server does not take it.
    """
    block = make_block(kind, address, name)
    slug = f"{SLUGS[kind]}/{name}"
    if not replace and _is_there(kind, name):
        raise UserError(f"{slug}: is there already; give it another address with --replace, or take another name")
    block.save(name, overwrite=replace, _sync=True)  # type: ignore[call-arg]
    return {"block": slug, "replaced": replace}


def _is_there(kind: str, name: str) -> bool:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        try:
            client.read_block_document_by_name(name, SLUGS[kind], include_secrets=False)
        except ObjectNotFound:
            return False
        return True
