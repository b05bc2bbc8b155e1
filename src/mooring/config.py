"""What an operator can set: one struct per section, read from a file, the environment and flags.

Rules. The structs below are the only list of settings: `docs/configuration.md`, the messages for
wrong values and the names of the environment variables are all derived from them. A later source
wins over an earlier one: defaults < `mooring.toml` < `MOORING_<SECTION>_<KEY>` < flags. A wrong
value and an unknown key are refused, never ignored; the message names the source and the key.
Durations are seconds and sizes are bytes unless the key's name says otherwise.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta
from msgspec.inspect import (
    BoolType,
    FloatType,
    IntType,
    LiteralType,
    Metadata,
    StrType,
    Type,
    UnionType,
    VarTupleType,
    type_info,
)

from .errors import ConfigError

CONFIG_NAME = "mooring.toml"
ENV_PREFIX = "MOORING_"
DATA_ENV = "MOORING_DATA"
CONFIG_ENV = "MOORING_CONFIG"

# What commands find in the data directory.
CA_NAME = "ca.pem"
SOCKET_NAME = "control.sock"

_HOST_NAME = r"^[A-Za-z0-9]([A-Za-z0-9.\-]{0,126}[A-Za-z0-9])?$"
_GROUP_NAME = r"^[$A-Za-z0-9][A-Za-z0-9._\-]{0,49}$"

Port = Annotated[int, Meta(ge=0, le=65535)] | Literal["off"]
HostName = Annotated[str, Meta(pattern=_HOST_NAME, extra={"form": "a host name"})]
GroupName = Annotated[str, Meta(pattern=_GROUP_NAME, extra={"form": "a consumer group name"})]


def _about(text: str) -> Meta:
    return Meta(description=text)


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """What all sections are."""


class Listen(Section, frozen=True, kw_only=True):
    """Where the server listens. A port is a number, 0 for any free one, or "off"."""

    hosts: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...],
        _about("Addresses to listen on, of IPv4 and IPv6; none means all that the machine has."),
    ] = ()
    mqtt_port: Annotated[Port, _about("MQTT over TLS. The device SDKs cannot use another.")] = 8883
    amqp_port: Annotated[
        Port, _about("AMQP over TLS, for back ends, devices and the Event Hubs-compatible reader.")
    ] = 5671
    https_port: Annotated[
        Port, _about("HTTPS. The service SDKs cannot use another; below 1024 needs a privilege.")
    ] = 443
    amqp_plain_port: Annotated[
        Port,
        _about(
            "AMQP without TLS on loopback only: the Azure SDKs' emulator convention "
            "(`UseDevelopmentEmulator=true`), usually 5672. Refused in production."
        ),
    ] = "off"
    metrics_port: Annotated[
        Port, _about("Prometheus metrics, `/healthz` and `/readyz`, on loopback only.")
    ] = 9464


class HubNames(Section, frozen=True, kw_only=True):
    """Which hubs the server carries and by which host names clients know them."""

    name: Annotated[
        HostName,
        _about(
            "Host name of the first hub. It also answers as `localhost`, 127.0.0.1 and the "
            "machine's host name."
        ),
    ] = "localhost"
    aliases: Annotated[tuple[HostName, ...], _about("More host names of the first hub.")] = ()
    others: Annotated[
        tuple[HostName, ...],
        _about("Host names of further hubs; each has its own devices, policies and events."),
    ] = ()


class Tls(Section, frozen=True, kw_only=True):
    """What is asked of a TLS connection before anything of it is believed."""

    min_version: Annotated[Literal["1.2", "1.3"], _about("Oldest TLS version accepted.")] = "1.2"
    legacy_ciphers: Annotated[
        bool,
        _about("Also offer ECDHE with AES-CBC and SHA-256, for old devices that know no GCM."),
    ] = False
    handshake_timeout: Annotated[
        float, Meta(ge=1, le=120), _about("Time that a TLS handshake may take.")
    ] = 10.0
    first_byte_timeout: Annotated[
        float, Meta(ge=1, le=120), _about("Time after the handshake until something is sent.")
    ] = 10.0
    max_connections: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        _about("Connections on one port; more are closed at once."),
    ] = 50_000
    max_pending: Annotated[
        int,
        Meta(ge=1, le=100_000),
        _about("Connections on one port that have sent nothing yet; beyond, the oldest is closed."),
    ] = 1_000
    max_connections_per_address: Annotated[
        int, Meta(ge=0, le=1_000_000), _about("Connections from one address; 0 means no limit.")
    ] = 0


class Mqtt(Section, frozen=True, kw_only=True):
    """MQTT sessions."""

    max_keep_alive: Annotated[
        int,
        Meta(ge=30, le=65535),
        _about("Silence after which any client counts as gone, whatever keep-alive it asked for."),
    ] = 1767
    first_packet_time: Annotated[
        float, Meta(ge=1, le=300), _about("Time in which a whole CONNECT must have come.")
    ] = 30.0
    session_expiry: Annotated[
        int,
        Meta(ge=0, le=31 * 86400),
        _about("How long the session of a device that is away (clean session off) is kept."),
    ] = 86400


class Amqp(Section, frozen=True, kw_only=True):
    """AMQP connections."""

    authentication_time: Annotated[
        float, Meta(ge=1, le=300), _about("Time that a connection may live without a valid token.")
    ] = 30.0
    idle_timeout: Annotated[
        float,
        Meta(ge=10, le=3600),
        _about("Silence after which a client counts as gone; clients are told it at the open."),
    ] = 240.0


class Events(Section, frozen=True, kw_only=True):
    """The event log that telemetry is written to and back ends read."""

    partitions: Annotated[
        int, Meta(ge=1, le=32), _about("Partitions of a new hub; fixed once it was created.")
    ] = 4
    retention_days: Annotated[
        int, Meta(ge=1, le=7), _about("Events older than this are dropped.")
    ] = 1
    retention_bytes: Annotated[
        int,
        Meta(ge=1 << 20, le=1 << 50),
        _about("The oldest events of a partition are dropped when it grows past this."),
    ] = 4 << 30
    consumer_groups: Annotated[
        tuple[GroupName, ...],
        _about("Consumer groups made at start beside `$Default`, which is always there."),
    ] = ()


class CloudToDevice(Section, frozen=True, kw_only=True):
    """Cloud-to-device messages."""

    default_ttl: Annotated[
        int, Meta(ge=60, le=172_800), _about("Time to live of a message that names none.")
    ] = 3600
    max_delivery_count: Annotated[
        int, Meta(ge=1, le=100), _about("Deliveries before a message is dead-lettered.")
    ] = 10
    max_queue_depth: Annotated[
        int, Meta(ge=1, le=10_000), _about("Messages waiting for one device or module.")
    ] = 50


class Feedback(Section, frozen=True, kw_only=True):
    """What senders of cloud-to-device messages are told about them."""

    ttl: Annotated[
        int, Meta(ge=60, le=172_800), _about("How long a feedback record waits to be read.")
    ] = 3600
    lock_duration: Annotated[
        int, Meta(ge=5, le=300), _about("How long a receiver may hold a batch before it settles.")
    ] = 60
    max_delivery_count: Annotated[
        int, Meta(ge=1, le=100), _about("Deliveries before a batch is dropped.")
    ] = 100
    batch_interval: Annotated[
        float,
        Meta(ge=1, le=300),
        _about("Time between two batches, unless 64 records wait for the next one already."),
    ] = 15.0


class Storage(Section, frozen=True, kw_only=True):
    """How writes reach the disk."""

    fsync: Annotated[
        bool,
        _about(
            "Acknowledge only what is on disk. Off makes a power cut lose acknowledged messages: "
            "for measurements only, refused in production."
        ),
    ] = True


class Log(Section, frozen=True, kw_only=True):
    """The log, on standard error."""

    format: Annotated[
        Literal["auto", "console", "json"],
        _about("`auto` is `console` on a terminal and `json` otherwise."),
    ] = "auto"
    level: Annotated[
        Literal["debug", "info", "warning", "error"], _about("Least severity that is logged.")
    ] = "info"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set."""

    production: Annotated[
        bool, _about("Refuse settings that are meant for a developer's machine.")
    ] = False
    listen: Listen = Listen()
    hub: HubNames = HubNames()
    tls: Tls = Tls()
    mqtt: Mqtt = Mqtt()
    amqp: Amqp = Amqp()
    events: Events = Events()
    c2d: CloudToDevice = CloudToDevice()
    feedback: Feedback = Feedback()
    storage: Storage = Storage()
    log: Log = Log()


# The list of settings, derived from the structs ------------------------------------------------


class Setting(NamedTuple):
    """One key: `section` is "" for a key at the top of the file."""

    section: str
    key: str
    annotation: Any
    default: Any
    description: str

    @property
    def name(self) -> str:
        """As an operator writes it, `events.retention_days`."""
        return f"{self.section}.{self.key}" if self.section else self.key

    @property
    def env(self) -> str:
        """Its environment variable."""
        return ENV_PREFIX + self.name.replace(".", "_").upper()

    @property
    def allowed(self) -> str:
        """What it may be, as words that follow "must be"."""
        return _allowed(type_info(self.annotation))


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def _description(annotation: Any) -> str:
    for meta in reversed(getattr(annotation, "__metadata__", ())):
        if isinstance(meta, Meta) and meta.description:
            return meta.description
    return ""


def _settings() -> Iterator[Setting]:
    for field in msgspec.structs.fields(Config):
        default = _default(field)
        if not isinstance(default, Section):
            yield Setting("", field.name, field.type, default, _description(field.type))
            continue
        for inner in msgspec.structs.fields(type(default)):
            yield Setting(
                field.name, inner.name, inner.type, _default(inner), _description(inner.type)
            )


SETTINGS: dict[str, Setting] = {setting.name: setting for setting in _settings()}
SECTIONS: dict[str, type[Section]] = {
    field.name: type(_default(field))
    for field in msgspec.structs.fields(Config)
    if isinstance(_default(field), Section)
}
_BY_ENV = {setting.env: setting for setting in SETTINGS.values()}


# Reading ----------------------------------------------------------------------------------------


def load(
    data: Path,
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Read the configuration of the hub in `data`.

    `file` must exist if given; otherwise `mooring.toml` in `data` is read if there is one.
    `flags` maps setting names (`listen.mqtt_port`) to values, None meaning that the flag was not
    given. Raises ConfigError for what cannot be right."""
    chosen: dict[str, tuple[Any, str]] = {}
    for setting, value, origin in (
        *_from_file(file, data / CONFIG_NAME),
        *_from_environment(environ or {}),
        *_from_flags(flags or {}),
    ):
        chosen[setting.name] = (_checked(setting, value, origin), origin)
    document: dict[str, Any] = {name: {} for name in SECTIONS}
    for name, (value, _) in chosen.items():
        setting = SETTINGS[name]
        (document[setting.section] if setting.section else document)[setting.key] = value
    config = msgspec.convert(document, Config)
    _check_together(config, chosen)
    return config


def _from_file(explicit: Path | None, usual: Path) -> Iterator[tuple[Setting, Any, str]]:
    path = explicit or usual
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if explicit is None:
            return
        raise ConfigError(f"{path}: no such file; --config names a file that exists") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path.name}: not valid TOML: {error}") from None
    for name, value in document.items():
        if name in SECTIONS:
            if not isinstance(value, dict):
                raise ConfigError(f"{path.name}: {name} must be a section, written [{name}]")
            for key, inner in value.items():
                yield _known(f"{name}.{key}", path.name), inner, path.name
        else:
            yield _known(name, path.name), value, path.name


def _known(name: str, origin: str) -> Setting:
    if name in SETTINGS:
        return SETTINGS[name]
    near = difflib.get_close_matches(name, [*SETTINGS, *SECTIONS], n=1, cutoff=0.6)
    # A key in the wrong section is the commonest mistake that spelling does not explain.
    key = name.rpartition(".")[2]
    near = near or [other for other in SETTINGS if other.rpartition(".")[2] == key]
    hint = f"; did you mean {near[0]}?" if near else "; docs/configuration.md lists all keys"
    raise ConfigError(f"{origin}: {name} is no setting{hint}")


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[Setting, Any, str]]:
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX) or variable in (DATA_ENV, CONFIG_ENV):
            continue
        setting = _BY_ENV.get(variable)
        if setting is not None:
            yield setting, _from_text(environ[variable], type_info(setting.annotation)), variable
            continue
        # Orchestrators invent variables of this prefix for a service that is called mooring
        # (MOORING_SERVICE_HOST), so only what looks like a slip of ours is refused.
        section = variable.removeprefix(ENV_PREFIX).partition("_")[0].lower()
        near = difflib.get_close_matches(variable, _BY_ENV, n=1, cutoff=0.85)
        if section in SECTIONS or near:
            near = near or difflib.get_close_matches(variable, _BY_ENV, n=1, cutoff=0.0)
            raise ConfigError(f"{variable}: no such setting; did you mean {near[0]}?")


def _from_flags(flags: Mapping[str, Any]) -> Iterator[tuple[Setting, Any, str]]:
    for name, value in flags.items():
        if value is None:
            continue
        setting = SETTINGS[name]
        if isinstance(value, str):
            value = _from_text(value, type_info(setting.annotation))
        yield setting, value, f"--{flag_name(name)}"


def flag_name(name: str) -> str:
    """The long option of `mooring serve` that sets this, without its dashes."""
    return {"listen.hosts": "host", "hub.name": "hub-name"}.get(
        name, name.replace("log.", "log-").rpartition(".")[2].replace("_", "-")
    )


_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def _from_text(text: str, kind: Type) -> Any:
    """What a text from the environment or a flag stands for; itself where it fits nothing."""
    text = text.strip()
    if isinstance(kind, Metadata):
        return _from_text(text, kind.type)
    if isinstance(kind, BoolType):
        return True if text.lower() in _TRUE else False if text.lower() in _FALSE else text
    if isinstance(kind, VarTupleType):
        return [item.strip() for item in text.split(",") if item.strip()]
    if isinstance(kind, IntType):
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text
    if isinstance(kind, FloatType):
        return float(text) if re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,9})?", text) else text
    if isinstance(kind, UnionType):
        for member in kind.types:
            value = _from_text(text, member)
            if not isinstance(value, str):
                return value
    return text


def _checked(setting: Setting, value: Any, origin: str) -> Any:
    try:
        # A bool would pass for an int here and there, and `mqtt_port = true` means nothing.
        if isinstance(value, bool) and not isinstance(setting.default, bool):
            raise msgspec.ValidationError
        return msgspec.convert(value, setting.annotation)
    except msgspec.ValidationError:
        said = "empty" if value == "" else _shown(value)
        where = origin if origin.startswith((ENV_PREFIX, "--")) else f"{origin}: {setting.name}"
        raise ConfigError(f"{where} must be {setting.allowed}, not {said}") from None


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _allowed(kind: Type) -> str:
    match kind:
        case BoolType():
            return "true or false"
        case IntType() | FloatType():
            noun = "a whole number" if isinstance(kind, IntType) else "a number"
            if kind.ge is None or kind.le is None:
                return noun
            return f"between {int(kind.ge)} and {int(kind.le)}"
        case LiteralType():
            *most, last = (f"{value}" for value in kind.values)
            return f"{', '.join(most)} or {last}" if most else f"{last}"
        case VarTupleType():
            return f"a list, each item {_allowed(kind.item_type)}"
        case UnionType():
            return " or ".join(_allowed(member) for member in kind.types)
        case StrType():
            return "a text"
        case Metadata():
            return str(kind.extra["form"]) if kind.extra else _allowed(kind.type)
        case _:
            return "of another type"


# What only shows when settings are seen together --------------------------------------------------


def _check_together(config: Config, chosen: Mapping[str, tuple[Any, str]]) -> None:
    def refuse(name: str, why: str) -> None:
        origin = chosen[name][1] if name in chosen else "the default"
        where = origin if origin.startswith((ENV_PREFIX, "--")) else f"{origin}: {name}"
        raise ConfigError(f"{where} {why}")

    if config.production:
        if config.listen.amqp_plain_port != "off":
            refuse(
                "listen.amqp_plain_port",
                "must be off in production: it carries keys and messages without TLS",
            )
        if not config.storage.fsync:
            refuse(
                "storage.fsync",
                "must be true in production: without it acknowledged messages can be lost",
            )
    listen = config.listen
    ports = {
        f"listen.{key}": getattr(listen, key)
        for key in ("mqtt_port", "amqp_port", "https_port", "amqp_plain_port", "metrics_port")
    }
    taken: dict[int, str] = {}
    for name, port in ports.items():
        if port in ("off", 0):
            continue
        if port in taken:
            refuse(name, f"must not be {port}: {taken[port]} has that port")
        taken[port] = name
    hubs: set[str] = {config.hub.name.lower(), *map(str.lower, config.hub.aliases)}
    for other in map(str.lower, config.hub.others):
        if other in hubs or other == "localhost":
            refuse("hub.others", f"names {other}, which is a hub already")
        hubs.add(other)
