"""Every setting of the service, read once in the composition root and passed down.

Names are `UNLATENT_<SECTION>__<NAME>` in the environment, for example
`UNLATENT_REDIS__URL=rediss://…`; a name that is not a setting is an error. The local stack writes
the same names into `<folder>/stack.env`, so that local and production differ in addresses only.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from detection.errors import SettingsError
from worker.setting_values import HttpUrl, PostgresUrl, RedisUrl, form, read
from worker.text import MASK, mask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pydantic.fields import FieldInfo

PREFIX = "UNLATENT_"


class Section(BaseModel):
    """A group of settings; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[info.field_name or ""]
        return read(value, field) if isinstance(value, str) else value


class Redis(Section):
    """The broker and the ingest list."""

    url: RedisUrl = SecretStr("redis://127.0.0.1:6379/0")
    key_prefix: str = "unlatent:"
    ingest_key: str = "ingest"
    rejected_max: int = Field(default=1000, ge=1)


class Postgres(Section):
    """The ledger, as the service; migrations ask as its owner.

    The commands of moderators ask as `moderator_url`, those that say who moderates and which policy
    rules as `operator_url`, where these are set. A statement that was run
    `prepare_threshold` times on a connection is prepared on the server; 0 prepares none. Unset, it
    is 5 on a direct connection and 0 behind a pooler.
    """

    url: PostgresUrl = SecretStr("postgresql+psycopg://unlatent_app@127.0.0.1:5432/unlatent")
    owner_url: PostgresUrl | None = None
    moderator_url: PostgresUrl | None = None
    operator_url: PostgresUrl | None = None
    pool_size: int = Field(default=4, ge=1)
    statement_timeout_s: float = Field(default=15.0, gt=0)
    lock_timeout_s: float = Field(default=5.0, gt=0)
    prepare_threshold: int | None = Field(default=None, ge=0, examples=[0])


class S3(Section):
    """Where uploads are stored; only these buckets are ever read.

    After trouble with `denied_limit` objects in a row a worker pauses. An image that storage does
    not give ends after `unreadable_tries` or `unreadable_hours`, whichever comes first.
    """

    endpoint_url: HttpUrl | None = None
    region: str = "us-east-1"
    access_key_id: SecretStr | None = None
    secret_access_key: SecretStr | None = None
    buckets: tuple[str, ...] = Field(default=("uploads",), min_length=1)
    connect_timeout_s: float = Field(default=3.0, gt=0)
    read_timeout_s: float = Field(default=10.0, gt=0)
    fetch_timeout_s: float = Field(default=30.0, gt=0)
    denied_limit: int = Field(default=5, ge=1)
    unreadable_tries: int = Field(default=20, ge=1)
    unreadable_hours: float = Field(default=24.0, gt=0)


class Sqs(Section):
    """How `unlatent bridge --sqs` reaches its queue, whose address is in the queue's URL.

    Without keys, boto3 looks for them where it always does: environment, files, the role of the pod
    or machine. `region` is needed only where the URL does not name it.
    """

    region: str | None = Field(default=None, examples=["us-east-1"])
    access_key_id: SecretStr | None = None
    secret_access_key: SecretStr | None = None


class Intake(Section):
    """Limits on untrusted bytes, and whose signatures on them count.

    `c2pa_signers` and `c2pa_time_stamp_authorities` are PEM files of root certificates: whose C2PA
    manifests are `trusted`, and whose time stamps prove that a certificate held when it signed.
    """

    max_bytes: int = Field(default=64 * 2**20, ge=1)
    max_pixels: int = Field(default=100_000_000, ge=64 * 64)
    max_frames: int = Field(default=2000, ge=1)
    max_metadata_bytes: int = Field(default=8 * 2**20, ge=1)
    processes: int = Field(default=2, ge=1)
    timeout_s: float = Field(default=20.0, gt=0)
    signals_timeout_s: float = Field(default=5.0, gt=0)
    memory_bytes: int = Field(default=2 * 2**30, ge=256 * 2**20)
    in_flight_bytes: int = Field(default=2**30, ge=2**20)
    c2pa_signers: tuple[Path, ...] = Field(default=(), examples=[["trust/signers.pem"]])
    c2pa_time_stamp_authorities: tuple[Path, ...] = Field(
        default=(), examples=[["trust/authorities.pem"]]
    )


class Scoring(Section):
    """The worker that scores: bundle, device, batches, leases.

    `bundle` serves until a first model is champion; then the registry's pointer counts. `cache` is
    where bundles are downloaded to; `generators` holds the folders of presets that a bundle may
    name, else they come from the hub's cache. Of `shadow_share` of the images a challenger in
    shadow may give a second verdict.
    """

    bundle: str = "small"
    cache: Path = Path("var/models")
    generators: Path | None = Field(default=None, examples=["/srv/generators"])
    reload_every_s: float = Field(default=5.0, gt=0)
    shadow_share: float = Field(default=0.1, ge=0, le=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=16, ge=1)
    max_batch: int = Field(default=8, ge=1)
    max_wait_s: float = Field(default=0.02, ge=0)
    lease_s: float = Field(default=120.0, gt=0)
    forward_timeout_s: float = Field(default=60.0, gt=0)
    max_deaths: int = Field(default=3, ge=1)
    death_window_s: float = Field(default=300.0, gt=0)
    max_deaths_in_window: int = Field(default=40, ge=1)


class Hub(Section):
    """Where `unlatent models pull` and `push` find bundles; `token` is an access token of the hub.

    A hub that is silent for `timeout_s` counts as away.
    """

    endpoint: HttpUrl = "https://huggingface.co"
    token: SecretStr | None = None
    timeout_s: float = Field(default=60.0, gt=0)


class Queue(Section):
    """Celery over Redis."""

    visibility_timeout_s: int = Field(default=300, ge=1)
    sweep_every_s: float = Field(default=30.0, gt=0)
    sweep_limit: int = Field(default=500, ge=1)
    sweep_when_shorter_than: int = Field(default=1000, ge=1)


class Observability(Section):
    """Logs, metrics, probes."""

    log_format: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    metrics_port: int = Field(default=0, ge=0, le=65535)
    run_dir: Path = Path("var/run")


class Tracing(Section):
    """Traces from event to verdict; without the address of a collector there are none.

    `endpoint` is a collector that speaks OTLP over HTTP, without the path. Of the traces that begin
    here `sample_share` are kept; one that a producer began is kept as it says.
    """

    endpoint: HttpUrl | None = None
    sample_share: float = Field(default=1.0, ge=0, le=1)


class Moderation(Section):
    """What moderators see; addresses are templates with {id}, {bucket} and {key}.

    Evidence is kept in `evidence_bucket`, nowhere unless it is set.
    """

    image_url: str | None = Field(default=None, examples=["https://console.example/{id}"])
    evidence_url: str | None = Field(
        default=None, examples=["https://store.example/{bucket}/{key}"]
    )
    evidence_bucket: str | None = Field(default=None, examples=["evidence"])
    claim_minutes: int = Field(default=15, ge=1)
    check_breakers_every_s: float = Field(default=60.0, gt=0)
    keep_counts_every_s: float = Field(default=60.0, gt=0)


class Console(Section):
    """The moderators' pages: where they are served, and who is believed to say who asks.

    Without `proxies` moderators sign in with their database logins, at the database of
    `UNLATENT_POSTGRES__URL`. With them the name comes in the header `user_header` of a request, and
    only from a proxy at one of these addresses or networks; the console then asks the database as
    `url`, the login of role unlatent_console. A session ends after `idle_minutes` without requests.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8600, ge=0, le=65535)
    idle_minutes: float = Field(default=30.0, gt=0)
    proxies: tuple[str, ...] = Field(default=(), examples=[["10.0.0.0/8"]])
    user_header: str = "X-Forwarded-User"
    url: PostgresUrl | None = None


class Http(Section):
    """`unlatent serve`: where it answers, whom, and how much at once.

    `keys` has for each source the SHA-256 of its bearer key, in hexadecimal digits, or of several
    with spaces between (`unlatent new-key` prints a key and its digest). Without keys it answers on
    a loopback address only. At most `requests` are under way at once, each for `timeout_s` at most.
    With `ledger` it also takes uploads into the ledger, as the bridge does. When a hook's check
    fails, the upload is stored if `hooks_fail_open`, else it is refused.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8700, ge=0, le=65535)
    keys: dict[str, SecretStr] = Field(default={}, examples=[{"web": "9f86d081..."}])
    requests: int = Field(default=64, ge=1)
    timeout_s: float = Field(default=30.0, gt=0)
    ledger: bool = False
    hooks_fail_open: bool = True


class Webhooks(Section):
    """Where signed messages go; without an address none are written.

    `url` is the endpoint `main`, with its secret. `endpoints` names further ones, and `secrets` has
    for each its secret, or the new and the old one with a space between while they change. One that
    has taken nothing for `switch_off_hours` is switched off.
    """

    url: HttpUrl | None = None
    secret: SecretStr | None = None
    previous_secret: SecretStr | None = None
    endpoints: dict[str, HttpUrl] = Field(
        default={}, examples=[{"archive": "https://archive.example/hooks"}]
    )
    secrets: dict[str, SecretStr] = Field(default={}, examples=[{"archive": "whsec_..."}])
    switch_off_hours: float = Field(default=72.0, gt=0)
    topics: tuple[str, ...] = (
        "verdict.flagged",
        "decision",
        "appeal.opened",
        "appeal.closed",
        "breaker.opened",
        "breaker.closed",
        "image.erased",
    )
    timeout_s: float = Field(default=10.0, gt=0)
    max_attempts: int = Field(default=12, ge=1)
    backoff_s: float = Field(default=5.0, gt=0)
    backoff_max_s: float = Field(default=3600.0, gt=0)


class Retention(Section):
    """How many days what is kept; nothing set means for ever.

    Beat has rows of the last four removed every `prune_every_s`, for half of that time at most:
    webhooks that were delivered or given up, closed leases, removals of objects, and audited
    changes of state. What people did stays in the audit.
    """

    originals_days: float | None = Field(default=None, gt=0, examples=[90])
    evidence_days: float | None = Field(default=None, gt=0, examples=[30])
    outbox_days: float | None = Field(default=30.0, gt=0)
    leases_days: float | None = Field(default=90.0, gt=0)
    removals_days: float | None = Field(default=90.0, gt=0)
    audit_days: float | None = Field(default=None, gt=0, examples=[365])
    prune_every_s: float = Field(default=60.0, gt=0)


class Dsa(Section):
    """What `unlatent export dsa` writes into every statement of reasons, in the API's words.

    `ground_reference` names the clause or law and `explanation` says why such content is against
    it; neither may name a person. `flags_restrict` says that the platform restricts what is flagged
    before a person has looked. `report_source` is whose reports the queue `report` holds.
    """

    category: Literal[
        "STATEMENT_CATEGORY_OTHER_VIOLATION_TC",
        "STATEMENT_CATEGORY_CONSUMER_INFORMATION",
        "STATEMENT_CATEGORY_CYBER_VIOLENCE",
        "STATEMENT_CATEGORY_CYBER_VIOLENCE_AGAINST_WOMEN",
        "STATEMENT_CATEGORY_DATA_PROTECTION_AND_PRIVACY_VIOLATIONS",
        "STATEMENT_CATEGORY_ILLEGAL_OR_HARMFUL_SPEECH",
        "STATEMENT_CATEGORY_INTELLECTUAL_PROPERTY_INFRINGEMENTS",
        "STATEMENT_CATEGORY_NEGATIVE_EFFECTS_ON_CIVIC_DISCOURSE_OR_ELECTIONS",
        "STATEMENT_CATEGORY_PROTECTION_OF_MINORS",
        "STATEMENT_CATEGORY_RISK_FOR_PUBLIC_SECURITY",
        "STATEMENT_CATEGORY_SCAMS_AND_FRAUD",
    ] = "STATEMENT_CATEGORY_OTHER_VIOLATION_TC"
    ground: Literal["DECISION_GROUND_INCOMPATIBLE_CONTENT", "DECISION_GROUND_ILLEGAL_CONTENT"] = (
        "DECISION_GROUND_INCOMPATIBLE_CONTENT"
    )
    ground_reference: str | None = Field(
        default=None, min_length=1, max_length=500, examples=["Terms of use, 4.2"]
    )
    explanation: str | None = Field(
        default=None, min_length=1, max_length=2000, examples=["Generated images must say so."]
    )
    visibility: Literal[
        "DECISION_VISIBILITY_CONTENT_LABELLED",
        "DECISION_VISIBILITY_CONTENT_DEMOTED",
        "DECISION_VISIBILITY_CONTENT_DISABLED",
        "DECISION_VISIBILITY_CONTENT_REMOVED",
    ] = "DECISION_VISIBILITY_CONTENT_LABELLED"
    countries: tuple[str, ...] = Field(
        default=(
            *("AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU"),
            *("IE", "IT", "LT", "LU", "LV", "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK"),
        ),
        min_length=1,
    )
    flags_restrict: bool = False
    report_source: Literal[
        "SOURCE_ARTICLE_16", "SOURCE_TRUSTED_FLAGGER", "SOURCE_TYPE_OTHER_NOTIFICATION"
    ] = "SOURCE_ARTICLE_16"

    @field_validator("countries")
    @classmethod
    def _codes(cls, countries: tuple[str, ...]) -> tuple[str, ...]:
        if any(len(code) != 2 or not code.isupper() for code in countries):
            raise ValueError(countries)
        return countries


class Training(Section):
    """Retraining: who may teach, what starts a run, where data sets go. Nobody may by default.

    A trigger that is not set never starts a run; `tick_s` is how often beat asks. Shares are of the
    groups of images; `shaders` procedural images join the photographs of a run for the aligned
    branch; `batch_size` is of reconstructions and, unless set, the device's. The autoencoders of
    the presets `aligners` make the pairs, without any the champion's own; presets lie in folders
    under `UNLATENT_SCORING__GENERATORS`, else in the hub's cache at the revisions that the file
    `pins` records. With `draw_codec` every image that is trained on is saved by a codec and quality
    that are drawn for it, both sides of a pair by the same. Checkpoints and scores of a run lie in
    `work_dir`, so that it resumes; on another machine it only takes longer. A challenger in shadow
    becomes champion by itself `promote_after_s` after it entered, once it judged
    `promote_min_images`; never without the former.
    """

    sources: tuple[str, ...] = Field(default=(), examples=[["web"]])
    trusted_sources: tuple[str, ...] = Field(default=(), examples=[["newsroom"]])
    bucket: str = "training"
    tick_s: float = Field(default=60.0, gt=0)
    every_s: float | None = Field(default=None, gt=0, examples=[86400])
    min_new_images: int | None = Field(default=None, ge=1, examples=[1000])
    on_drift: bool = False
    lease_s: float = Field(default=300.0, gt=0)
    max_per_source: int = Field(default=2000, ge=1)
    max_per_uploader: int = Field(default=50, ge=1)
    max_per_moderator: int = Field(default=200, ge=1)
    shaders: int = Field(default=0, ge=0)
    aligners: tuple[str, ...] = Field(default=(), examples=[["sd15", "taesd"]])
    pins: Path = Path("var/presets.json")
    variant: str | None = Field(default=None, examples=["fp16"])
    draw_codec: bool = False
    shard_images: int = Field(default=32, ge=1)
    batch_size: int | None = Field(default=None, ge=1, examples=[8])
    max_probe_auc: float = Field(default=0.6, ge=0.5, le=1)
    max_sharpness_auc: float = Field(default=0.8, ge=0.5, le=1)
    max_shift_px: float = Field(default=0.15, ge=0)
    max_tone_levels: float = Field(default=3.0, ge=0)
    max_mmd_squared: float = Field(default=0.1, ge=0)
    max_frechet: float = Field(default=1.0, ge=0)
    max_information: float = Field(default=0.1, ge=0)
    evaluation_share: float = Field(default=0.15, ge=0, le=0.5)
    calibration_share: float = Field(default=0.15, ge=0, le=0.5)
    work_dir: Path = Path("var/training")
    steps: int = Field(default=300, ge=1)
    promote_after_s: float | None = Field(default=None, gt=0, examples=[86400])
    promote_min_images: int = Field(default=100, ge=1)


class Drift(Section):
    """When a source counts as drifted: PSI from `psi_limit`, and KS beyond chance.

    The verdicts of the last `window_s` against the first `reference_images` of the same model
    version before that; neither is judged with fewer than `min_images`.
    """

    every_s: float = Field(default=3600.0, gt=0)
    window_s: float = Field(default=86_400.0, gt=0)
    reference_images: int = Field(default=2000, ge=1)
    min_images: int = Field(default=200, ge=1)
    psi_limit: float = Field(default=0.25, gt=0)


class Settings(BaseSettings):
    """The whole configuration of one process."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        enable_decoding=False,  # by `Section`, which knows the setting that an error is of
        extra="forbid",
        frozen=True,
    )

    redis: Redis = Redis()
    postgres: Postgres = Postgres()
    s3: S3 = S3()
    sqs: Sqs = Sqs()
    intake: Intake = Intake()
    scoring: Scoring = Scoring()
    hub: Hub = Hub()
    queue: Queue = Queue()
    observability: Observability = Observability()
    tracing: Tracing = Tracing()
    moderation: Moderation = Moderation()
    console: Console = Console()
    http: Http = Http()
    webhooks: Webhooks = Webhooks()
    retention: Retention = Retention()
    dsa: Dsa = Dsa()
    training: Training = Training()
    drift: Drift = Drift()


def load_settings(env_file: Path | None = None) -> Settings:
    """Read the settings of this process: the environment first, then `env_file`, then defaults.

    Raises `SettingsError` for a name that is not a setting and for a value that a setting refuses;
    its message names the setting and what it takes, and never shows the value.
    """
    known = in_force(Settings.model_construct()).keys()
    # pydantic-settings looks up the names it knows: a misspelt one would go unnoticed.
    unknown = sorted(environment_names() - known)
    if unknown:
        raise SettingsError(_no_setting(unknown[0], known))
    try:
        return Settings(_env_file=env_file)
    except ValidationError as error:
        # A part of a list is told as the list.
        refused = dict.fromkeys(_named(problem["loc"]) for problem in error.errors())
        problems = (
            f"{_environment_name(path)} must be {form(field)}"
            if field is not None
            else _no_setting(_environment_name(path), known)
            for path, field in ((path, _field(path)) for path in refused)
        )
        raise SettingsError("; ".join(problems)) from None  # the cause would show the values


def environment_names() -> frozenset[str]:
    """Return the names in this process's environment that carry our prefix, in upper case."""
    return frozenset(name.upper() for name in os.environ if name.upper().startswith(PREFIX))


def child_environment(settings: Settings) -> dict[str, str]:
    """Return the environment in which a child process reads these very settings, secrets included.

    It is this process's own but for the names with our prefix.
    """
    ours = environment_names()
    environment = {name: value for name, value in os.environ.items() if name.upper() not in ours}
    for path, value in _leaves(settings, ()):
        if isinstance(value, SecretStr):
            environment[_environment_name(path)] = value.get_secret_value()
        elif value is not None:
            environment[_environment_name(path)] = _written(value, SecretStr.get_secret_value)
    return environment


def in_force(settings: Settings) -> dict[str, str]:
    """Return every setting by its environment name, with secrets masked."""
    return {_environment_name(path): _shown(value) for path, value in _leaves(settings, ())}


def _leaves(section: BaseModel, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _shown(value: object) -> str:
    if isinstance(value, SecretStr):
        masked = mask(value.get_secret_value())
        return masked if "://" in masked else MASK
    return "" if value is None else _written(value)


def _written(value: object, secret: Callable[[SecretStr], str] = lambda _: MASK) -> str:
    """Return what the environment says for a value; secrets within it as `secret` has them."""

    def other(part: object) -> str:
        return secret(part) if isinstance(part, SecretStr) else str(part)

    return json.dumps(value, default=other) if isinstance(value, tuple | dict) else str(value)


def _environment_name(path: Sequence[int | str]) -> str:
    return PREFIX + "__".join(str(part) for part in path).upper()


def _named(location: tuple[int | str, ...]) -> tuple[str, ...]:
    """Return the section and the setting in it where pydantic found a fault."""
    return tuple(str(part) for part in location[:2])


def _field(path: tuple[str, ...]) -> FieldInfo | None:
    section = getattr(Settings.model_construct(), path[0], None)
    if not isinstance(section, Section) or len(path) == 1:
        return None
    return type(section).model_fields.get(path[1])


def _no_setting(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"{name} is not a setting" + (f"; did you mean {nearest[0]}?" if nearest else "")
