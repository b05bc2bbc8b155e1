"""The running hub, as commands reach it: HTTP over the private Unix socket in its data directory.

Devices, modules and twins go through the same service REST API that SDKs use (api-version
2021-04-12); what that API lacks (policies, consumer groups, status) is under `/control`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from ..config import SOCKET_NAME
from ..errors import MooringError

_API_VERSION = "2021-04-12"
_TIMEOUT = 30.0


class Refused(MooringError):
    """The hub, or the way to it, refused; the message says what to do next."""

    def __init__(self, message: str, *, status: int = 0, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Control:
    """One command's connection to the hub in `data`; `hub` picks one of several."""

    def __init__(self, data: Path, hub: str | None = None) -> None:
        """Raises Refused if `hub` cannot be a host name."""
        self._data = data
        try:
            self._client = httpx.Client(
                transport=httpx.HTTPTransport(uds=str(data / SOCKET_NAME)),
                base_url=f"http://{'localhost' if hub is None else _named(hub)}",
                timeout=_TIMEOUT,
                trust_env=False,
            )
        except httpx.InvalidURL:
            raise Refused(f"{hub} is no host name") from None

    def service(self, method: str, *path: str, **options: Any) -> Any:
        """Call the service REST API; `path` is its segments, unescaped."""
        params = {**options.pop("params", {}), "api-version": _API_VERSION}
        return self._call(method, path, params=params, **options)

    def control(self, method: str, *path: str, **options: Any) -> Any:
        """Call what only the socket offers."""
        return self._call(method, ("control", *path), **options)

    def _call(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        if_match: str | None = None,
    ) -> Any:
        """The answer's JSON, None if it has none. Raises Refused."""
        url = "/" + "/".join(map(_segment, path))
        headers = {"If-Match": f'"{if_match}"'} if if_match is not None else {}
        try:
            response = self._client.request(method, url, params=params, json=body, headers=headers)
        except (httpx.ConnectError, httpx.UnsupportedProtocol) as error:
            raise Refused(self._not_running(error)) from None
        except httpx.TimeoutException:
            raise Refused(
                f"the hub in {self._data} did not answer within {_TIMEOUT:.0f} s; "
                "look at its log, then try again"
            ) from None
        except httpx.HTTPError as error:
            raise Refused(f"the hub in {self._data} broke off: {error}; look at its log") from None
        if response.is_success:
            return response.json() if response.content else None
        raise self._refusal(response)

    def _not_running(self, error: Exception) -> str:
        socket = self._data / SOCKET_NAME
        try:
            there = socket.exists()
        except PermissionError:
            there = True
        if "Permission denied" in str(error) or "Errno 13" in str(error):
            return (
                f"{socket} belongs to another user; run this as the user that runs the hub, "
                "for example with sudo"
            )
        state = "no hub runs" if there else "there is no running hub"
        return (
            f"{state} in {self._data}; start it with: mooring serve --data {self._data}\n"
            "         (or name its data directory with --data or MOORING_DATA)"
        )

    @staticmethod
    def _refusal(response: httpx.Response) -> Refused:
        try:
            document = response.json()
        except ValueError:
            document = {}
        if not isinstance(document, dict):
            document = {}
        code = response.headers.get("iothub-errorcode", "")
        text = document.get("Message") or document.get("message") or response.reason_phrase
        # Azure's body repeats the code in front: "ErrorCode:DeviceNotFound;text".
        code = code or (text.split(";")[0].removeprefix("ErrorCode:") if ";" in text else "")
        text = text.removeprefix(f"ErrorCode:{code};").strip() or code
        said = f"{code}: {text}" if code and code not in text else text
        advice = _ADVICE.get(code)
        return Refused(
            f"{said}; {advice}" if advice else said, status=response.status_code, code=code
        )


def _segment(text: str) -> str:
    """A name as one segment of a path. Raises Refused for what no name can be."""
    try:
        quoted = quote(_named(text), safe="$")
    except UnicodeEncodeError:
        raise Refused(f"{text!r} is not UTF-8") from None
    # httpx takes dots alone for a way up, and a module called `..` for its device.
    return quoted if text.strip(".") else quoted.replace(".", "%2E")


def _named(text: str) -> str:
    """A name that is one. Raises Refused: an empty one must not mean the default, or all."""
    if not text:
        raise Refused("a name is empty; does a variable have no value?")
    return text


_ADVICE = {
    "DeviceNotFound": "`mooring device list` shows those that there are",
    "ModuleNotFound": "`mooring module list` shows those that there are",
    "DeviceAlreadyExists": "change it with `mooring device update`",
    "ModuleAlreadyExistsOnDevice": "change it with `mooring module update`",
    "PreconditionFailed": "somebody changed it meanwhile; try again",
}
