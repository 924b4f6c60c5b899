"""How many workers a load needs, from measured numbers.

One device thread a worker forwards and stores batches, one after the other, so what a worker can do
is the images of its batches by the seconds of both:

    m = images in batches / (forward seconds + persist seconds)                  [images/s]

With a peak of r images/s, a wait of w seconds allowed, s seconds until an added worker scores, and
devices busy for a share u of the time at most:

* at the peak, n_max = r / (u m) workers are needed;
* n workers at the start of a sudden peak fall behind by (r - n m) s images until help comes, which
  the newest image waits for (r - n m) s / (n m) seconds. That is w or less when n m (w + s) >= r s,
  so n_min = r s / (m (w + s)) must run before the peak comes;
* m w images, waiting or in flight, are what one worker does within the allowed wait: the threshold
  of the autoscaler's trigger;
* after an outage of d seconds, n_max workers need r d / (n_max m - r) seconds to catch up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from detection.errors import SettingsError

#: Fewer batches say little about a worker.
MIN_BATCHES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked for; `busy` is the share of time that devices may be busy at the peak."""

    peak_per_s: float
    wait_s: float
    ready_s: float
    busy: float = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What it takes; `images_per_worker` is the autoscaler's threshold."""

    per_worker_per_s: float
    min_workers: int
    max_workers: int
    images_per_worker: int
    catch_up_s_per_outage_s: float

    def cost_per_1000(self, price_per_hour: float, load: Load) -> float:
        """Return the price of 1,000 images at the peak, for a price of one worker's hour."""
        return 1000 * self.max_workers * price_per_hour / (3600 * load.peak_per_s)


def plan(load: Load, *, per_worker_per_s: float) -> Plan:
    """Apply the formulas above."""
    least = load.peak_per_s * load.ready_s / (per_worker_per_s * (load.wait_s + load.ready_s))
    most = math.ceil(load.peak_per_s / (load.busy * per_worker_per_s))
    return Plan(
        per_worker_per_s=per_worker_per_s,
        min_workers=max(1, min(math.ceil(least), most)),
        max_workers=most,
        images_per_worker=max(1, math.floor(per_worker_per_s * load.wait_s)),
        catch_up_s_per_outage_s=load.peak_per_s / (most * per_worker_per_s - load.peak_per_s),
    )


def measured(page: str) -> float:
    """Read what a worker can do, in images/s, from the page of its metrics.

    Raises `SettingsError` when the page is not a worker's or the worker has done too little.
    """
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if not sample.labels
    }
    try:
        batches = values["unlatent_batch_size_count"]
        images = values["unlatent_batch_size_sum"]
        busy_s = values["unlatent_forward_seconds_sum"] + values["unlatent_persist_seconds_sum"]
    except KeyError as error:
        raise SettingsError(f"these are not a worker's metrics: {error} is missing") from error
    if batches < MIN_BATCHES or busy_s <= 0:
        message = f"the worker ran {batches:.0f} batches; load it for a while first"
        raise SettingsError(message)
    return images / busy_s
