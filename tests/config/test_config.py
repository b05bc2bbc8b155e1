"""Settings: which source wins, and what an operator is told about a wrong one."""

from pathlib import Path

import pytest

from mooring import config
from mooring.config import SETTINGS, Config, load
from mooring.errors import ConfigError


def write(folder: Path, text: str) -> None:
    (folder / "mooring.toml").write_text(text)


def test_without_any_source_the_defaults_hold(tmp_path: Path) -> None:
    assert load(tmp_path) == Config()


def test_the_file_in_the_data_directory_is_read(tmp_path: Path) -> None:
    write(tmp_path, "production = true\n[events]\nretention_days = 7\n[hub]\naliases = ['a.b']\n")
    read = load(tmp_path)
    assert read.production
    assert read.events.retention_days == 7
    assert read.hub.aliases == ("a.b",)


def test_another_file_replaces_it(tmp_path: Path) -> None:
    write(tmp_path, "[events]\nretention_days = 7\n")
    other = tmp_path / "other.toml"
    other.write_text("[events]\npartitions = 2\n")
    read = load(tmp_path, file=other)
    assert (read.events.partitions, read.events.retention_days) == (2, 1)


def test_environment_beats_file_and_flags_beat_environment(tmp_path: Path) -> None:
    write(tmp_path, "[listen]\nmqtt_port = 1\namqp_port = 2\nhttps_port = 3\n")
    read = load(
        tmp_path,
        environ={"MOORING_LISTEN_AMQP_PORT": "20", "MOORING_LISTEN_HTTPS_PORT": "30"},
        flags={"listen.https_port": "300", "listen.mqtt_port": None},
    )
    assert (read.listen.mqtt_port, read.listen.amqp_port, read.listen.https_port) == (1, 20, 300)


@pytest.mark.parametrize(
    ("variable", "text", "section", "key", "value"),
    [
        ("MOORING_PRODUCTION", "yes", "", "production", True),
        ("MOORING_PRODUCTION", "0", "", "production", False),
        ("MOORING_LISTEN_METRICS_PORT", "off", "listen", "metrics_port", "off"),
        ("MOORING_LISTEN_HOSTS", "::1, 127.0.0.1", "listen", "hosts", ("::1", "127.0.0.1")),
        ("MOORING_TLS_HANDSHAKE_TIMEOUT", "2.5", "tls", "handshake_timeout", 2.5),
        ("MOORING_TLS_MIN_VERSION", "1.3", "tls", "min_version", "1.3"),
        ("MOORING_HUB_ALIASES", "", "hub", "aliases", ()),
    ],
)
def test_text_becomes_what_the_setting_is(
    tmp_path: Path, variable: str, text: str, section: str, key: str, value: object
) -> None:
    read = load(tmp_path, environ={variable: text})
    assert getattr(getattr(read, section) if section else read, key) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[events]\nretention_days = 9",
            "mooring.toml: events.retention_days must be between 1 and 7, not 9",
        ),
        (
            "[events]\nretention_days = 'long'",
            "mooring.toml: events.retention_days must be between 1 and 7, not long",
        ),
        (
            "[events]\nretention_day = 1",
            "mooring.toml: events.retention_day is no setting; did you mean events.retention_days?",
        ),
        ("[event]\nx = 1", "mooring.toml: event is no setting; did you mean events?"),
        ("mqtt_port = 1", "mooring.toml: mqtt_port is no setting; did you mean listen.mqtt_port?"),
        ("events = 1", "mooring.toml: events must be a section, written [events]"),
        (
            "[listen]\nmqtt_port = true",
            "mooring.toml: listen.mqtt_port must be between 0 and 65535 or off, not true",
        ),
        (
            "[log]\nformat = 'xml'",
            "mooring.toml: log.format must be auto, console or json, not xml",
        ),
        (
            "[hub]\nname = ''",
            "mooring.toml: hub.name must be a host name, not empty",
        ),
        (
            "[listen]\nmqtt_port = 443",
            "the default: listen.https_port must not be 443: listen.mqtt_port has that port",
        ),
        (
            "production = true\n[storage]\nfsync = false",
            "mooring.toml: storage.fsync must be true in production: "
            "without it acknowledged messages can be lost",
        ),
        ("[hub]\nothers = ['localhost']", "mooring.toml: hub.others names localhost"),
        ("a = = 1", "mooring.toml: not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_key(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load(tmp_path)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        (
            "MOORING_EVENTS_RETENTION_DAYS",
            "0",
            "MOORING_EVENTS_RETENTION_DAYS must be between 1 and 7, not 0",
        ),
        (
            "MOORING_EVENTS_RETENTION_DAY",
            "1",
            "MOORING_EVENTS_RETENTION_DAY: no such setting; "
            "did you mean MOORING_EVENTS_RETENTION_DAYS?",
        ),
        (
            "MOORING_PRODUCTON",
            "1",
            "MOORING_PRODUCTON: no such setting; did you mean MOORING_PRODUCTION?",
        ),
        ("MOORING_STORAGE_FSYNC", "maybe", "MOORING_STORAGE_FSYNC must be true or false"),
    ],
)
def test_a_wrong_variable_is_refused(tmp_path: Path, variable: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, environ={variable: text})
    assert str(refused.value).startswith(said)


def test_what_an_orchestrator_sets_for_a_service_named_mooring_is_left_alone(
    tmp_path: Path,
) -> None:
    environ = {
        "MOORING_SERVICE_HOST": "10.0.0.1",
        "MOORING_PORT": "tcp://10.0.0.1:443",
        "MOORING_PORT_443_TCP_ADDR": "10.0.0.1",
        "MOORING_DATA": "/somewhere",
    }
    assert load(tmp_path, environ=environ) == Config()


def test_a_flag_is_named_as_it_was_typed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--mqtt-port must be between 0 and 65535 or off, not"):
        load(tmp_path, flags={"listen.mqtt_port": "70000"})


def test_plain_amqp_is_refused_in_production(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--amqp-plain-port must be off in production"):
        load(
            tmp_path,
            environ={"MOORING_PRODUCTION": "true"},
            flags={"listen.amqp_plain_port": "5672"},
        )


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path, file=tmp_path / "absent.toml")


def test_every_setting_says_what_it_is_for() -> None:
    for setting in SETTINGS.values():
        assert setting.description.endswith("."), setting.name
        assert setting.allowed != "of another type", setting.name


def test_names_of_variables_are_unique() -> None:
    assert len({setting.env for setting in SETTINGS.values()}) == len(SETTINGS)
    assert config.CONFIG_ENV not in {setting.env for setting in SETTINGS.values()}
