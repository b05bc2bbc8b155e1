"""The error conditions of AMQP 1.0 that the engine itself raises (specification, part 2.8)."""

from typing import Final

DECODE_ERROR: Final = "amqp:decode-error"
INVALID_FIELD: Final = "amqp:invalid-field"
NOT_ALLOWED: Final = "amqp:not-allowed"
NOT_IMPLEMENTED: Final = "amqp:not-implemented"
RESOURCE_LIMIT_EXCEEDED: Final = "amqp:resource-limit-exceeded"
FRAMING_ERROR: Final = "amqp:connection:framing-error"
ERRANT_LINK: Final = "amqp:session:errant-link"
HANDLE_IN_USE: Final = "amqp:session:handle-in-use"
UNATTACHED_HANDLE: Final = "amqp:session:unattached-handle"
WINDOW_VIOLATION: Final = "amqp:session:window-violation"
LINK_STOLEN: Final = "amqp:link:stolen"
LINK_REDIRECT: Final = "amqp:link:redirect"
TRANSFER_LIMIT_EXCEEDED: Final = "amqp:link:transfer-limit-exceeded"
MESSAGE_SIZE_EXCEEDED: Final = "amqp:link:message-size-exceeded"
