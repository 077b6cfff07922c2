"""S3, or any store that speaks its protocol, as a `Storage`.

Endpoint and keys come from the usual AWS environment variables alone; no message holds a key.

What a busy network does to a request is lived through: botocore repeats those that fail or are not
answered; bodies that break off are read again here, and uploads whose parts are lost begin anew.
Small objects carry their MD5, which the server checks before it stores them.
"""

import base64
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, BinaryIO

from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from boto3.session import Session
from botocore import exceptions as aws
from botocore.config import Config

from pipeline.errors import Outage, UserError
from pipeline.storage.base import Entry, ObjectError, Storage

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 60
_FIRST_TIMEOUT_S = 8
"""The read timeout of a process's first request, which is small, while a user waits."""
_ATTEMPTS = 10
"""Tries of one request, with growing pauses of up to 20 s: a minute or two of outage in all."""
_UPLOADS = 4
"""Tries of one upload as a whole."""
_TRANSFER = TransferConfig(max_concurrency=4)
"""Each of the concurrent parts is held in memory: 8 MiB."""
_LOST_UPLOAD = ("NoSuchUpload", "InvalidPart", "InvalidPartOrder", "RequestTimeout")
_NOT_OFFERED = ("NotImplemented", "MethodNotAllowed", "501", "405")
_OF_ONE_OBJECT = ("AccessDenied", "403", "Forbidden", "InvalidObjectState", "KeyTooLongError")
"""Refusals that say nothing of the bucket's other objects; the fourth: it lies in an archive."""
_VARIABLES = (
    "AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, "
    "AWS_DEFAULT_REGION, AWS_PROFILE"
)
_CONNECT_LOCK = threading.Lock()


class S3Storage(Storage):
    """A prefix in a bucket. Connects at the first use, in each process anew."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._root = f"{prefix}/" if prefix else ""
        self._connected: Any = None
        self.uri = f"s3://{bucket}/{prefix}".removesuffix("/")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connected": None}

    def _read(self, path: str) -> bytes:
        return self._get(path)[0]

    def _read_range(self, path: str, offset: int, length: int) -> bytes:
        if length == 0:  # HTTP has no empty range
            self._size(path)  # raises when there is no such object
            return b""
        try:
            return self._get(path, Range=f"bytes={offset}-{offset + length - 1}")[0]
        except aws.ClientError as error:
            if _code(error) in ("InvalidRange", "416"):  # it begins after the object's end
                return b""
            raise

    def _get(self, path: str, **range_: str) -> tuple[bytes, str]:
        """Reads an object and its ETag. botocore retries requests, but not a body that breaks off.

        Nor does it notice one that ends early when the server did not announce its length.
        """
        for attempt in range(_ATTEMPTS):
            response = self._client.get_object(Bucket=self._bucket, Key=self._root + path, **range_)
            try:
                data = response["Body"].read()
                if len(data) != response.get("ContentLength", len(data)):
                    raise aws.IncompleteReadError(
                        actual_bytes=len(data), expected_bytes=response["ContentLength"]
                    )
                return data, response["ETag"]
            except (aws.HTTPClientError, aws.IncompleteReadError):
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(min(5.0, 0.1 * 2**attempt))
        raise AssertionError("the last attempt returns or raises")

    def _write(self, path: str, data: bytes, **condition: str) -> None:
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        self._client.put_object(
            Bucket=self._bucket, Key=self._root + path, Body=data, ContentMD5=digest, **condition
        )

    def _create(self, path: str, data: bytes) -> bool:
        return self._put_if(path, data, IfNoneMatch="*")

    def _replace(self, path: str, data: bytes, expected: bytes) -> bool:
        found, etag = self._get(path)
        return found == expected and self._put_if(path, data, IfMatch=etag)

    def _put_if(self, path: str, data: bytes, **condition: str) -> bool:
        try:
            self._write(path, data, **condition)
        except aws.ClientError as error:
            code = _code(error)
            if code in ("NoSuchKey", "404"):
                return False
            if code in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                # The store says so too when only the answer to the first request got lost.
                return self._holds(path, data)
            if code not in _NOT_OFFERED:
                raise
            # A store without conditional writes: two at the same moment could both succeed here.
            if "IfNoneMatch" in condition and self._holds(path, None):
                return False
            self._write(path, data)
        return True

    def _holds(self, path: str, data: bytes | None) -> bool:
        """Whether an object holds these bytes; None takes any."""
        try:
            found, _ = self._get(path)
        except aws.ClientError as error:
            if _code(error) in ("NoSuchKey", "404"):
                return False
            raise
        return data is None or found == data

    def _upload(self, path: str, local: BinaryIO) -> None:
        size = local.seek(0, os.SEEK_END)
        for attempt in range(_UPLOADS):
            local.seek(0)
            try:
                # boto3 would close the caller's file; it aborts the upload's parts when one fails.
                unclosed: Any = SimpleNamespace(read=local.read, seek=local.seek, tell=local.tell)
                unclosed.close = lambda: None
                key = self._root + path
                self._client.upload_fileobj(unclosed, self._bucket, key, Config=_TRANSFER)
                if self._size(path) == size:
                    return
                problem: object = "its size is wrong"
            except (aws.ClientError, S3UploadFailedError) as error:
                cause = error if isinstance(error, aws.ClientError) else error.__context__
                # The completion of an upload may have succeeded, and only its answer got lost.
                lost = isinstance(cause, aws.ClientError) and _code(cause) in _LOST_UPLOAD
                if not lost or attempt == _UPLOADS - 1:
                    raise
                problem = cause
            except (aws.ConnectionError, aws.HTTPClientError) as error:
                if attempt == _UPLOADS - 1:
                    raise
                problem = error
            logger.warning("%s/%s: uploading again: %s", self.uri, path, problem)
        raise UserError(
            f"{self.uri}/{path}: {_endpoint()} does not keep what is uploaded whole: check the "
            "store and what lies between"
        )

    def _clean(self, prefix: str) -> int:
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self._bucket, Prefix=self._folder_key(prefix)
        )
        count = 0
        try:
            for page in pages:
                for item in page.get("Uploads", ()):
                    self._client.abort_multipart_upload(
                        Bucket=self._bucket, Key=item["Key"], UploadId=item["UploadId"]
                    )
                    count += 1
        except aws.ClientError as error:
            # Housekeeping: neither a store without it nor credentials that lack it stop a job.
            if _code(error) not in (*_NOT_OFFERED, "NoSuchUpload", "AccessDenied", "403"):
                raise
        return count

    def _size(self, path: str) -> int:
        return self._head(path)["ContentLength"]

    def _files(self, prefix: str) -> Iterator[Entry]:
        return self._list(prefix, Delimiter="/")

    def _list(self, prefix: str, **options: str) -> Iterator[Entry]:
        for page in self._pages(prefix, **options):
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):  # some tools mark folders by empty objects
                    yield Entry(item["Key"].removeprefix(self._root), item["Size"])

    def _folders(self, prefix: str) -> Iterator[str]:
        for page in self._pages(prefix, Delimiter="/"):
            for item in page.get("CommonPrefixes", ()):
                yield item["Prefix"].removeprefix(self._folder_key(prefix)).removesuffix("/")

    def _version(self, path: str) -> str:
        head = self._head(path)
        return f"{head['ContentLength']}-{head.get('ETag', '')}"

    def _head(self, path: str) -> dict[str, Any]:
        return self._client.head_object(Bucket=self._bucket, Key=self._root + path)

    def _delete(self, path: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=self._root + path)

    def _folder_key(self, prefix: str) -> str:
        return f"{self._root}{prefix}/" if prefix else self._root

    def _pages(self, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        return self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._folder_key(prefix), **options
        )

    @property
    def _client(self) -> Any:
        if self._connected is None:
            with _CONNECT_LOCK:  # creating boto3 clients is not thread-safe
                if self._connected is None:
                    self._connected = self._connect()
        return self._connected

    def _connect(self) -> Any:
        session = Session()
        # With two attempts, an address without a server is reported in seconds. The many that a
        # long job needs on a busy server would keep a user waiting who has mistyped the address.
        try:
            first = _new_client(session, attempts=2, read_timeout_s=_FIRST_TIMEOUT_S)
            first.head_bucket(Bucket=self._bucket)
        except aws.ClientError as error:
            # HEAD has no body, so 404 alone means a missing bucket. A refusal may be for HEAD only,
            # so it is left to the request itself.
            if _code(error) in ("404", "NoSuchBucket"):
                raise self._no_bucket() from error
        return _new_client(session, attempts=_ATTEMPTS)

    def _no_bucket(self) -> UserError:
        return UserError(
            f"{self.uri}: the bucket must exist at {_endpoint()}: create {self._bucket!r}, or "
            "check its name and AWS_ENDPOINT_URL"
        )

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            yield
        except aws.ClientError as error:
            raise self._explained(error, path) from error
        except S3UploadFailedError as error:
            # Raised while the request's own error was being handled, which says more.
            if isinstance(error.__context__, aws.ClientError):
                raise self._explained(error.__context__, path) from error
            raise
        except (aws.CredentialRetrievalError, aws.NoCredentialsError) as error:
            # Also where the machine's own role does not answer in time, which passes.
            raise self._needs("credentials", Outage) from error
        except (aws.PartialCredentialsError, aws.ProfileNotFound) as error:
            raise self._needs("complete credentials") from error
        except (aws.ConnectionError, aws.HTTPClientError, aws.IncompleteReadError) as error:
            name = type(error).__name__
            raise self._needs(
                f"an answering server ({name}): start it, or correct the address", Outage
            ) from error
        except aws.ParamValidationError as error:
            raise ObjectError(f"{self.uri}/{path}: not a valid S3 name: {error}") from error
        except ValueError as error:
            if not str(error).startswith("Invalid endpoint"):
                raise
            raise self._needs("a valid URL") from error

    def _needs(self, what: str, kind: type[UserError] = UserError) -> UserError:
        return kind(
            f"{self.uri}: {_endpoint()} needs {what}: check the environment variables {_VARIABLES}"
        )

    def _explained(self, error: aws.ClientError, path: str) -> Exception:
        code = _code(error)
        if code == "NoSuchBucket":
            return self._no_bucket()
        if code in ("NoSuchKey", "404"):
            return self._missing(path)
        of_object = code in _OF_ONE_OBJECT and error.operation_name in ("GetObject", "HeadObject")
        return (ObjectError if of_object else Outage)(
            f"{self.uri}/{path}: {_endpoint()} answers {error.operation_name} with {code}: the "
            f"credentials must allow it; check the environment variables {_VARIABLES}"
        )


def _code(error: aws.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _endpoint() -> str:
    """The configured endpoint, without a user name or password that its URL may hold."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return re.sub(r"//[^/@]*@", "//", url) if url else "the AWS endpoint of the region"


def _new_client(session: Session, attempts: int, read_timeout_s: float = _READ_TIMEOUT_S) -> Any:
    own_endpoint = any(os.environ.get(f"AWS_ENDPOINT_URL{part}") for part in ("", "_S3"))
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=read_timeout_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=32,
        # Stores other than AWS seldom serve `bucket.host`, nor all of the newer checksums.
        s3={"addressing_style": "path" if own_endpoint else "auto"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return session.client("s3", config=config)
