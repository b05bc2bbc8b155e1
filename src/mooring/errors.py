"""The error tree, drawn once; every refusal that leaves the server is one of these classes.

    MooringError
    ├── ConfigError                  a setting is wrong; the message names its key
    ├── CorruptRecord                stored bytes fail their checksum; never served
    ├── Unavailable                  the disk or another engine cannot take the write
    └── HubError                     what a client is told: Azure's code, HTTP status, condition
        ├── ArgumentInvalid …        400xxx
        ├── IotHubUnauthorized …     401xxx
        └── …

A HubError's class name is Azure's error name, `number` its six-digit code, whose first three
digits are the HTTP status, and `condition` the AMQP error condition that Azure's SDKs map back
(service-apis reference §0.2, device-protocols reference §3.5). Each instance carries a tracking
id: the same one reaches the client and the log.
"""

import os
import time
from collections import Counter
from typing import ClassVar


class MooringError(Exception):
    """Everything that mooring itself raises."""


class ConfigError(MooringError):
    """A setting is wrong. The message names the key and says what would be right."""


class CorruptRecord(MooringError):
    """Stored bytes do not match their checksum; they are reported and never served."""


class Unavailable(MooringError):
    """A write could not be made durable; whoever asked must not be told that it was."""


def new_tracking_id() -> str:
    """`{32 hex}-G:0-TimeStamp:MM/dd/yyyy HH:mm:ss`, the form that support tools search for."""
    stamp = time.strftime("%m/%d/%Y %H:%M:%S", time.gmtime())
    return f"{os.urandom(16).hex()}-G:0-TimeStamp:{stamp}"


class HubError(MooringError):
    """A refusal with Azure's code.

    `message` goes to the client; `reason` (default: the message) goes to the log only and says
    which rule decided. Neither may hold a secret.
    """

    number: ClassVar[int] = 500001
    condition: ClassVar[str] = "amqp:internal-error"
    made: ClassVar[Counter[str]] = Counter()
    """How many of each name there were since the start, for the metrics."""

    def __init__(self, message: str = "", *, reason: str = "") -> None:
        super().__init__(message or self.name)
        self.message = message or self.name
        self.reason = reason or self.message
        self.tracking_id = new_tracking_id()
        HubError.made[self.name] += 1

    @property
    def name(self) -> str:
        """Azure's name for it, as in the `iothub-errorcode` header."""
        return type(self).__name__

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.number // 1000


# 400 ----------------------------------------------------------------------------------------


class GenericBadRequest(HubError):
    number, condition = 400000, "com.microsoft:argument-error"


class InvalidProtocolVersion(HubError):
    number, condition = 400001, "com.microsoft:argument-error"


class InvalidOperation(HubError):
    number, condition = 400003, "amqp:not-allowed"


class ArgumentInvalid(HubError):
    number, condition = 400004, "com.microsoft:argument-error"


class DeviceDefinedMultipleTimes(HubError):
    number, condition = 400011, "com.microsoft:argument-error"


class DeserializationError(HubError):
    number, condition = 400012, "amqp:decode-error"


class BulkRegistryOperationFailure(HubError):
    number, condition = 400013, "com.microsoft:argument-error"


class ConnectionForcefullyClosedOnNewConnection(HubError):
    number, condition = 400027, "amqp:link:stolen"


class InvalidDeviceScope(HubError):
    number, condition = 400028, "com.microsoft:argument-error"


# 401, 403 -----------------------------------------------------------------------------------


class IotHubNotFound(HubError):
    number, condition = 401001, "com.microsoft:iot-hub-not-found-error"


class IotHubUnauthorizedAccess(HubError):
    """The credential is good, but it does not grant this."""

    number, condition = 401002, "amqp:unauthorized-access"


class IotHubUnauthorized(HubError):
    """The credential is missing, wrong or expired."""

    number, condition = 401003, "amqp:unauthorized-access"


class SystemModuleModifyUnauthorizedAccess(HubError):
    """$edgeAgent and $edgeHub are the server's own."""

    number, condition = 401100, "amqp:unauthorized-access"


class DeviceMaximumQueueDepthExceeded(HubError):
    number, condition = 403004, "amqp:resource-limit-exceeded"


class IotHubMaxCbsTokenExceeded(HubError):
    number, condition = 403005, "amqp:resource-limit-exceeded"


class InvalidMessageExpiryTime(HubError):
    number, condition = 403009, "com.microsoft:argument-error"


class DeviceDisabled(HubError):
    number, condition = 403012, "amqp:not-found"


class DeviceMaximumInflightMethodExceeded(HubError):
    number, condition = 403800, "amqp:resource-limit-exceeded"


# 404, 405, 409 ------------------------------------------------------------------------------


class GenericNotFound(HubError):
    number, condition = 404000, "amqp:not-found"


class DeviceNotFound(HubError):
    number, condition = 404001, "amqp:not-found"


class AmqpAddressNotFound(HubError):
    number, condition = 404006, "amqp:not-found"


class ModuleNotFound(HubError):
    number, condition = 404010, "amqp:not-found"


class FeatureNotSupported(HubError):
    number, condition = 404013, "amqp:not-implemented"


class DeviceNotOnline(HubError):
    number, condition = 404103, "amqp:not-found"


class DeviceConnectionClosedRemotely(HubError):
    number, condition = 404104, "amqp:not-found"


class GenericMethodNotAllowed(HubError):
    number, condition = 405000, "amqp:not-allowed"


class GenericConflict(HubError):
    number, condition = 409000, "amqp:resource-locked"


class DeviceAlreadyExists(HubError):
    number, condition = 409001, "com.microsoft:device-already-exists"


class ModuleAlreadyExistsOnDevice(HubError):
    number, condition = 409301, "com.microsoft:device-already-exists"


# 412, 413, 415 ------------------------------------------------------------------------------


class PreconditionFailed(HubError):
    number, condition = 412001, "com.microsoft:precondition-failed"


class DeviceMessageLockLost(HubError):
    number, condition = 412002, "com.microsoft:message-lock-lost"


class GenericRequestEntityTooLarge(HubError):
    number, condition = 413000, "amqp:link:message-size-exceeded"


class MessageTooLarge(HubError):
    number, condition = 413001, "amqp:link:message-size-exceeded"


class TooManyModulesOnDevice(HubError):
    number, condition = 413003, "amqp:resource-limit-exceeded"


class GenericUnsupportedMediaType(HubError):
    number, condition = 415000, "com.microsoft:argument-error"


# 5xx ----------------------------------------------------------------------------------------


class ServerError(HubError):
    number, condition = 500001, "amqp:internal-error"


class GenericBadGateway(HubError):
    number, condition = 502000, "amqp:internal-error"


class ServiceUnavailable(HubError):
    number, condition = 503001, "com.microsoft:server-busy"


class GatewayTimeout(HubError):
    number, condition = 504101, "com.microsoft:timeout"


# All of them --------------------------------------------------------------------------------


def hub_error(error: MooringError) -> HubError:
    """What a client is told of any of these errors; `reason` has the details for the log."""
    if isinstance(error, HubError):
        return error
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, Unavailable):
        return ServiceUnavailable("The service is unavailable. Try again.", reason=reason)
    # A damaged record, first of all: reported, and never served.
    return ServerError("An unexpected error", reason=reason)
