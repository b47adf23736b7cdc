"""The bucket of the local environment: made if need be, with the life-cycle rule that production buckets should have, too.

Run by compose.yaml as `python bucket.py` (endpoint and credentials from AWS_* variables), and by `processes`.
"""

import sys
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

BUCKET = "tidelog"
RULES = [
    # Brokers write whole objects only; what other tools began and left would be paid for, unseen.
    {"ID": "abort-left-uploads", "Status": "Enabled", "Filter": {}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}},
]
"""No rule may expire objects: which of them are still needed only the metadata store knows."""


def make_bucket(s3: Any, name: str = BUCKET) -> None:
    """Make the bucket and set its rules; a bucket that is there already keeps its objects."""
    try:
        s3.create_bucket(Bucket=name)
    except s3.exceptions.BucketAlreadyOwnedByYou:
        print(f"bucket {name} is there already")
    s3.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": RULES})


def client(**where: str) -> Any:
    """Return a client, patient with a server that has only just started; `where` goes before AWS_* variables."""
    patient = Config(retries={"mode": "standard", "total_max_attempts": 10}, connect_timeout=2, s3={"addressing_style": "path"})
    return boto3.client("s3", config=patient, **where)


if __name__ == "__main__":
    try:
        make_bucket(client())
    except (BotoCoreError, ClientError) as error:
        sys.exit(f"the bucket {BUCKET} could not be made: {error}; is the S3 server up, and are AWS_ENDPOINT_URL and credentials set?")
