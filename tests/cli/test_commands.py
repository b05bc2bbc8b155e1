"""The commands, as dialogues with a running hub: what a person types, what comes back."""

import base64
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ..served import Served, run

KEYS = tuple(base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))


def ok(hub: Served, *arguments: str) -> str:
    done = hub.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def told(hub: Served, *arguments: str) -> Any:
    return json.loads(ok(hub, *arguments, "--json"))


def refused(hub: Served, *arguments: str) -> str:
    done = hub.run(*arguments)
    assert done.returncode == 1, done.stdout
    assert done.stdout == ""
    assert done.stderr.startswith("mooring: ")
    return done.stderr


# Devices ----------------------------------------------------------------------------------------


def test_a_device_from_birth_to_death(served: Served) -> None:
    created = told(served, "device", "create", "life")
    assert created["authentication"]["type"] == "sas"
    assert created["status"] == "enabled"
    assert "life" in ok(served, "device", "list")
    assert "life" in [each["deviceId"] for each in told(served, "device", "list")]
    assert told(served, "device", "show", "life")["etag"] == created["etag"]

    disabled = told(served, "device", "update", "life", "--disable", "--reason", "on repair")
    assert (disabled["status"], disabled["statusReason"]) == ("disabled", "on repair")
    assert disabled["authentication"] == created["authentication"]
    assert told(served, "device", "update", "life", "--enable")["status"] == "enabled"

    assert served.run("device", "delete", "life").returncode == 0
    assert "DeviceNotFound" in refused(served, "device", "show", "life")


def test_people_are_not_shown_keys(served: Served) -> None:
    key = told(served, "device", "create", "discreet")["authentication"]["symmetricKey"]
    for text in (ok(served, "device", "show", "discreet"), ok(served, "device", "list")):
        assert key["primaryKey"] not in text
        assert key["secondaryKey"] not in text
    assert "mooring connection-string --device discreet" in ok(served, "device", "show", "discreet")


def test_keys_can_be_brought_along_swapped_and_renewed(served: Served) -> None:
    def keys(document: Any) -> tuple[str, str]:
        found = document["authentication"]["symmetricKey"]
        return found["primaryKey"], found["secondaryKey"]

    made = told(
        served, "device", "create", "keyed", "--primary-key", KEYS[0], "--secondary-key", KEYS[1]
    )
    assert keys(made) == KEYS
    assert keys(told(served, "device", "update", "keyed", "--swap-keys")) == KEYS[::-1]
    renewed = keys(told(served, "device", "update", "keyed", "--regenerate-key", "primary"))
    assert renewed[0] not in KEYS
    assert renewed[1] == KEYS[0]


def test_thumbprints(served: Served) -> None:
    colons = ":".join(["ab"] * 32)
    made = told(
        served, "device", "create", "thumb", "--auth", "self-signed", "--thumbprint", colons
    )
    assert made["authentication"]["type"] == "selfSigned"
    assert made["authentication"]["x509Thumbprint"]["primaryThumbprint"] == "AB" * 32
    assert ok(served, "connection-string", "--device", "thumb").strip().endswith(";x509=true")
    assert "needs one or two --thumbprint" in refused(
        served, "device", "create", "thumb2", "--auth", "self-signed"
    )


def test_certificate_authority(served: Served) -> None:
    made = told(served, "device", "create", "chained", "--auth", "ca")
    assert made["authentication"]["type"] == "certificateAuthority"


def test_a_name_with_every_character_that_ids_may_hold(served: Served) -> None:
    name = "a-:.+%_#*?!(),=@;$'z"
    assert told(served, "device", "create", name)["deviceId"] == name
    assert told(served, "device", "show", name)["deviceId"] == name
    shown = ok(served, "device", "show", name)
    hint = shlex.split(shown[shown.index("mooring connection-string") :].splitlines()[0])
    assert f"DeviceId={name};" in ok(served, *hint[1:])
    assert served.run("device", "delete", name).returncode == 0


def test_an_id_of_dots_is_an_id_and_no_way_up(served: Served) -> None:
    ok(served, "device", "create", "dotted")
    assert "ModuleNotFound" in refused(served, "module", "delete", "dotted", "..")
    assert told(served, "device", "show", "dotted")["deviceId"] == "dotted"
    for name in (".", ".."):
        assert told(served, "module", "create", "dotted", name)["moduleId"] == name
        assert served.run("module", "delete", "dotted", name).returncode == 0


def test_an_empty_id_is_no_leave_to_take_another(served: Served) -> None:
    """As a script writes it whose variable is not set."""
    ok(served, "device", "create", "whole")
    for arguments in (
        ("connection-string", "--policy", ""),
        ("connection-string", "--device", ""),
        ("connection-string", "--device", "whole", "--module", ""),
        ("sas-token", "--device", ""),
        ("sas-token", "--policy", ""),
        ("sas-token", "--device", "whole", "--module", ""),
        ("twin", "update", "whole", "--module", "", "--tags", '{"a": 1}'),
        ("twin", "show", "whole", "--module", ""),
        ("device", "show", ""),
        ("device", "delete", ""),
        ("module", "delete", "whole", ""),
    ):
        assert "empty" in refused(served, *arguments)
    assert not told(served, "twin", "show", "whole").get("tags")


def test_what_others_wrote_does_not_command_the_terminal(served: Served) -> None:
    ok(served, "device", "create", "loud", "--reason", "\\[bold]a\x1b[2Jb")
    assert "\\[bold]a\\x1b[2Jb" in ok(served, "device", "show", "loud")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("status", "--hub", "localhost:x"), "localhost:x"),
        (("device", "show", "a\udcff"), "UTF-8"),
        (("device", "create", "twice"), "mooring device update"),
        (("device", "show", "nobody"), "mooring device list"),
        (("device", "delete", "nobody"), "mooring device list"),
        (("device", "create", "no spaces"), "ArgumentInvalid"),
        (("device", "create", "x", "--primary-key", KEYS[0]), "give both"),
        (("connection-string", "--module", "m"), "--device"),
        (("connection-string", "--policy", "nothing"), "iothubowner"),
        (("connection-string", "--plain"), "--events"),
        (("consumer-group", "delete", "$Default"), "$Default"),
        (("policy", "regenerate", "nothing"), "no policy nothing"),
        (("twin", "update", "twice", "--desired", "{"), "not valid JSON"),
        (("twin", "update", "twice"), "--desired"),
        (("status", "--hub", "elsewhere.example"), "no hub elsewhere.example"),
        (("exec", "--", "no-such-command-anywhere"), "no such command"),
    ],
)
def test_refusals_say_what_to_do(served: Served, arguments: tuple[str, ...], said: str) -> None:
    served.run("device", "create", "twice")
    assert said in refused(served, *arguments)


# Modules and twins ------------------------------------------------------------------------------


def test_modules(served: Served) -> None:
    ok(served, "device", "create", "parent")
    assert "has no module" in served.run("module", "list", "parent").stderr
    made = told(served, "module", "create", "parent", "child", "--managed-by", "me")
    assert (made["deviceId"], made["moduleId"], made["managedBy"]) == ("parent", "child", "me")
    assert "child" in ok(served, "module", "list", "parent")
    changed = told(served, "module", "update", "parent", "child", "--managed-by", "you")
    assert changed["managedBy"] == "you"
    assert changed["authentication"] == made["authentication"]
    shown = ok(served, "connection-string", "--device", "parent", "--module", "child")
    assert shown.startswith("HostName=localhost;DeviceId=parent;ModuleId=child;SharedAccessKey=")
    assert served.run("module", "delete", "parent", "child").returncode == 0
    assert "mooring module list" in refused(served, "module", "show", "parent", "child")


def test_twins(served: Served) -> None:
    ok(served, "device", "create", "twinned")
    ok(
        *(served, "twin", "update", "twinned"),
        *("--desired", '{"interval": 10, "mode": "fast"}', "--tags", '{"floor": 3}'),
    )
    ok(served, "twin", "update", "twinned", "--desired", '{"mode": null}')
    twin = told(served, "twin", "show", "twinned")
    assert twin["tags"] == {"floor": 3}
    assert twin["properties"]["desired"]["interval"] == 10
    assert "mode" not in twin["properties"]["desired"]


# Connection strings, tokens, policies, groups -----------------------------------------------------


def test_connection_strings_stand_alone_on_standard_output(served: Served) -> None:
    ok(served, "device", "create", "stringed")
    key = told(served, "device", "show", "stringed")["authentication"]["symmetricKey"]
    assert ok(served, "connection-string", "--device", "stringed") == (
        f"HostName=localhost;DeviceId=stringed;SharedAccessKey={key['primaryKey']}\n"
    )
    secondary = ok(served, "connection-string", "--device", "stringed", "--secondary")
    assert secondary.endswith(f";SharedAccessKey={key['secondaryKey']}\n")
    owner = ok(served, "connection-string")
    assert owner.startswith("HostName=localhost;SharedAccessKeyName=iothubowner;SharedAccessKey=")
    service = ok(served, "connection-string", "--policy", "service")
    assert ";SharedAccessKeyName=service;" in service


def test_connection_strings_of_the_events(served: Served) -> None:
    text = ok(served, "connection-string", "--events").strip()
    assert text.startswith("Endpoint=sb://localhost/;SharedAccessKeyName=iothubowner;")
    assert text.endswith(";EntityPath=localhost")
    plain = ok(served, "connection-string", "--events", "--plain").strip()
    assert plain.startswith(f"Endpoint=sb://localhost:{served.amqp_plain_port}/;")
    assert plain.endswith(";UseDevelopmentEmulator=true")


def test_sas_tokens(served: Served) -> None:
    ok(served, "device", "create", "tokened")
    before = int(time.time())
    token = ok(served, "sas-token", "--device", "tokened", "--ttl", "600").strip()
    assert token.startswith("SharedAccessSignature sr=localhost%2Fdevices%2Ftokened&sig=")
    expiry = int(token.rpartition("&se=")[2])
    assert before + 600 <= expiry <= int(time.time()) + 600
    assert ok(served, "sas-token").strip().endswith("&skn=iothubowner")


def test_policies(served: Served) -> None:
    listed = told(served, "policy", "list")
    assert {each["name"]: each["rights"] for each in listed} == {
        "iothubowner": "RegistryWrite, ServiceConnect, DeviceConnect",
        "service": "ServiceConnect",
        "device": "DeviceConnect",
        "registryRead": "RegistryRead",
        "registryReadWrite": "RegistryWrite",
    }
    assert "Key" not in json.dumps(listed)
    before = ok(served, "connection-string", "--policy", "registryRead")
    other = ok(served, "connection-string", "--policy", "registryRead", "--secondary")
    ok(served, "policy", "regenerate", "registryRead")
    assert ok(served, "connection-string", "--policy", "registryRead") != before
    assert ok(served, "connection-string", "--policy", "registryRead", "--secondary") == other


def test_consumer_groups(served: Served) -> None:
    assert served.run("consumer-group", "create", "dashboards").returncode == 0
    assert told(served, "consumer-group", "list") == ["$Default", "dashboards"]
    assert "of this name" in refused(served, "consumer-group", "create", "dashboards")
    assert served.run("consumer-group", "delete", "dashboards").returncode == 0
    assert ok(served, "consumer-group", "list").split() == ["CONSUMER", "GROUP", "$Default"]


# Trust ------------------------------------------------------------------------------------------


def test_ca_certificate_prints_a_path(served: Served) -> None:
    path = Path(ok(served, "ca-certificate").strip())
    assert path.is_absolute()
    assert path.read_text().count("BEGIN CERTIFICATE") >= 2


def test_exec_makes_a_command_trust_the_hub_and_the_public_roots(served: Served) -> None:
    script = (
        "import os, json; print(json.dumps({name: open(os.environ[name]).read() for name in"
        " ('SSL_CERT_FILE', 'REQUESTS_CA_BUNDLE', 'NODE_EXTRA_CA_CERTS')}))"
    )
    bundles = json.loads(ok(served, "exec", "--", sys.executable, "-c", script))
    for text in bundles.values():
        assert served.ca.read_text().strip() in text
        assert text.count("BEGIN CERTIFICATE") > 50


def test_exec_hands_over_options_and_exit_status(served: Served) -> None:
    done = served.run("exec", "--", sys.executable, "-c", "import sys; sys.exit(7)")
    assert done.returncode == 7


def test_exec_gives_a_command_the_signals_that_a_shell_would(served: Served) -> None:
    """Python ignores SIGPIPE; what it starts should not."""
    shell = ok(served, "exec", "--", "grep", "SigIgn", "/proc/self/status")
    assert int(shell.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


# Without a hub ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [("status",), ("device", "list"), ("connection-string",), ("sas-token",)]
)
def test_without_a_hub_the_command_to_start_one_is_named(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = run(*arguments, "--data", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"mooring serve --data {tmp_path}" in done.stderr


def test_a_data_directory_never_served_has_no_ca(tmp_path: Path) -> None:
    done = run("ca-certificate", "--data", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "mooring serve" in done.stderr


def test_the_data_directory_may_come_from_the_environment(served: Served) -> None:
    environ = {**os.environ, "MOORING_DATA": str(served.data)}
    assert run("status", environ=environ).returncode == 0


def test_wrong_usage_is_status_2() -> None:
    assert run("device", "create").returncode == 2
    assert run("devise").returncode == 2


def test_version() -> None:
    assert run("version").stdout.strip() == "0.1.0"
