"""Times as documents carry them: ISO 8601 UTC with seven digits, as .NET clients write and read.

Inside, times are milliseconds since 1970 UTC, 0 meaning never.
"""

import time
from typing import Final

NEVER: Final = "0001-01-01T00:00:00Z"
"""What a time reads that has not come yet (service-apis reference §0)."""


def iso(milliseconds: int) -> str:
    """`2018-01-02T19:17:44.4380000Z`; 0 gives `NEVER`."""
    if milliseconds == 0:
        return NEVER
    seconds, fraction = divmod(milliseconds, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:03}0000Z"
