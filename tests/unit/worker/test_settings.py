"""Settings: what the environment may say, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from detection.errors import SettingsError
from worker.settings import Settings, child_environment, in_force, load_settings

if TYPE_CHECKING:
    from pathlib import Path


def test_a_value_of_the_environment_reaches_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A nested name sets its one setting and leaves its neighbours at their defaults."""
    monkeypatch.setenv("UNLATENT_S3__BUCKETS", '["avatars", "posts"]')
    settings = load_settings()
    assert settings.s3.buckets == ("avatars", "posts")
    assert settings.s3.region == "us-east-1"


@pytest.mark.parametrize(
    "name",
    [
        "UNLATENT_REDIS__ULR",  # a misspelt setting
        "UNLATENT_REDIS",  # a whole section, which would be a second way to say the same
        "unlatent_redis__ulr",  # names are read without regard to case
        "UNLATENT_NONSENSE",
    ],
)
def test_a_name_that_is_no_setting_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """An unknown name with our prefix is an error that repeats the name."""
    monkeypatch.setenv(name, "{}")
    with pytest.raises(SettingsError, match=f"{name.upper()} is not a setting"):
        load_settings()


def test_a_misspelt_name_is_told_its_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error for a misspelt name offers the name that was probably meant."""
    monkeypatch.setenv("UNLATENT_REDIS__ULR", "redis://elsewhere")
    with pytest.raises(SettingsError, match=r"did you mean UNLATENT_REDIS__URL\?"):
        load_settings()


def test_a_refused_value_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error for a bad value names the setting and keeps the value to itself."""
    monkeypatch.setenv("UNLATENT_POSTGRES__POOL_SIZE", "hunter2")
    with pytest.raises(SettingsError, match="UNLATENT_POSTGRES__POOL_SIZE") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_the_environment_wins_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in the environment beats the same name in the file; the rest comes from the file."""
    env_file = tmp_path / "stack.env"
    env_file.write_text("UNLATENT_S3__REGION=from-file\nUNLATENT_SCORING__BUNDLE=from-file\n")
    monkeypatch.setenv("UNLATENT_S3__REGION", "from-environment")
    settings = load_settings(env_file)
    assert settings.s3.region == "from-environment"
    assert settings.scoring.bundle == "from-file"


def test_an_unknown_name_in_a_file_is_refused(tmp_path: Path) -> None:
    """A file may not say what the environment may not say."""
    env_file = tmp_path / "stack.env"
    env_file.write_text("UNLATENT_S3__REGOIN=nowhere\n")
    with pytest.raises(SettingsError, match="REGOIN"):
        load_settings(env_file)


def test_settings_in_force_can_be_read_back_and_hide_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What `config` prints is valid as an environment, except that secrets are masked."""
    monkeypatch.setenv("UNLATENT_REDIS__URL", "rediss://:hunter2@cache.example:6380/1")
    monkeypatch.setenv("UNLATENT_S3__SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("UNLATENT_S3__BUCKETS", '["avatars"]')
    settings = load_settings()
    shown = in_force(settings)
    assert "hunter2" not in str(shown)
    assert shown["UNLATENT_REDIS__URL"] == "rediss://:***@cache.example:6380/1"
    for name, value in shown.items():
        if value and "***" not in value:
            monkeypatch.setenv(name, value)
    assert load_settings() == settings


def test_a_child_reads_the_settings_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child's environment carries these settings, secrets too, and none of this process's own."""
    monkeypatch.setenv("HARMLESS", "kept")
    given = Settings.model_validate(
        {
            "redis": {"url": "redis://:hunter2@cache.example/0"},
            "s3": {"buckets": ("a", "b")},
            "intake": {"c2pa_signers": ("a.pem", "b.pem")},
        }
    )
    monkeypatch.setenv("UNLATENT_S3__ENDPOINT_URL", "http://elsewhere.example")
    child = child_environment(given)
    monkeypatch.delenv("UNLATENT_S3__ENDPOINT_URL")
    assert child["HARMLESS"] == "kept"
    for name, value in child.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == given


def _names() -> list[str]:
    return list(in_force(Settings.model_construct()))


#: What no setting but a text takes.
NONSENSE = "hunter2\N{SNOWMAN}"
TEXTS = {
    *("REDIS__KEY_PREFIX", "REDIS__INGEST_KEY", "S3__REGION", "SQS__REGION", "SCORING__BUNDLE"),
    *("SCORING__CACHE", "SCORING__GENERATORS", "OBSERVABILITY__RUN_DIR", "TRAINING__WORK_DIR"),
    *("MODERATION__IMAGE_URL", "MODERATION__EVIDENCE_URL", "MODERATION__EVIDENCE_BUCKET"),
    *("S3__ACCESS_KEY_ID", "S3__SECRET_ACCESS_KEY", "SQS__ACCESS_KEY_ID", "SQS__SECRET_ACCESS_KEY"),
    *("WEBHOOKS__SECRET", "WEBHOOKS__PREVIOUS_SECRET", "TRAINING__BUCKET"),
    *("CONSOLE__HOST", "CONSOLE__USER_HEADER", "DSA__GROUND_REFERENCE", "DSA__EXPLANATION"),
    *("HTTP__HOST", "HUB__TOKEN", "TRAINING__PINS", "TRAINING__VARIANT"),
}


@pytest.mark.parametrize(
    "name", [name for name in _names() if name.removeprefix("UNLATENT_") not in TEXTS]
)
def test_a_refused_value_is_told_what_the_setting_takes(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """For each setting: nonsense is refused with an example, and that example is taken."""
    monkeypatch.setenv(name, NONSENSE)
    with pytest.raises(SettingsError, match=f"^{name} must be .*, for example ") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv(name, str(caught.value).rpartition(", for example ")[2])
    load_settings()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("S3__BUCKETS", "uploads", "a JSON list of one or more names, for example"),
        ("S3__BUCKETS", "[]", "a JSON list of one or more names"),
        ("S3__BUCKETS", '["uploads", 7]', "a JSON list of one or more names"),
        ("S3__BUCKETS", '{"uploads": 1}', "a JSON list of one or more names"),
        ("S3__ENDPOINT_URL", "minio:9000", "begins with http:// or https://"),
        ("S3__ENDPOINT_URL", "https://", "begins with http:// or https://"),
        ("REDIS__URL", "https://cache.example:6379", "begins with redis:// or rediss://"),
        ("REDIS__URL", "redis://:hun#ter2@cache.example/0", "# is %23"),
        ("REDIS__URL", "redis://cache.example/name", "begins with redis://"),
        ("POSTGRES__URL", "postgres://u:hunter2@db.example/x", r"begins with postgresql\+psycopg:"),
        ("POSTGRES__OWNER_URL", "mysql://u:hunter2@db.example/x", r"begins with postgresql"),
        ("POSTGRES__MODERATOR_URL", "postgresql://u:hunter2/x", r"begins with postgresql"),
        ("POSTGRES__POOL_SIZE", "0", "a whole number of at least 1"),
        ("SCORING__SHADOW_SHARE", "2", "a number from 0 to 1"),
        ("SCORING__LEASE_S", "inf", "a number above 0"),
        ("OBSERVABILITY__LOG_LEVEL", "INFO", "one of debug, info, warning, error"),
    ],
)
def test_a_value_of_a_wrong_form_is_told_the_right_one(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    """The error names the setting and its form, and keeps the value to itself."""
    monkeypatch.setenv(f"UNLATENT_{name}", value)
    with pytest.raises(SettingsError, match=f"^UNLATENT_{name} must be .*{told}") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS__URL", "rediss://:p%40ss@cache.example:6380/1?ssl_ca_certs=/ca.pem"),
        ("POSTGRES__URL", "postgresql+psycopg://u:p#s/s@[::1]:5432/x?sslmode=verify-full"),
        ("POSTGRES__URL", "postgresql+psycopg://unlatent_app@/unlatent?host=/run/postgresql"),
        ("S3__ENDPOINT_URL", "http://[::1]:9000"),
        ("S3__ENDPOINT_URL", ""),
    ],
)
def test_every_form_of_an_address_is_taken(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """What the libraries read as an address is one; nothing is no address."""
    monkeypatch.setenv(f"UNLATENT_{name}", value)
    section, _, setting = name.lower().partition("__")
    read = getattr(getattr(load_settings(), section), setting)
    assert (read.get_secret_value() if hasattr(read, "get_secret_value") else read or "") == value
