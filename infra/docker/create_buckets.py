"""Creates the buckets named as arguments, where they are missing: `create_buckets.py raw lseg`.

Runs once, before what uses them. Endpoint and keys come from the usual AWS variables.
"""

import sys

import boto3
from botocore.exceptions import BotoCoreError, ClientError

_EXIST = ("BucketAlreadyExists", "BucketAlreadyOwnedByYou")


def main(buckets: list[str]) -> int:
    """Exit code 0 when all exist in the end, 1 with one line when not."""
    client = boto3.client("s3")
    for bucket in buckets:
        try:
            client.create_bucket(Bucket=bucket)
        except (ClientError, BotoCoreError) as error:
            answer = error.response if isinstance(error, ClientError) else {}
            if answer.get("Error", {}).get("Code") not in _EXIST:
                print(f"error: bucket {bucket}: {' '.join(str(error).split())}", file=sys.stderr)
                return 1
        print(f"bucket {bucket}: there")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
