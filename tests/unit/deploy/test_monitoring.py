"""Rules, dashboards and the autoscaler ask for metrics that exist."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

import detection
import worker
from detection.errors import PermanentError
from tests.support.rendered_manifests import DEPLOY, REPOSITORY, find, rules
from worker.ingest.bridge_metrics import BridgeMetrics
from worker.ledger.interface import State
from worker.monitoring.database_gauges import GAUGES
from worker.serving.metrics import HttpMetrics
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

DASHBOARDS = sorted((DEPLOY / "components" / "monitoring" / "dashboards").glob("*.json"))


def published() -> set[str]:
    """Return the names under which a scrape finds our metrics."""
    names = set()
    serving = CollectorRegistry()
    HttpMetrics(serving)
    for registry in (Metrics().registry, BridgeMetrics().registry, serving):
        for family in registry.collect():
            suffixes = {
                "counter": ("_total",),
                "histogram": ("_bucket", "_sum", "_count"),
                "gauge": ("",),
            }[family.type]
            names |= {family.name + suffix for suffix in suffixes}
    names |= {f"unlatent_{reading.name}" for reading in GAUGES}
    service = (REPOSITORY / "worker" / "processes" / "worker.py").read_text()
    names |= {f"unlatent_{name}" for name in re.findall(r'metrics\.watch\(\s*"(\w+)"', service)}
    return names


def queries() -> Iterator[tuple[str, str]]:
    """Return every query with where it stands."""
    for group in rules()["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]
    for file in DASHBOARDS:
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{file.stem}: {panel['title']}", target["expr"]
    for scaled in find("production-gpu", "ScaledObject"):
        for trigger in scaled["spec"]["triggers"]:
            yield f"trigger {trigger['name']}", trigger["metadata"]["query"]


@pytest.mark.parametrize(("where", "query"), [pytest.param(*one, id=one[0]) for one in queries()])
def test_queries_name_metrics_that_are_published(where: str, query: str) -> None:
    """Every name in a query is a metric of ours, a recording rule, or Prometheus' own `up`."""
    recorded = {
        rule["record"] for group in rules()["groups"] for rule in group["rules"] if "record" in rule
    }
    asked = set(re.findall(r"\bunlatent[_:][a-z0-9_:]+", re.sub(r'"[^"]*"', '""', query)))
    assert asked, where
    assert asked <= published() | recorded


def test_every_metric_is_looked_at() -> None:
    """What is measured is on a dashboard or in a rule; the rest would be noise."""
    everything = " ".join(query for _, query in queries())
    unseen = {name for name in published() if name not in everything}
    families = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in unseen}
    assert {name for name in families if name not in everything} == set()


def test_reasons_and_kinds_in_rules_exist() -> None:
    """The failures that count as ours, and the messages that count as checks, are in the code."""
    for package in (detection, worker):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name != "worker.__main__":
                importlib.import_module(module.name)

    def below(kind: type[PermanentError]) -> Iterator[str]:
        for child in kind.__subclasses__():
            yield child.reason
            yield from below(child)

    text = json.dumps(rules())
    ours = set(re.search(r'reason=~\\"([a-z_|]+)\\"', text)[1].split("|"))  # type: ignore[index]
    assert ours <= set(below(PermanentError))
    leases = (REPOSITORY / "worker" / "scoring" / "leases.py").read_text()
    for kind in re.findall(r'kind=~?\\"([a-z_|]+)\\"', text):
        for one in kind.split("|"):
            assert one in set(State) or f'"{one}"' in leases


def test_bounds_in_rules_are_bounds_of_histograms() -> None:
    """A bucket that does not exist would make an objective that is always or never met."""
    bounds = {
        (sample.name, sample.labels["le"])
        for family in Metrics().registry.collect()
        for sample in family.samples
        if "le" in sample.labels
    }
    used = re.findall(r'(unlatent_\w+_bucket)\{le=\\"([^"\\]+)\\"', json.dumps(rules()))
    assert used
    assert set(used) <= bounds
