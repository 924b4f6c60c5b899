"""Prometheus gauges of open moderation work and training runs, read by SQL.

The numbers are read by the exporter's thread; a scrape gets those of the last reading, all of one
moment. What does not exist has no series: no age without a queue, no lease without a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import text

from worker.database.engine import transaction
from worker.ledger.tables_moderation import QUEUES
from worker.models.shadow import IN_SHADOW, LATEST_PAIRS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.metrics_core import Metric
    from sqlalchemy import Connection, Engine

#: Each source's newest reading; one that is a day old says nothing any more.
_DRIFT = (
    "SELECT DISTINCT ON (source) * FROM app.drift_readings"
    " WHERE at > now() - interval '1 day' ORDER BY source, id DESC"
)

#: The states of `training_runs`, each published even when no run was ever in it.
RUN_STATES = ("running", "finished", "empty", "failed", "refused")


#: Counting goes no further: a long backlog must not make the count itself slow.
MOST_COUNTED = 10_000


def _age(kind: str) -> str:
    """Return how old a kind may grow, of the last migration, as a subquery; NULL keeps all.

    It is a subquery because it is run once, before the index is entered: joined, it let the planner
    walk a table of which nothing may go.
    """
    return (
        "(SELECT c.value::float8 * interval '1 day' FROM app.config c"  # noqa: S608 - constants
        f" WHERE c.name = '{kind}_days')"
    )


#: What retention has still to remove, the oldest first, and since when.
_OVERDUE = {
    "originals": (
        f"SELECT greatest(i.created_at, i.restored_at) + {_age('originals')} AS due"  # noqa: S608 - constants
        f" FROM app.images i WHERE i.created_at < now() - {_age('originals')}"
        " AND i.object_removed_at IS NULL AND i.erased_at IS NULL AND i.state <> 'pending'"
        f" AND coalesce(i.restored_at < now() - {_age('originals')}, true)"
        " AND NOT EXISTS (SELECT FROM app.legal_holds h"
        " WHERE h.image_id = i.id AND h.lifted_at IS NULL)"
        " ORDER BY i.created_at LIMIT {most}"
    ),
    "evidence": (
        f"SELECT v.scored_at + {_age('evidence')} AS due"  # noqa: S608 - constants
        f" FROM app.verdicts v WHERE v.scored_at < now() - {_age('evidence')}"
        " AND v.evidence_uri IS NOT NULL"
        " AND NOT EXISTS (SELECT FROM app.legal_holds h"
        " WHERE h.image_id = v.image_id AND h.lifted_at IS NULL)"
        " ORDER BY v.scored_at LIMIT {most}"
    ),
}


#: What app.prune has still to look at, in the order in which it does.
_UNPRUNED = {
    "outbox": (
        f"SELECT coalesce(o.delivered_at, o.dead_at) + {_age('outbox')} AS due"  # noqa: S608 - constants
        f" FROM app.outbox o WHERE coalesce(o.delivered_at, o.dead_at) < now() - {_age('outbox')}"
        " AND (o.delivered_at IS NOT NULL OR o.dead_at IS NOT NULL)"
        " ORDER BY coalesce(o.delivered_at, o.dead_at) LIMIT {most}"
    ),
    "removals": (
        f"SELECT o.removed_at + {_age('removals')} AS due FROM app.object_removals o"  # noqa: S608 - constants
        f" WHERE o.removed_at < now() - {_age('removals')} ORDER BY o.removed_at LIMIT {{most}}"
    ),
    **{
        kind: (
            f"SELECT o.at + {_age(kind)} AS due FROM ("  # noqa: S608 - constants
            f"SELECT x.{at} AS at FROM app.{table} x WHERE x.id > coalesce("
            f"(SELECT p.after_id FROM app.prune_cursors p WHERE p.kind = '{kind}'), 0)"
            " ORDER BY x.id LIMIT {most}"
            f") o WHERE o.at < now() - {_age(kind)}"
        )
        for kind, table, at in (("leases", "leases", "since"), ("audit", "audit_log", "at"))
    },
}


def _overdue(kinds: Mapping[str, str], value: str, most: int) -> str:
    """Ask for one value of each kind's first overdue rows."""
    return " UNION ALL ".join(
        f"(SELECT '{kind}', {value} FROM ({query.format(most=most)}) o HAVING count(*) > 0)"  # noqa: S608 - constants
        for kind, query in kinds.items()
    )


@dataclass(frozen=True, slots=True)
class GaugeQuery:
    """One gauge and the query that reads it: the labels' columns, then the value.

    `always` lists what is published as 0 when the query has no row for it.
    """

    name: str
    documentation: str
    sql: str
    labels: tuple[str, ...] = ()
    always: tuple[tuple[str, ...], ...] = ()

    def read(self, connection: Connection) -> GaugeMetricFamily:
        """Run the query."""
        rows = connection.execute(text(self.sql)).all()
        found = {tuple(str(part) for part in row[:-1]): float(row[-1]) for row in rows}
        family = GaugeMetricFamily(
            f"unlatent_{self.name}", self.documentation, labels=list(self.labels)
        )
        for labels, value in {**dict.fromkeys(self.always, 0.0), **found}.items():
            family.add_metric(list(labels), value)
        return family


#: Every query reads a partial index, a day, or a table of few rows: both bridges ask them always.
GAUGES = (
    GaugeQuery(
        "review_images",
        "Images that wait for a moderator.",
        "SELECT queue, count(*) FROM app.reviews WHERE closed_at IS NULL GROUP BY queue",
        labels=("queue",),
        always=tuple((queue,) for queue in QUEUES),
    ),
    GaugeQuery(
        "review_oldest_seconds",
        "Age of the image that has waited longest for a moderator.",
        "SELECT queue, extract(epoch FROM clock_timestamp() - min(queued_at))"
        " FROM app.reviews WHERE closed_at IS NULL GROUP BY queue",
        labels=("queue",),
    ),
    GaugeQuery(
        "review_claims",
        "Images that a moderator looks at.",
        "SELECT count(*) FROM app.claims WHERE closed_at IS NULL AND until > clock_timestamp()",
    ),
    GaugeQuery(
        "openings_last_hour",
        "Pictures that moderators opened within the last hour.",
        "SELECT count(*) FROM app.audit_log"
        " WHERE action = 'open_image' AND at > now() - interval '1 hour'",
    ),
    GaugeQuery(
        "decisions_last_day",
        "Decisions of the last 24 h, by what the verdict had said and what the person said.",
        "SELECT coalesce(v.label, 'none'), d.decision, count(*)"
        " FROM app.decisions d LEFT JOIN app.verdicts v ON v.id = d.verdict_id"
        " WHERE d.created_at > now() - interval '1 day' GROUP BY 1, 2",
        labels=("verdict", "decision"),
    ),
    GaugeQuery(
        "breakers_open",
        "1 while automatic flagging of a source is stopped.",
        "SELECT source, 1 FROM app.breakers WHERE closed_at IS NULL",
        labels=("source",),
    ),
    GaugeQuery(
        "outbox_messages",
        "Webhooks that are not delivered and not given up.",
        "SELECT count(*) FROM app.outbox WHERE delivered_at IS NULL AND dead_at IS NULL",
    ),
    GaugeQuery(
        "outbox_oldest_seconds",
        "Age of the oldest of those.",
        "SELECT extract(epoch FROM clock_timestamp() - min(created_at)) FROM app.outbox"
        " WHERE delivered_at IS NULL AND dead_at IS NULL HAVING count(*) > 0",
    ),
    GaugeQuery(
        "webhook_endpoints_off",
        "1 for an endpoint that was switched off because it took nothing.",
        "SELECT name, 1 FROM app.webhook_endpoints WHERE switched_off_at IS NOT NULL",
        labels=("endpoint",),
    ),
    GaugeQuery(
        "erasures_oldest_seconds",
        "Age of the oldest request to erase an image that is not carried out.",
        "SELECT extract(epoch FROM clock_timestamp() - min(requested_at)) FROM app.erasures"
        " WHERE rows_done_at IS NULL HAVING count(*) > 0",
    ),
    GaugeQuery(
        "retention_overdue_objects",
        f"Objects that are kept longer than they may be, {MOST_COUNTED} at most.",
        _overdue(_OVERDUE, "count(*)", MOST_COUNTED),
        labels=("kind",),
        always=tuple((kind,) for kind in _OVERDUE),
    ),
    GaugeQuery(
        "retention_overdue_seconds",
        "For how long the oldest of those is kept beyond its time.",
        _overdue(_OVERDUE, "extract(epoch FROM clock_timestamp() - min(due))", 1),
        labels=("kind",),
    ),
    GaugeQuery(
        "prune_overdue_rows",
        f"Rows that are kept longer than the settings say, {MOST_COUNTED} at most.",
        _overdue(_UNPRUNED, "count(*)", MOST_COUNTED),
        labels=("kind",),
        always=tuple((kind,) for kind in _UNPRUNED),
    ),
    GaugeQuery(
        "prune_overdue_seconds",
        "For how long the oldest of those is kept beyond its time.",
        _overdue(_UNPRUNED, "extract(epoch FROM clock_timestamp() - min(due))", 1),
        labels=("kind",),
    ),
    GaugeQuery(
        "training_runs",
        "Training runs by how they ended.",
        "SELECT state, count(*) FROM app.training_runs GROUP BY state",
        labels=("state",),
        always=tuple((state,) for state in RUN_STATES),
    ),
    GaugeQuery(
        "training_run_seconds",
        "Age of the training run that is under way.",
        "SELECT extract(epoch FROM clock_timestamp() - started_at)"
        " FROM app.training_runs WHERE state = 'running'",
    ),
    GaugeQuery(
        "training_lease_seconds",
        "How long that run is still held; less than 0 when nobody holds it.",
        "SELECT extract(epoch FROM lease_until - clock_timestamp())"
        " FROM app.training_runs WHERE state = 'running'",
    ),
    GaugeQuery(
        "training_stages",
        "Finished stages of that run.",
        "SELECT (SELECT count(*) FROM jsonb_object_keys(stages))"
        " FROM app.training_runs WHERE state = 'running'",
    ),
    GaugeQuery(
        "training_snapshot_images",
        "Images of the newest sealed data set, by what they are for.",
        "SELECT side, label, count(*) FROM app.snapshot_items WHERE snapshot_id ="
        " (SELECT max(id) FROM app.dataset_snapshots WHERE sealed_at IS NOT NULL)"
        " GROUP BY side, label",
        labels=("side", "label"),
    ),
    GaugeQuery(
        "shadow_seconds",
        "For how long a challenger has been in shadow.",
        f"SELECT model_version, extract(epoch FROM now() - since) FROM ({IN_SHADOW}) s",  # noqa: S608 - a constant
        labels=("model_version",),
    ),
    GaugeQuery(
        "shadow_pairs",
        "Images of the last day, 1000 at most, that champion and challenger judged.",
        f"SELECT champion = challenger, count(*) FROM ({LATEST_PAIRS}) p GROUP BY 1",  # noqa: S608 - a constant
        labels=("agree",),
    ),
    GaugeQuery(
        "shadow_score_correlation",
        "Pearson's correlation of their scores of those images.",
        f"SELECT corr(champion_score, score) AS c FROM ({LATEST_PAIRS}) p HAVING count(*) > 1",  # noqa: S608 - a constant
    ),
    *(
        GaugeQuery(
            f"drift_{name}",
            documentation,
            f"SELECT source, {value} FROM ({_DRIFT}) d WHERE {value} IS NOT NULL",  # noqa: S608 - constants
            labels=("source",),
        )
        for name, value, documentation in (
            ("psi", "psi", "Population stability index of the champion's scores."),
            ("ks", "ks", "Kolmogorov and Smirnov's distance of the champion's scores."),
            ("unsure_ratio", "unsure", "Share of recent verdicts that are unsure."),
            ("reference_unsure_ratio", "reference_unsure", "That share when the model was new."),
            (
                "overturned_ratio",
                "overturned / nullif(decisions, 0)::float8",
                "Share of recent decisions that contradict a sure label.",
            ),
            ("detected", "drifted::int", "1 where scores moved beyond the limits."),
        )
    ),
    GaugeQuery(
        "drift_read_timestamp_seconds",
        "When drift was last read.",
        "SELECT extract(epoch FROM max(at)) FROM app.drift_readings HAVING count(*) > 0",
    ),
    GaugeQuery(
        "training_finished_timestamp_seconds",
        "When a training run last finished.",
        "SELECT extract(epoch FROM max(ended_at)) FROM app.training_runs"
        " WHERE state = 'finished' HAVING count(*) > 0",
    ),
)


class DatabaseCollector(Collector):
    """A collector of what was read last; raises `LedgerUnavailable` from `read` alone."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._families: list[GaugeMetricFamily] = []

    def read(self) -> None:
        """Ask the database once for everything, in one transaction."""
        with transaction(self._engine) as connection:
            self._families = [reading.read(connection) for reading in GAUGES]

    def collect(self) -> Iterator[Metric]:
        """Return the last reading; nothing before the first one."""
        yield from self._families
