"""S3 as all of the project speaks to it: one client with one set of settings, and what its errors mean.

Settings are boto3's own wherever it has one, so that DVC's remote and MLflow's artifacts obey them too:
AWS_ENDPOINT_URL, AWS_REGION, keys, profiles and roles, AWS_CA_BUNDLE, AWS_MAX_ATTEMPTS,
AWS_REQUEST_CHECKSUM_CALCULATION, and addressing_style of ~/.aws/config. ECG_S3_KMS_KEY is ours (docs/storage.md).

Retries are botocore's `standard` mode: a random share of 1, 2, 4, 8 … s between the attempts (full jitter), and a quota
on retries so that a dead server is not stormed. Its `adaptive` mode would also hold back first requests whenever one
was throttled, for all prefixes of the client alike.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from components.params import UserError

SCHEME = "s3://"
ATTEMPTS = 5
CONNECT_SECONDS, READ_SECONDS = 10, 60
CONNECTIONS = 32
PART_BYTES = 64 * 1024**2  # 10,000 parts are what S3 takes at most: 625 GiB
PARTS_AT_ONCE = 4
SKEW_SECONDS = 900  # what S3 takes as the same time
MISSING = "mind the prefix, or put it there again"

_WRITES = ("PutObject", "CreateMultipartUpload", "CopyObject")
_FULL = ("XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage", "QuotaExceeded", "507")
_SKEWED = ("RequestTimeTooSkewed", "RequestInTheFuture", "RequestExpired")
_DENIED = ("AccessDenied", "AllAccessDisabled", "AccountProblem", "403")
_ELSEWHERE = (
    *("PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
    *("IncorrectEndpoint", "TemporaryRedirect"),
)
_EXPIRED = ("ExpiredToken", "TokenRefreshRequired", "InvalidToken", "ExpiredTokenException")
_CHANGED_ON_THE_WAY = ("BadDigest", "InvalidDigest", "IncompleteBody", "XAmzContentSHA256Mismatch")
_CHECKSUMS_UNKNOWN = ("MissingContentLength", "NotImplemented", "411", "501")
# The permission behind an operation of S3, where it has another name.
_ACTIONS = {
    "ListObjectsV2": "ListBucket",
    "HeadBucket": "ListBucket",
    "ListObjectVersions": "ListBucketVersions",
    "ListMultipartUploads": "ListBucketMultipartUploads",
    "HeadObject": "GetObject",
    "CreateMultipartUpload": "PutObject",
    "UploadPart": "PutObject",
    "CompleteMultipartUpload": "PutObject",
    "DeleteObjects": "DeleteObject",
    "GetObjectLockConfiguration": "GetBucketObjectLockConfiguration",
    "PutObjectLockConfiguration": "PutBucketObjectLockConfiguration",
}
_OF_THE_BUCKET = ("Bucket", "ListBucket", "ListObject", "ListMultipart", "ObjectLockConfiguration")


class Unavailable(UserError):
    """S3 is not there now: it cannot be reached, is overloaded, broken or full. It may be later."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is ours to decide about the client; all else boto3 finds by itself."""

    endpoint: str | None  # None: Amazon's
    region: str | None
    kms_key: str | None  # id, alias or ARN; None: as the bucket encrypts by default
    checksums: str  # when_supported: CRC32 with every write; when_required: where S3 insists
    attempts: int


def settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of `environment`.

    Raises:
        UserError: one is not what it must be.
    """
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or None
    if endpoint and (urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname):
        raise UserError(f"AWS_ENDPOINT_URL: found '{endpoint}', expected http(s)://HOST[:PORT]")
    attempts = environment.get("AWS_MAX_ATTEMPTS") or str(ATTEMPTS)
    if not attempts.isdigit() or int(attempts) < 1:
        raise UserError(f"AWS_MAX_ATTEMPTS: found '{attempts}', expected a whole number from 1")
    # Amazon takes checksums in a trailer behind the body, which is how they are sent over TLS. Many other servers do
    # not; TLS and the signed SHA-256 of plain http keep the bytes there, and all we store carries its hash.
    checksums = environment.get("AWS_REQUEST_CHECKSUM_CALCULATION") or (
        "when_supported" if is_amazon(endpoint) else "when_required"
    )
    if checksums not in ("when_supported", "when_required"):
        raise UserError(
            f"AWS_REQUEST_CHECKSUM_CALCULATION: found '{checksums}', expected when_supported or when_required"
        )
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or None
    return Settings(endpoint, region, environment.get("ECG_S3_KMS_KEY") or None, checksums, int(attempts))


def is_amazon(endpoint: str | None) -> bool:
    host = urlsplit(endpoint or "").hostname or ""
    return not endpoint or host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def shared_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The settings under the names that DVC's and MLflow's own clients read, as far as they are not set.

    They read AWS_DEFAULT_REGION and not AWS_REGION, and send checksums in trailers unless told not to.
    """
    found = settings(environment)
    wanted = {
        "AWS_DEFAULT_REGION": found.region,
        "AWS_REQUEST_CHECKSUM_CALCULATION": found.checksums,
        "AWS_RESPONSE_CHECKSUM_VALIDATION": found.checksums,
        "AWS_RETRY_MODE": "standard",
        "AWS_MAX_ATTEMPTS": str(found.attempts),
    }
    return {name: value for name, value in wanted.items() if value and not environment.get(name)}


def s3_client() -> Any:
    """A client of boto3 as the settings say; whatever it writes is encrypted as they say.

    Raises:
        UserError: a setting is not what it must be, or the profile is none.
    """
    import boto3
    from botocore.config import Config

    found = settings()
    mode: Any = os.environ.get("AWS_RETRY_MODE") or "standard"
    config = Config(
        retries={"mode": mode, "total_max_attempts": found.attempts},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=CONNECTIONS,
        request_checksum_calculation=found.checksums,
        response_checksum_validation=found.checksums,
    )
    with told("S3", "", ""):
        # A session of its own: boto3's common one keeps the keys that it found first.
        client = boto3.Session().client("s3", region_name=found.region, config=config)
    if found.kms_key:
        encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": found.kms_key, "BucketKeyEnabled": True}

        def encrypt(params: dict[str, Any], **_: Any) -> None:
            params.update(encryption)

        for operation in _WRITES:
            client.meta.events.register(f"provide-client-params.s3.{operation}", encrypt)
    return client


def transfer_config() -> Any:
    """How files go to S3 and come from it: in parts from 64 MiB on, four at once."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=PARTS_AT_ONCE)


def split_s3(address: str, key: str) -> tuple[str, str]:
    """Bucket and prefix of s3://BUCKET/PREFIX; `key` of params.yaml or the setting names it in the error."""
    bucket, _, prefix = address.removeprefix(SCHEME).strip("/").partition("/")
    if not address.startswith(SCHEME) or not bucket or not prefix:
        raise UserError(f"{key}: found '{address}', expected s3://BUCKET/PREFIX")
    return bucket, prefix


@contextmanager
def told(what: str, bucket: str, object_key: str, missing: str = MISSING) -> Iterator[None]:
    """S3's errors in the block as errors of the user's, opened by `what`: the setting and its address.

    `missing` says what to do where the object is not there.

    Raises:
        Unavailable: it may go well later.
        UserError: it will not, before something is mended.
    """
    try:
        yield
    except _s3_errors() as error:
        kind = Unavailable if is_away(error) else UserError
        raise kind(f"{what}: {explain_s3(error, bucket, object_key, missing)}") from error


def s3_code(error: Exception) -> str:
    """S3's own word for what went wrong; empty where it did not answer."""
    response: dict[str, Any] = getattr(_cause(error), "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def is_away(error: Exception) -> bool:
    """Whether the same request may go well later, with nothing mended here."""
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, IncompleteReadError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    error = _cause(error)
    if isinstance(error, ClientError):
        status = _status(error)
        busy = s3_code(error) in ("SlowDown", "RequestTimeout", *_FULL)
        return busy or status == 429 or (status >= 500 and status != 501)
    return isinstance(error, (ConnectionError, HTTPClientError, HTTPError, IncompleteReadError, ResponseParserError))


def explain_s3(error: Exception, bucket: str, object_key: str, missing: str = MISSING) -> str:
    """What an error of boto3 means and what to do about it."""
    from botocore.exceptions import ClientError

    error = _cause(error)
    if isinstance(error, ClientError):
        return _explain_answer(error, bucket, object_key, missing)
    return _explain_silence(error)


def _explain_answer(error: Any, bucket: str, object_key: str, missing: str) -> str:
    """S3 answered, and it was no."""
    code, status, where = s3_code(error), _status(error), _where()
    says = str(error.response.get("Error", {}).get("Message") or "no more")
    if "html" in _headers(error).get("content-type", ""):
        return (
            f"{where} answers {status} with a web page, as S3 does not: correct AWS_ENDPOINT_URL, or wait if a proxy "
            "before it says that it is away"
        )
    if code in _SKEWED or (status in (400, 403) and abs(_skew(error) or 0.0) > SKEW_SECONDS):  # some only deny
        return _explain_skew(error)
    if code.startswith("KMS.") or "kms:" in says.lower():
        return _explain_kms(code, says)
    if code in _DENIED:
        return _explain_denial(error, bucket, object_key, says)
    if code in _ELSEWHERE:
        return _explain_region(error, bucket, says)
    if code in _EXPIRED:
        return f"the temporary credentials of {_who()} have run out ({code}: {says}); get new ones"
    if code in _FULL:
        return f"{where} is full ({code}: {says}); expected room for more: delete there, or raise the quota"
    if code in _CHANGED_ON_THE_WAY:
        return f"the bytes of '{object_key}' were changed on the way ({code}: {says}); try again"
    if code in _CHECKSUMS_UNKNOWN:
        return (
            f"{where} cannot do what was asked ({code}: {says}); a server that does not know checksums behind the body "
            "needs AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
        )
    match code:
        case "NoSuchKey" | "404" if object_key:
            return f"there is no '{object_key}' in bucket '{bucket}'; {missing}"
        case "NoSuchBucket" | "404":
            return (
                f"there is no bucket '{bucket}' at {where}; expected one that exists: mind its name and "
                f"AWS_ENDPOINT_URL, or make it with: ecg team bucket {bucket}"
            )
        case "InvalidBucketName":
            return f"found bucket '{bucket}', expected 3 to 63 small letters, digits, '-' and '.'"
        case "BucketAlreadyExists":
            return f"the name '{bucket}' is taken by another account of {where}; choose another"
        case "InvalidBucketState" | "ObjectLockConfigurationNotFoundError":
            return (
                f"bucket '{bucket}' is there without object lock ({says}); expected one made with it, as it cannot be "
                "added to every server's buckets later: choose another name"
            )
        case "InvalidAccessKeyId":
            return (
                f"{where} does not know {_who()}; expected one that was made there: look at AWS_ACCESS_KEY_ID, the "
                "profile (AWS_PROFILE) and AWS_ENDPOINT_URL"
            )
        case "SignatureDoesNotMatch":
            return f"the secret does not belong to {_who()}; set its own as AWS_SECRET_ACCESS_KEY or in the profile"
    if status >= 500 or status == 429 or code == "SlowDown":
        tries = int(error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)) + 1
        return f"{where} answers {status} {code} ({says}) after {tries} attempts; wait, and do it again"
    return f"{where} answers {status} {code} ({says}) to {error.operation_name} of '{bucket}/{object_key}'"


def _explain_denial(error: Any, bucket: str, object_key: str, says: str) -> str:
    """Amazon names action and resource in its message; of other servers they are told by what was asked."""
    named = re.search(r"perform: (\S+) on resource: \"?([^\s\"]+)", says)
    operation = _ACTIONS.get(error.operation_name, error.operation_name)
    whole = any(part in operation for part in _OF_THE_BUCKET)
    resource = f"arn:aws:s3:::{bucket}" + ("" if whole or not object_key else f"/{object_key}")
    action = f"s3:{operation}"
    if named:
        action, resource = named[1], named[2]
    return (
        f"access is denied: {_who()} may not {action} on {resource} ({says}); expected a policy that allows it "
        "(docs/storage.md)"
    )


def _explain_kms(code: str, says: str) -> str:
    found = settings().kms_key
    key = f"ECG_S3_KMS_KEY is '{found}'" if found else "ECG_S3_KMS_KEY is not set, so it is the bucket's own"
    return (
        f"the key that encrypts cannot be used ({code}: {says}); {key}; expected an enabled key of the bucket's "
        "region, with kms:GenerateDataKey and kms:Decrypt for this role"
    )


def _explain_skew(error: Any) -> str:
    seconds = _skew(error)
    if seconds is None:
        return f"this machine's clock is off by more than {SKEW_SECONDS} s; set it (timedatectl set-ntp true)"
    here = _now()
    there = here - timedelta(seconds=seconds)
    return (
        f"this machine's clock is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} that of {_where()} "
        f"(here {here:%Y-%m-%d %H:%M:%S}, there {there:%Y-%m-%d %H:%M:%S} UTC); expected at most {SKEW_SECONDS} s: set "
        "it (timedatectl set-ntp true)"
    )


def _skew(error: Any) -> float | None:
    """By how many seconds this machine's clock is ahead of that of the server, which dates its answers."""
    try:
        there = parsedate_to_datetime(_headers(error)["date"])
    except (KeyError, ValueError):
        return None
    return (_now() - there).total_seconds()


def _now() -> datetime:
    return datetime.now(UTC)


def _explain_region(error: Any, bucket: str, says: str) -> str:
    details = error.response.get("Error", {})
    region = _headers(error).get("x-amz-bucket-region") or details.get("Region")
    mine = settings().region or "not set"
    if not region:
        return f"bucket '{bucket}' is in another region ({says}); AWS_REGION is {mine}: set the bucket's"
    return f"bucket '{bucket}' is in region {region}, but AWS_REGION is {mine}; set AWS_REGION={region}"


def _explain_silence(error: Exception) -> str:
    """There was no answer of S3's."""
    from botocore import exceptions

    match error:
        case exceptions.NoCredentialsError() | exceptions.PartialCredentialsError():
            return (
                f"found no whole credentials ({error}); expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a "
                "profile (AWS_PROFILE) or a role of this machine"
            )
        case exceptions.ProfileNotFound():
            return f"AWS_PROFILE: {error}; expected one of ~/.aws/config, or AWS_ACCESS_KEY_ID and its secret"
        case exceptions.SSLError():
            plain = "WRONG_VERSION_NUMBER" in str(error) or "record layer failure" in str(error)
            what = "speaks no TLS, or another one" if plain else "shows a certificate that is not trusted here"
            advice = "set AWS_ENDPOINT_URL=http://…" if plain else "give its CA: AWS_CA_BUNDLE=FILE.pem"
            return f"{_where()} {what} ({_reason(error)}); {advice}, if this is the server that you mean"
        case exceptions.ReadTimeoutError():
            return f"{_where()} does not answer within {READ_SECONDS} s; wait, and look at AWS_ENDPOINT_URL"
        case exceptions.ProxyConnectionError():
            return f"the proxy on the way to {_where()} does not answer ({_reason(error)}); look at HTTPS_PROXY"
        case exceptions.HTTPClientError() | exceptions.ConnectionError():
            return f"{_where()} cannot be reached ({_reason(error)}); look at AWS_ENDPOINT_URL and the network"
        case exceptions.FlexibleChecksumError():
            return f"the bytes that came are not those that were put there ({error}); try again"
        case exceptions.ParamValidationError():
            return f"{error}; correct the bucket's name or the prefix"
    if type(error).__name__ == "ResponseParserError":
        return f"what answers at {_where()} is no S3; correct AWS_ENDPOINT_URL"
    return f"{type(error).__name__}: {error}"


def _reason(error: Exception) -> str:
    """The innermost reason, without the URL, which is long and names the object."""
    text = str(getattr(error, "kwargs", {}).get("error") or error.__cause__ or error)
    for wanted in (r"\[Errno -?\d+\] [^'\")]+", r"\[SSL[^\]]*\] [^(]+", r"timed out", r"Connection [a-z ]+"):
        if found := re.search(wanted, text):
            return found[0].strip()
    return type(error).__name__


def _where() -> str:
    return settings().endpoint or "Amazon S3"


def _who() -> str:
    """The access key in use, shortened, and where it was found; never its secret."""
    import boto3

    found = boto3.Session().get_credentials()
    if found is None:
        return "the access key"
    name = found.access_key
    short = name if len(name) <= 8 else f"{name[:4]}…{name[-4:]}"
    return f"the access key {short} (from {found.method})"


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _headers(error: Any) -> dict[str, str]:
    found: dict[str, str] = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return found


def _cause(error: Exception) -> Exception:
    """boto3's transfers wrap the error that says what happened."""
    from boto3.exceptions import Boto3Error

    while isinstance(error, Boto3Error) and isinstance(error.__cause__ or error.__context__, Exception):
        error = error.__cause__ or error.__context__
    return error


def _s3_errors() -> tuple[type[Exception], ...]:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    return (Boto3Error, BotoCoreError, ClientError, ResponseParserError, HTTPError)
