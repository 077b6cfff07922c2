"""The S3 server of the demo answers to its keys alone, whichever of its ports is asked."""

import os
import urllib.error
import urllib.request

import boto3
import psutil
import pytest

from jobs.local_s3 import local_s3
from tests.support.mlflow_server import wait_until


def ask(port: int, path: str, method: str) -> int:
    """The status of an answer; 0 where none is HTTP."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", method=method, data=b"evil" if method == "PUT" else None
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def children() -> set[psutil.Process]:
    """The processes below this one."""
    return set(psutil.Process().children(recursive=True))


def ports(processes: set[psutil.Process]) -> set[int]:
    """Those on which processes listen."""
    found = set()
    for child in processes:
        found |= {c.laddr for c in child.net_connections("inet") if c.status == "LISTEN"}
    assert {ip for ip, _ in found} == {"127.0.0.1"}
    return {port for _, port in found}


@pytest.mark.slow
def test_no_port_gives_or_takes_anything_without_the_keys(tmp_path):
    # A Ray of other tests may live in the same process, and listens on other addresses.
    before = children()
    with local_s3(tmp_path / "s3", ("lseg",)):
        servers = children() - before
        client = boto3.Session().client("s3")
        client.put_object(Bucket="lseg", Key="a/b", Body=b"secret" * 1000)
        asked = {
            ("GET", "/buckets/lseg/a/b"),
            ("GET", "/lseg/a/b"),
            ("GET", "/dir/assign"),
            ("GET", "/dir/status"),
            ("PUT", "/buckets/lseg/a/b"),
            ("PUT", "/lseg/a/b"),
            ("DELETE", "/buckets/lseg/a/b"),
            ("DELETE", "/lseg/a/b"),
            ("POST", "/col/delete?collection=lseg"),
            ("GET", "/1,01637037d6"),
        }
        answers = {
            (port, *words): ask(port, *words[::-1]) for port in ports(servers) for words in asked
        }
        assert {key: status for key, status in answers.items() if 200 <= status < 400} == {}
        assert len({port for port, *_ in answers}) >= 7
        assert client.get_object(Bucket="lseg", Key="a/b")["Body"].read() == b"secret" * 1000
        kept = [path for path in (tmp_path / "s3").iterdir() if path.is_file()]
        for path in kept:
            assert path.name == "server.log" or path.stat().st_mode & 0o077 == 0
        assert not any(key.startswith("WEED_") for key in os.environ)
        servers |= children() - before
    wait_until(lambda: not any(process.is_running() for process in servers))
    assert [path.name for path in (tmp_path / "s3").iterdir() if path.is_file()] == ["server.log"]
