"""Creates the buckets that `UNLATENT_S3__BUCKETS` and `UNLATENT_TRAINING__BUCKET` name."""

from __future__ import annotations

import boto3

from worker.settings import load_settings

settings = load_settings()
keys = (settings.s3.access_key_id, settings.s3.secret_access_key)
access_key_id, secret_access_key = (key.get_secret_value() if key else None for key in keys)
client = boto3.client(
    "s3",
    endpoint_url=settings.s3.endpoint_url,
    region_name=settings.s3.region,
    aws_access_key_id=access_key_id,
    aws_secret_access_key=secret_access_key,
)
existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
for bucket in sorted({*settings.s3.buckets, settings.training.bucket} - existing):
    client.create_bucket(Bucket=bucket)
