"""S3's client and what its errors say: each against an answer of a server, most of them of rclone's or moto's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from s3_servers import Front, client, error, front, moto, rclone, self_signed, use

from components import s3
from components.params import UserError
from components.s3 import Unavailable, s3_client, settings, shared_environment, split_s3, told, transfer_config

KMS = "arn:aws:kms:eu-central-1:111122223333:key/1234"


@pytest.fixture(scope="module")
def rclone_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "bucket").mkdir()
    with rclone(folder) as url:
        yield url


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.fixture(scope="module")
def failing() -> Iterator[Front]:
    with front() as found:
        yield found


def said(operation: Any, kind: type[UserError] = UserError) -> str:
    """What the user is told when `operation(client)` fails."""
    with pytest.raises(UserError) as caught, told("KEY: 's3://bucket/a'", "bucket", "a/b"):
        operation(client())
    assert type(caught.value) is kind
    assert str(caught.value).startswith("KEY: 's3://bucket/a': ")
    return str(caught.value)


def put(client: Any) -> None:
    client.put_object(Bucket="bucket", Key="a/b", Body=b"x")


def get(client: Any) -> None:
    client.get_object(Bucket="bucket", Key="a/b")["Body"].read()


def test_nothing_missing_and_nobody_strange_at_a_server_that_checks(
    rclone_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, rclone_url)
    missing = f"there is no bucket 'other' at {rclone_url}; .*ecg team bucket other"
    with pytest.raises(UserError, match=missing), told("KEY: 's3://other/a'", "other", "a/"):
        client().list_objects_v2(Bucket="other")
    assert "there is no 'a/b' in bucket 'bucket'; mind the prefix" in said(get)
    use(monkeypatch, rclone_url, AWS_SECRET_ACCESS_KEY="another")
    told_so = said(put)
    assert "the secret does not belong to the access key AKIA…TEST (from env); set its own" in told_so
    assert "another" not in told_so
    use(monkeypatch, rclone_url, AWS_ACCESS_KEY_ID="AKIANOBODY00000000")
    assert f"{rclone_url} does not know the access key AKIA…0000 (from env); expected one that was made" in said(put)


def test_a_clock_that_is_off_is_told_by_its_seconds(rclone_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """rclone answers with AccessDenied, Amazon with RequestTimeTooSkewed; both date their answer."""
    import botocore.auth

    signed, now = botocore.auth.get_current_datetime, s3._now
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: signed() - timedelta(hours=2))
    monkeypatch.setattr(s3, "_now", lambda: now() - timedelta(hours=2))
    use(monkeypatch, rclone_url)
    found = said(put)
    assert "this machine's clock is 7" in found
    assert f"s behind that of {rclone_url} (here " in found
    assert "expected at most 900 s: set it" in found


def answered(failing: Front, monkeypatch: pytest.MonkeyPatch, *answer: Any, **more: str) -> None:
    use(monkeypatch, failing.url, **more)
    failing.judge = lambda method, path: error(*answer)


AMAZON_DENIES = (
    "User: arn:aws:iam::1:user/t is not authorized to perform: s3:PutObject on resource: "
    '"arn:aws:s3:::bucket/a/b" because no identity-based policy allows the s3:PutObject action'
)
KMS_DENIES = "User: u is not authorized to perform: kms:GenerateDataKey on resource: arn:aws:kms:x because none"


@pytest.mark.parametrize(
    ("answer", "kind", "parts"),
    [
        ((403, "AccessDenied", "Access Denied"), UserError, ["may not s3:PutObject on arn:aws:s3:::bucket/a/b ("]),
        ((403, "AccessDenied", AMAZON_DENIES), UserError, ["may not s3:PutObject on arn:aws:s3:::bucket/a/b ("]),
        ((403, "AccessDenied", KMS_DENIES), UserError, ["key that encrypts", "ECG_S3_KMS_KEY is not set"]),
        ((400, "KMS.NotFoundException", "no such key"), UserError, ["key that encrypts", "kms:GenerateDataKey and"]),
        ((400, "ExpiredToken", "expired"), UserError, ["have run out (ExpiredToken: expired); get new ones"]),
        (
            (301, "PermanentRedirect", "elsewhere", {"x-amz-bucket-region": "eu-central-1"}),
            UserError,
            ["is in region eu-central-1, but AWS_REGION is us-east-1; set AWS_REGION=eu-central-1"],
        ),
        (
            (403, "RequestTimeTooSkewed", "skew", {"Date": "Fri, 01 Jan 2100 00:00:00 GMT"}),
            UserError,
            ["s behind that of http", "there 2100-01-01 00:00:00 UTC"],
        ),
        ((507, "XMinioStorageFull", "no space"), Unavailable, ["is full (XMinioStorageFull: no space)"]),
        ((507, "InsufficientStorage", "none"), Unavailable, ["is full (InsufficientStorage"]),
        ((400, "QuotaExceeded", "none"), Unavailable, ["is full (QuotaExceeded"]),
        ((503, "SlowDown", "reduce"), Unavailable, ["answers 503 SlowDown (reduce) after 1 attempts; wait"]),
        ((500, "InternalError", "oops"), Unavailable, ["answers 500 InternalError (oops) after 1 attempts"]),
        ((400, "BadDigest", "other"), UserError, ["were changed on the way"]),
        ((411, "MissingContentLength", ""), UserError, ["AWS_REQUEST_CHECKSUM_CALCULATION=when_required"]),
        ((418, "Teapot", "short and stout"), UserError, ["answers 418 Teapot (short and stout)"]),
    ],
)  # fmt: skip
def test_a_refusal_says_what_to_do(
    answer: Any, kind: type[UserError], parts: list[str], failing: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(failing, monkeypatch, *answer)
    found = said(put, kind)
    for part in parts:
        assert part in found


def test_a_denied_listing_names_the_bucket_and_its_own_action(failing: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(failing, monkeypatch, 403, "AccessDenied", "Access Denied")
    assert "may not s3:ListBucket on arn:aws:s3:::bucket (" in said(lambda c: c.list_objects_v2(Bucket="bucket"))
    assert "may not s3:DeleteObject on arn:aws:s3:::bucket/a/b (" in said(
        lambda c: c.delete_object(Bucket="bucket", Key="a/b")
    )


def test_what_is_no_s3_is_told(failing: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, failing.url)
    failing.judge = lambda method, path: (200, {"Content-Type": "text/html"}, b"<html><p>Welcome</html>")
    told_so = said(lambda c: c.list_objects_v2(Bucket="bucket"), Unavailable)
    assert "answers 500 with a web page, as S3 does not: correct AWS_ENDPOINT_URL" in told_so


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "http://127.0.0.1:9")
    found = said(put, Unavailable)
    assert "http://127.0.0.1:9 cannot be reached ([Errno 111] Connection refused); look at AWS_ENDPOINT_URL" in found


def test_no_credentials_at_all(rclone_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, rclone_url)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "found no whole credentials" in said(put)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    with pytest.raises(UserError, match=r"S3: found no whole credentials .*missing: AWS_SECRET_ACCESS_KEY"):
        s3_client()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match=r"S3: AWS_PROFILE: .*nobody.* expected one of ~/\.aws/config"):
        s3_client()


def test_over_tls_without_its_ca_and_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """rclone takes no checksums behind the body, which is how boto3 sends them over TLS by itself."""
    (tmp_path / "data" / "bucket").mkdir(parents=True)
    certificate, key = self_signed(tmp_path)
    with rclone(tmp_path / "data", certificate, key) as url:
        use(monkeypatch, url)
        found = said(put, Unavailable)
        assert f"{url} shows a certificate that is not trusted here" in found
        assert "give its CA: AWS_CA_BUNDLE=FILE.pem" in found
        use(monkeypatch, url, AWS_CA_BUNDLE=str(certificate))
        put(client())
        get(client())
        use(monkeypatch, url, AWS_CA_BUNDLE=str(certificate), AWS_REQUEST_CHECKSUM_CALCULATION="when_supported")
        assert "needs AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in said(put)


def test_tls_to_a_server_that_speaks_none(rclone_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, rclone_url.replace("http:", "https:"))
    assert "speaks no TLS" in said(put, Unavailable)


def test_a_server_that_is_busy_is_asked_again(failing: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    use(monkeypatch, failing.url, AWS_MAX_ATTEMPTS="4")
    failing.asked.clear()
    failing.judge = lambda method, path: error(503, "SlowDown") if len(failing.asked) < 4 else (200, {"ETag": "x"}, b"")
    put(s3_client())
    assert len(failing.asked) == 4
    waited = [seconds for seconds in waited if seconds]
    assert len(set(waited)) == 3, "each wait is drawn anew"
    assert all(0 < seconds < 2**attempt for attempt, seconds in enumerate(waited))


def test_a_large_file_goes_in_parts_and_comes_back(
    rclone_url: str, moto_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 * 1024**2)
    data = os.urandom(11 * 1024**2)
    (tmp_path / "large").write_bytes(data)
    for behind in (rclone_url, moto_url):
        with front(behind) as between:
            use(monkeypatch, between.url)
            client = s3_client()
            if behind == moto_url:
                client.create_bucket(Bucket="bucket")
            client.upload_file(str(tmp_path / "large"), "bucket", "a/large", Config=transfer_config())
            client.download_file("bucket", "a/large", str(tmp_path / "back"), Config=transfer_config())
            assert (tmp_path / "back").read_bytes() == data
            assert sum("partNumber" in path for _, path in between.asked) == 3


def test_every_write_is_encrypted_by_the_key(moto_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, moto_url, ECG_S3_KMS_KEY=KMS)
    monkeypatch.setattr(s3, "PART_BYTES", 5 * 1024**2)
    (tmp_path / "large").write_bytes(bytes(6 * 1024**2))
    client = s3_client()
    client.create_bucket(Bucket="secret")
    client.put_object(Bucket="secret", Key="put", Body=b"x")
    client.upload_file(str(tmp_path / "large"), "secret", "parts", Config=transfer_config())
    client.copy_object(Bucket="secret", Key="copied", CopySource="secret/put")
    for key in ("put", "parts", "copied"):
        found = client.head_object(Bucket="secret", Key=key)
        assert (found["ServerSideEncryption"], found["SSEKMSKeyId"]) == ("aws:kms", KMS), key


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ENDPOINT_URL", "minio:9000"),
        ("AWS_ENDPOINT_URL", "ftp://here"),
        ("AWS_MAX_ATTEMPTS", "0"),
        ("AWS_REQUEST_CHECKSUM_CALCULATION", "never"),
    ],
)
def test_a_setting_that_is_none(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{name}: found '{value}', expected"):
        settings({name: value})


def test_checksums_are_sent_to_amazon_and_elsewhere_where_asked_for() -> None:
    assert settings({}).checksums == "when_supported"
    assert settings({"AWS_ENDPOINT_URL": "https://s3.eu-central-1.amazonaws.com"}).checksums == "when_supported"
    assert settings({"AWS_ENDPOINT_URL": "https://s3.example.org"}).checksums == "when_required"
    asked = {"AWS_ENDPOINT_URL": "https://s3.example.org", "AWS_REQUEST_CHECKSUM_CALCULATION": "when_supported"}
    assert settings(asked).checksums == "when_supported"


def test_other_programs_are_given_what_they_read() -> None:
    found = shared_environment({"AWS_REGION": "eu-central-1", "AWS_ENDPOINT_URL": "http://s3:8333"})
    assert found["AWS_DEFAULT_REGION"] == "eu-central-1"
    assert found["AWS_REQUEST_CHECKSUM_CALCULATION"] == found["AWS_RESPONSE_CHECKSUM_VALIDATION"] == "when_required"
    assert "AWS_MAX_ATTEMPTS" not in shared_environment({"AWS_MAX_ATTEMPTS": "2"})


@pytest.mark.parametrize("address", ["s3://bucket", "s3://", "bucket/prefix", "http://bucket/prefix"])
def test_an_address_without_bucket_and_prefix(address: str) -> None:
    with pytest.raises(UserError, match=f"KEY: found '{address}', expected s3://BUCKET/PREFIX"):
        split_s3(address, "KEY")
