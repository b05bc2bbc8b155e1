"""Calls of the service API without an SDK, for what azure-iot-hub never sends."""

from typing import Any

import requests

from .cloud import PATIENCE, parts, sign
from .standing import Hub

API = {"api-version": "2021-04-12"}


def authorization(hub: Hub, policy: str = "iothubowner") -> str:
    credentials = parts(hub.policy_string(policy))
    return sign("localhost", credentials["SharedAccessKey"], policy=policy)


def call(
    hub: Hub, verb: str, path: str, body: Any = None, *, token: str | None = None, **headers: str
) -> requests.Response:
    """One request; `token` instead of iothubowner's, "" for none at all."""
    token = authorization(hub) if token is None else token
    return requests.request(
        verb,
        f"https://localhost:{hub.https_port}{path}",
        params=API,
        json=body,
        headers=headers | ({"Authorization": token} if token else {}),
        timeout=PATIENCE * 2,
        verify=str(hub.ca),
    )


def post(hub: Hub, path: str, body: Any) -> requests.Response:
    return call(hub, "POST", path, body)


def get(hub: Hub, path: str, *, token: str | None = None) -> requests.Response:
    return call(hub, "GET", path, token=token)
