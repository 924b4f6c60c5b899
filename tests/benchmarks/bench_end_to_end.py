"""End-to-end images a second against the detector's own, at one batch size in one run.

End to end is from the moment when all events are in the ingest list to the last verdict in
Postgres, over objects that are stored already: bridge, queue, fetch, decode, batch, forward and
transactions. The detector alone gets the same images decoded, in batches of the same size.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image
from redis import Redis
from sqlalchemy import func, select

from detection.detector import Detector
from tests.benchmarks.photographlike import make_files
from tests.support.waiting import eventually
from worker.database.engine import build_engine
from worker.demo.deployment import BUCKET, Deployment
from worker.demo.uploads import hook_event
from worker.ledger.tables import VerdictRow
from worker.settings import Settings, load_settings
from worker.storage.s3 import S3Storage


def detector_rate(settings: Settings, files: list[bytes]) -> float:
    """Return the detector's own images a second."""
    detector = Detector.load(settings.scoring.bundle)
    images = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    size = settings.scoring.max_batch
    detector.score(images[:size])  # the first pass of a size allocates
    begun = time.perf_counter()
    for start in range(0, len(images), size):
        detector.score(images[start : start + size])
    return len(images) / (time.perf_counter() - begun)


def end_to_end_rate(settings: Settings, files: list[bytes], *, timeout_s: float) -> float:
    """Return images a second from events to verdicts; raises when a verdict is missing."""
    with tempfile.TemporaryDirectory() as logs, Deployment(settings, logs=Path(logs)) as running:
        running.wait_until_ready()
        here = running.settings
        with (
            closing(S3Storage(here.s3)) as storage,
            Redis.from_url(here.redis.url.get_secret_value()) as redis,
        ):
            events = [
                hook_event(storage.put(BUCKET, f"{n}.jpg", file, content_type="image/jpeg"))
                for n, file in enumerate(files)
            ]
            engine = build_engine(here.postgres)
            begun = time.perf_counter()
            redis.rpush(here.redis.key_prefix + here.redis.ingest_key, *events)

            def all_scored() -> bool:
                running.check()
                with engine.begin() as connection:
                    counting = select(func.count()).select_from(VerdictRow)
                    scored = connection.execute(counting).scalar_one()
                return bool(scored == len(files))

            eventually(all_scored, timeout_s=timeout_s, what="the last verdict")
            seconds = time.perf_counter() - begun
            engine.dispose()
    return len(files) / seconds


def main() -> int:
    """Measure both and print them with their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--bundle", help="name or folder, instead of the setting's")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for all verdicts")
    arguments = parser.parse_args()
    settings = load_settings()
    if arguments.bundle:
        scoring = settings.scoring.model_copy(update={"bundle": arguments.bundle})
        settings = settings.model_copy(update={"scoring": scoring})
    files = make_files(arguments.images, arguments.side)
    alone = detector_rate(settings, files)
    whole = end_to_end_rate(settings, files, timeout_s=arguments.timeout)
    sys.stdout.write(
        f"{arguments.images} JPEG files of {arguments.side} px, batches of"
        f" {settings.scoring.max_batch}, bundle {settings.scoring.bundle}\n"
        f"detector alone   {alone:8.2f} images/s\n"
        f"end to end       {whole:8.2f} images/s\n"
        f"ratio            {whole / alone:8.2f}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
