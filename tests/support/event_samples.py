"""One event of every shape and kind, with where the shape is documented and what it must become.

The values are ours; names and nesting are those of the documents, as they were on the day.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from worker.ingest.events import Event, Ignored
from worker.ledger.interface import Removal, Upload

READ_ON = "2026-11-29"

AWS_S3 = "docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html"
AWS_EVENTBRIDGE = "docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html"
AWS_SNS = "docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html"
AWS_LAMBDA = "github.com/awsdocs/aws-lambda-developer-guide, with-sqs.md and with-sns.md"
CEPH = "github.com/ceph/ceph, doc/radosgw/notifications.rst and s3-notification-compatibility.rst"
MINIO = "github.com/minio/minio, internal/event/event.go; target/redis.go for its list"
R2 = "developers.cloudflare.com/r2/buckets/event-notifications"
GCS = "docs.cloud.google.com/storage/docs/pubsub-notifications"
EVENTARC = "cloud.google.com/eventarc/docs/cloudevents-json"
AZURE = "learn.microsoft.com/azure/event-grid/event-schema-blob-storage"
CLOUDEVENTS = "github.com/cloudevents/spec, json-format.md 1.0 and adapters/aws-s3.md"
SEAWEEDFS = (
    "github.com/seaweedfs/seaweedfs, weed/notification/webhook and weed/filer/filer_notify.go"
)

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
WRITTEN_AT = "2026-01-02T03:04:05Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An entry, the document that gives its shape, and its events."""

    entry: Any
    source: str
    events: list[Event]


def upload(key: str = "a b+c.jpg", **values: Any) -> Upload:
    """Return an upload of the bucket `uploads`."""
    return Upload(**({"bucket": "uploads", "key": key, "uploaded_at": AT} | values))


def removal(key: str = "a b+c.jpg", **values: Any) -> Removal:
    """Return a removal in the bucket `uploads`."""
    return Removal(**({"bucket": "uploads", "key": key} | values))


def s3_record(
    name: str = "ObjectCreated:Put",
    *,
    key: str = "a+b%2Bc.jpg",
    event_source: str = "aws:s3",
    **stored: Any,
) -> dict[str, Any]:
    """Return a record of an S3 event."""
    return {
        "eventVersion": "2.5",
        "eventSource": event_source,
        "awsRegion": "eu-west-1",
        "eventTime": WRITTEN_AT,
        "eventName": name,
        "userIdentity": {"principalId": "p"},
        "requestParameters": {"sourceIPAddress": "192.0.2.1"},
        "responseElements": {"x-amz-request-id": "r", "x-amz-id-2": "h"},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "c",
            "bucket": {
                "name": "uploads",
                "ownerIdentity": {"principalId": "p"},
                "arn": "arn:aws:s3:::uploads",
            },
            "object": {"key": key, "size": 7, "eTag": "e1", "sequencer": "0A"} | stored,
        },
    }


S3_UPLOAD = upload(etag="e1", size=7, sequencer="0A")


def eventbridge(kind: str, *, key: str = "a b+c.jpg", **detail: Any) -> dict[str, Any]:
    """Return an event of S3 by way of EventBridge."""
    return {
        "version": "0",
        "id": "8c6a1d7e-0000-4000-8000-000000000001",
        "detail-type": kind,
        "source": "aws.s3",
        "account": "123456789012",
        "time": WRITTEN_AT,
        "region": "eu-west-1",
        "resources": ["arn:aws:s3:::uploads"],
        "detail": {
            "version": "0",
            "bucket": {"name": "uploads"},
            "object": {
                "key": key,
                "size": 7,
                "etag": "e1",
                "version-id": "v1",
                "sequencer": "617F08299329D189",
            },
            "request-id": "R",
            "requester": "123456789012",
            "source-ip-address": "192.0.2.1",
            "reason": "PutObject",
        }
        | detail,
    }


def sns(message: str, **values: Any) -> dict[str, Any]:
    """Return a message of an SNS topic."""
    return {
        "Type": "Notification",
        "MessageId": "m",
        "TopicArn": "arn:aws:sns:eu-west-1:123456789012:uploads",
        "Subject": "Amazon S3 Notification",
        "Message": message,
        "Timestamp": WRITTEN_AT,
        "SignatureVersion": "1",
        "Signature": "s",
        "SigningCertURL": "https://sns.eu-west-1.amazonaws.com/c.pem",
        "UnsubscribeURL": "https://sns.eu-west-1.amazonaws.com/?Action=Unsubscribe",
    } | values


def cloud_event(kind: str, **values: Any) -> dict[str, Any]:
    """Return a CloudEvent in structured mode."""
    return {
        "specversion": "1.0",
        "type": kind,
        "source": "s",
        "id": "i",
        "time": WRITTEN_AT,
        "datacontenttype": "application/json",
    } | values


def r2(action: str, **stored: Any) -> dict[str, Any]:
    """Return a notification of Cloudflare R2."""
    return {
        "account": "3f4b7e3dcab231cbfdaa90a6a28bd500",
        "action": action,
        "bucket": "uploads",
        "object": {"key": "a b+c.jpg"} | stored,
        "eventTime": "2026-01-02T03:04:05.678Z",
    }


R2_AT = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
R2_SEQUENCER = f"{1767323045678:012X}"

GCS_OBJECT = {
    "kind": "storage#object",
    "id": "uploads/a b+c.jpg/1767323045000001",
    "name": "a b+c.jpg",
    "bucket": "uploads",
    "generation": "1767323045000001",
    "metageneration": "1",
    "contentType": "image/jpeg",
    "timeCreated": WRITTEN_AT,
    "updated": WRITTEN_AT,
    "storageClass": "STANDARD",
    "size": "7",
    "md5Hash": "1B2M2Y8AsgTpgAmY7PhCfg==",
    "crc32c": "AAAAAA==",
    "etag": "CIG7s7mSyZEDEAE=",
}
GCS_SEQUENCER = f"{1767323045000001:016X}"
GCS_UPLOAD = upload(size=7, content_type="image/jpeg", sequencer=GCS_SEQUENCER)


def gcs(kind: str, *, payload: bool = True, **attributes: str) -> dict[str, Any]:
    """Return a notification of Google Cloud Storage as Pub/Sub pushes it."""
    data = {"data": base64.b64encode(json.dumps(GCS_OBJECT).encode()).decode()}
    return {
        "message": {
            "attributes": {
                "notificationConfig": "projects/_/buckets/uploads/notificationConfigs/1",
                "eventType": kind,
                "payloadFormat": "JSON_API_V1" if payload else "NONE",
                "bucketId": "uploads",
                "objectId": "a b+c.jpg",
                "objectGeneration": "1767323045000001",
                "eventTime": WRITTEN_AT,
            }
            | attributes,
            "messageId": "1",
            "publishTime": WRITTEN_AT,
        }
        | (data if payload else {}),
        "subscription": "projects/p/subscriptions/s",
    }


def azure(kind: str, *, cloud: bool = False, **data: Any) -> dict[str, Any]:
    """Return an event of Azure Event Grid, in its own schema or as a CloudEvent."""
    names = (
        {"source": "/subscriptions/s", "type": kind, "time": WRITTEN_AT, "specversion": "1.0"}
        if cloud
        else {
            "topic": "/subscriptions/s",
            "eventType": kind,
            "eventTime": WRITTEN_AT,
            "dataVersion": "",
            "metadataVersion": "1",
        }
    )
    return names | {
        "subject": "/blobServices/default/containers/uploads/blobs/dir/a b+c.jpg",
        "id": "i",
        "data": {
            "api": "PutBlockList",
            "requestId": "r",
            "eTag": '"0x8D4BCC2E4835CD0"',
            "contentType": "image/jpeg",
            "contentLength": 7,
            "blobType": "BlockBlob",
            "url": "https://account.blob.core.windows.net/uploads/dir/a%20b%2Bc.jpg",
            "sequencer": "00000000000004420000000000028963",
            "storageDiagnostics": {"batchId": "b"},
        }
        | data,
    }


AZURE_UPLOAD = upload(
    "dir/a b+c.jpg",
    size=7,
    content_type="image/jpeg",
    sequencer="00000000000004420000000000028963",
)
AZURE_REMOVAL = removal("dir/a b+c.jpg", sequencer="00000000000004420000000000028963")


def seaweedfs(path: str, **message: Any) -> dict[str, Any]:
    """Return a message of SeaweedFS' filer."""
    return {"key": path, "event_type": "create", "message": {"signatures": [1]} | message}


def entry(name: str, **values: Any) -> dict[str, Any]:
    """Return an entry of SeaweedFS' filer."""
    return {
        "name": name,
        "chunks": [{"file_id": "3,01", "size": 7}],
        "attributes": {"file_size": 7, "mtime": 1767323045, "mime": "image/jpeg"},
    } | values


SEAWEED_UPLOAD = upload(size=7, content_type="image/jpeg", uploaded_at=None)

_RECORDS = json.dumps({"Records": [s3_record()]})

SAMPLES = {
    "S3": Sample(entry={"Records": [s3_record()]}, source=AWS_S3, events=[S3_UPLOAD]),
    "S3 removal": Sample(
        entry={"Records": [s3_record("ObjectRemoved:Delete", versionId="v1")]},
        source=AWS_S3,
        events=[removal(version_id="v1", sequencer="0A")],
    ),
    "S3 delete marker": Sample(
        entry={"Records": [s3_record("ObjectRemoved:DeleteMarkerCreated", versionId="m1")]},
        source=AWS_S3,
        events=[removal(sequencer="0A")],
    ),
    "S3 test event": Sample(
        entry={"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "uploads"},
        source=AWS_S3,
        events=[Ignored(reason="test_event")],
    ),
    "MinIO access": Sample(
        entry=[
            {
                "Event": [s3_record("s3:ObjectCreated:Put", event_source="minio:s3")],
                "EventTime": WRITTEN_AT,
            }
        ],
        source=MINIO,
        events=[S3_UPLOAD],
    ),
    "MinIO webhook": Sample(
        entry={
            "EventName": "s3:ObjectCreated:Put",
            "Key": "uploads/a b+c.jpg",
            "Records": [s3_record("s3:ObjectCreated:Put", event_source="minio:s3")],
        },
        source=MINIO,
        events=[S3_UPLOAD],
    ),
    "MinIO bucket created": Sample(
        entry={"Records": [s3_record("s3:BucketCreated:*", key="")]},
        source=MINIO,
        events=[Ignored(reason="event_kind")],
    ),
    "Ceph": Sample(
        entry={
            "Records": [
                s3_record(
                    key="a b.jpg",
                    event_source="ceph:s3",
                    size="7",
                    versionId="",
                    # 0x69573425 seconds, lowest byte first, and 0x01020304 nanoseconds.
                    sequencer="2534576904030201",
                    metadata=[],
                    tags=[],
                )
            ]
        },
        source=CEPH,
        events=[upload("a b.jpg", etag="e1", size=7, sequencer="6957342501020304")],
    ),
    "Ceph arrival from another zone": Sample(
        entry={"Records": [s3_record("ObjectSynced:Create", event_source="ceph:s3")]},
        source=CEPH,
        events=[S3_UPLOAD],
    ),
    "Ceph lifecycle": Sample(
        entry={
            "Records": [
                s3_record("ObjectLifecycle:Expiration:Current", versionId="m1"),
                s3_record("ObjectLifecycle:Expiration:NonCurrent", versionId="v1"),
                s3_record("ObjectLifecycle:Expiration:DeleteMarker", versionId="m1"),
                s3_record("ObjectLifecycle:Transition:Current", versionId="v2"),
            ]
        },
        source=CEPH,
        events=[
            removal(sequencer="0A"),
            removal(version_id="v1", sequencer="0A"),
            Ignored(reason="event_kind"),
            Ignored(reason="event_kind"),
        ],
    ),
    "EventBridge": Sample(
        entry=eventbridge("Object Created"),
        source=AWS_EVENTBRIDGE,
        events=[upload(etag="e1", version_id="v1", size=7, sequencer="617F08299329D189")],
    ),
    "EventBridge permanent removal": Sample(
        entry=eventbridge(
            "Object Deleted",
            **{"reason": "DeleteObject", "deletion-type": "Permanently Deleted"},
        ),
        source=AWS_EVENTBRIDGE,
        events=[removal(version_id="v1", sequencer="617F08299329D189")],
    ),
    "EventBridge delete marker": Sample(
        entry=eventbridge(
            "Object Deleted",
            **{"reason": "Lifecycle Expiration", "deletion-type": "Delete Marker Created"},
        ),
        source=AWS_EVENTBRIDGE,
        events=[removal(sequencer="617F08299329D189")],
    ),
    "EventBridge other kind": Sample(
        entry=eventbridge("Object Tags Added"),
        source=AWS_EVENTBRIDGE,
        events=[Ignored(reason="event_kind")],
    ),
    "SNS": Sample(entry=sns(_RECORDS), source=AWS_SNS, events=[S3_UPLOAD]),
    "SNS subscription": Sample(
        entry=sns(
            "You have chosen to subscribe",
            Type="SubscriptionConfirmation",
            Token="t",
            SubscribeURL="https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription",
        ),
        source=AWS_SNS,
        events=[Ignored(reason="subscription_confirmation")],
    ),
    "SNS unsubscription": Sample(
        entry=sns("You have chosen to unsubscribe", Type="UnsubscribeConfirmation"),
        source=AWS_SNS,
        events=[Ignored(reason="event_kind")],
    ),
    "SQS as Lambda gets it": Sample(
        entry={
            "Records": [
                {
                    "messageId": "m",
                    "receiptHandle": "r",
                    "body": json.dumps(sns(_RECORDS)),
                    "attributes": {},
                    "eventSource": "aws:sqs",
                }
            ]
        },
        source=AWS_LAMBDA,
        events=[S3_UPLOAD],
    ),
    "SNS as Lambda gets it": Sample(
        entry={
            "Records": [{"EventVersion": "1.0", "EventSource": "aws:sns", "Sns": sns(_RECORDS)}]
        },
        source=AWS_LAMBDA,
        events=[S3_UPLOAD],
    ),
    "CloudEvent of an S3 record": Sample(
        entry=cloud_event("com.amazonaws.s3.ObjectCreated:Put", data=s3_record()),
        source=CLOUDEVENTS,
        events=[S3_UPLOAD],
    ),
    "CloudEvent in base64": Sample(
        entry=cloud_event("c", data_base64=base64.b64encode(_RECORDS.encode()).decode()),
        source=CLOUDEVENTS,
        events=[S3_UPLOAD],
    ),
    "CloudEvent of text": Sample(
        entry=cloud_event("c", data=_RECORDS), source=CLOUDEVENTS, events=[S3_UPLOAD]
    ),
    "CloudEvents in a batch": Sample(
        entry=[
            cloud_event("c", data={"Records": [s3_record()]}),
            azure("Microsoft.Storage.BlobCreated", cloud=True),
        ],
        source=CLOUDEVENTS,
        events=[S3_UPLOAD, AZURE_UPLOAD],
    ),
    "R2": Sample(
        entry=r2("PutObject", size=7, eTag="e1"),
        source=R2,
        events=[upload(etag="e1", size=7, uploaded_at=R2_AT, sequencer=R2_SEQUENCER)],
    ),
    "R2 copy": Sample(
        entry=r2("CopyObject", size=7, eTag="e1")
        | {"copySource": {"bucket": "uploads", "object": "b.jpg"}},
        source=R2,
        events=[upload(etag="e1", size=7, uploaded_at=R2_AT, sequencer=R2_SEQUENCER)],
    ),
    "R2 removal": Sample(
        entry=r2("DeleteObject"), source=R2, events=[removal(sequencer=R2_SEQUENCER)]
    ),
    "R2 expiry": Sample(
        entry=r2("LifecycleDeletion"), source=R2, events=[removal(sequencer=R2_SEQUENCER)]
    ),
    "GCS": Sample(entry=gcs("OBJECT_FINALIZE"), source=GCS, events=[GCS_UPLOAD]),
    "GCS without payload": Sample(
        entry=gcs("OBJECT_FINALIZE", payload=False),
        source=GCS,
        events=[upload(uploaded_at=None, sequencer=GCS_SEQUENCER)],
    ),
    "GCS pulled": Sample(entry=gcs("OBJECT_FINALIZE")["message"], source=GCS, events=[GCS_UPLOAD]),
    "GCS removal": Sample(
        entry=gcs("OBJECT_DELETE"), source=GCS, events=[removal(sequencer=f"{GCS_SEQUENCER}1")]
    ),
    "GCS archived": Sample(
        entry=gcs("OBJECT_ARCHIVE"), source=GCS, events=[removal(sequencer=f"{GCS_SEQUENCER}1")]
    ),
    "GCS overwritten": Sample(
        entry=gcs("OBJECT_DELETE", overwrittenByGeneration="1767323045000009"),
        source=GCS,
        events=[Ignored(reason="overwritten")],
    ),
    "GCS metadata": Sample(
        entry=gcs("OBJECT_METADATA_UPDATE"), source=GCS, events=[Ignored(reason="event_kind")]
    ),
    "Eventarc": Sample(
        entry=cloud_event("google.cloud.storage.object.v1.finalized", data=GCS_OBJECT),
        source=EVENTARC,
        events=[GCS_UPLOAD],
    ),
    "Eventarc removal": Sample(
        entry=cloud_event("google.cloud.storage.object.v1.deleted", data=GCS_OBJECT),
        source=EVENTARC,
        events=[removal(sequencer=f"{GCS_SEQUENCER}1")],
    ),
    "Eventarc of a Pub/Sub message": Sample(
        entry=cloud_event(
            "google.cloud.pubsub.topic.v1.messagePublished", data=gcs("OBJECT_FINALIZE")
        ),
        source=EVENTARC,
        events=[GCS_UPLOAD],
    ),
    "Azure": Sample(
        entry=[azure("Microsoft.Storage.BlobCreated")], source=AZURE, events=[AZURE_UPLOAD]
    ),
    "Azure as CloudEvent": Sample(
        entry=azure("Microsoft.Storage.BlobCreated", cloud=True),
        source=AZURE,
        events=[AZURE_UPLOAD],
    ),
    "Azure removal": Sample(
        entry=azure("Microsoft.Storage.BlobDeleted"), source=AZURE, events=[AZURE_REMOVAL]
    ),
    "Azure file begun": Sample(
        entry=azure("Microsoft.Storage.BlobCreated", api="CreateFile", contentLength=0),
        source=AZURE,
        events=[Ignored(reason="event_kind")],
    ),
    "Azure renaming": Sample(
        entry=azure(
            "Microsoft.Storage.BlobRenamed",
            api="RenameFile",
            sourceUrl="https://account.dfs.core.windows.net/uploads/tmp/x%20y.part",
        ),
        source=AZURE,
        events=[
            removal("tmp/x y.part", sequencer="00000000000004420000000000028963"),
            AZURE_UPLOAD,
        ],
    ),
    "Azure tier": Sample(
        entry=azure("Microsoft.Storage.BlobTierChanged"),
        source=AZURE,
        events=[Ignored(reason="event_kind")],
    ),
    "Azure validation": Sample(
        entry=[azure("Microsoft.EventGrid.SubscriptionValidationEvent") | {"subject": ""}],
        source=AZURE,
        events=[Ignored(reason="subscription_confirmation")],
    ),
    "SeaweedFS": Sample(
        entry=seaweedfs(
            "/buckets/uploads/a b+c.jpg",
            new_entry=entry("a b+c.jpg"),
            new_parent_path="/buckets/uploads",
        ),
        source=SEAWEEDFS,
        events=[SEAWEED_UPLOAD],
    ),
    "SeaweedFS overwriting": Sample(
        entry=seaweedfs(
            "/buckets/uploads/a b+c.jpg",
            old_entry=entry("a b+c.jpg"),
            new_entry=entry("a b+c.jpg"),
            new_parent_path="/buckets/uploads",
        ),
        source=SEAWEEDFS,
        events=[SEAWEED_UPLOAD],
    ),
    "SeaweedFS removal": Sample(
        entry=seaweedfs("/buckets/uploads/a b+c.jpg", old_entry=entry("a b+c.jpg")),
        source=SEAWEEDFS,
        events=[removal()],
    ),
    "SeaweedFS renaming": Sample(
        entry=seaweedfs(
            "/buckets/uploads/tmp/x.part",
            old_entry=entry("x.part"),
            new_entry=entry("a b+c.jpg"),
            new_parent_path="/buckets/uploads",
        ),
        source=SEAWEEDFS,
        events=[removal("tmp/x.part"), SEAWEED_UPLOAD],
    ),
    "SeaweedFS folder": Sample(
        entry=seaweedfs("/buckets/uploads/dir", new_entry=entry("dir", is_directory=True)),
        source=SEAWEEDFS,
        events=[Ignored(reason="folder")],
    ),
    "SeaweedFS elsewhere": Sample(
        entry=seaweedfs("/home/a.jpg", new_entry=entry("a.jpg")),
        source=SEAWEEDFS,
        events=[Ignored(reason="outside_buckets")],
    ),
    "our own": Sample(
        entry={"v": 1, "bucket": "uploads", "key": "a b+c.jpg", "etag": "e1", "size": 7},
        source="docs/events.md",
        events=[upload(etag="e1", size=7, uploaded_at=None)],
    ),
}
