"""Hub topics, property bags and user names, as real clients write them and expect them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.wire import topics
from mooring.wire.topics import MethodResponse, Telemetry, TopicError, TwinGet, TwinPatch, Username

DTMI = "dtmi:com:example:Thermostat;1"


@pytest.mark.parametrize(
    ("username", "client_id", "expected"),
    [
        (
            "Hub.Example/d1/?api-version=2019-10-01&DeviceClientType=py%2Fiot%202.14",
            "d1",
            Username("hub.example", "d1", "", "2019-10-01", "", "py/iot 2.14"),
        ),
        (
            "hub/d1/?api-version=2020-09-30&model-id=dtmi%3Acom%3Aexample%3AThermostat%3B1",
            "d1",
            Username("hub", "d1", "", "2020-09-30", DTMI),
        ),
        ("hub/d1/m1/?api-version=1", "d1/m1", Username("hub", "d1", "m1", "1")),
        ("hub/d1/api-version=1&DeviceClientType=c", "d1", Username("hub", "d1", "", "1", "", "c")),
        ("hub/d1/m1/api-version=1", "d1/m1", Username("hub", "d1", "m1", "1")),
        ("hub/d1", "d1", Username("hub", "d1")),
        ("hub/d1/", "d1", Username("hub", "d1")),
        ("hub/d1/m1", "d1/m1", Username("hub", "d1", "m1")),
        ("hub/?a=&b/?api-version=1", "?a=&b", Username("hub", "?a=&b", "", "1")),
        ("hub/d/=x/?api-version=1", "d/=x", Username("hub", "d", "=x", "1")),
        ("hub/d1/?api-version=1&api-version=2&x=3&y", "d1", Username("hub", "d1", "", "1")),
        ("hub/d1/?DeviceClientType=a/b?c=d", "d1", Username("hub", "d1", "", "", "", "a/b?c=d")),
    ],
)
def test_user_names_seen_in_the_wild(username: str, client_id: str, expected: Username) -> None:
    assert topics.parse_username(username, client_id) == expected


@pytest.mark.parametrize(
    ("username", "client_id"),
    [
        ("", ""),
        ("hub", "d1"),
        ("hub/", "d1"),
        ("/d1", "d1"),
        ("hub/d1", ""),
        ("hub/d2/?api-version=1", "d1"),
        ("hub/D1", "d1"),
        ("hub/d12", "d1"),
        ("hub/d1?api-version=1", "d1"),
        ("hub/d1/m1", "d1"),
        ("hub/d1/m1/?api-version=1", "d1"),
        ("hub/d1", "d1/m1"),
        ("hub/d1/", "d1/"),
        ("hub//m1", "/m1"),
        ("hub/d1/m1/x", "d1/m1/x"),
        ("hub/d1/?model-id=%ff", "d1"),
    ],
)
def test_user_names_that_say_nothing_or_something_else(username: str, client_id: str) -> None:
    with pytest.raises(TopicError):
        topics.parse_username(username, client_id)


@pytest.mark.parametrize(
    ("bag", "system", "properties"),
    [
        ("", {}, {}),
        ("/", {}, {}),
        ("a=1&b=2", {}, {"a": "1", "b": "2"}),
        ("a&b=", {}, {"a": None, "b": ""}),
        ("a=1+1&b=2%2B2", {}, {"a": "1+1", "b": "2+2"}),
        ("a=b=c", {}, {"a": "b=c"}),
        ("%24.mid=m%201&$.ct=application%2Fjson", {"message-id": "m 1"}
         | {"content-type": "application/json"}, {}),
        ("$.ct=text/plain&$.ce=utf-8&p=x/y/", {"content-type": "text/plain"}
         | {"content-encoding": "utf-8"}, {"p": "x/y"}),
        ("%24.mid=1&k=v/", {"message-id": "1"}, {"k": "v"}),
        ("$.mid", {}, {}),
        ("$.unknown=1", {}, {"$.unknown": "1"}),
        ("iothub-ack=full&%C3%A9=%E2%82%AC", {}, {"iothub-ack": "full", "é": "€"}),
        ("a=100%&b=%zz", {}, {"a": "100%", "b": "%zz"}),
        ("&&a=1&&", {}, {"a": "1"}),
        ("=x&a=1", {}, {"a": "1"}),
        ("a=1&a=2", {}, {"a": "2"}),
    ],
)  # fmt: skip
def test_bags_that_clients_send(
    bag: str, system: dict[str, str], properties: dict[str, str | None]
) -> None:
    assert topics.parse_bag(bag) == (system, properties)


def test_every_system_property_has_its_name() -> None:
    bag = "&".join(f"%24{key[1:]}=v{number}" for number, key in enumerate(topics.SYSTEM_PROPERTIES))
    system, properties = topics.parse_bag(bag)
    assert properties == {}
    assert list(system) == list(topics.SYSTEM_PROPERTIES.values())
    assert topics.build_bag(system, {}) == bag


def test_a_bag_that_is_not_utf8() -> None:
    with pytest.raises(TopicError):
        topics.parse_bag("a=%ff")
    with pytest.raises(TopicError):
        topics.parse_bag("%ed%a0%80=1")


PUBLISHED = [
    ("devices/d1/messages/events", Telemetry({}, {})),
    ("devices/d1/messages/events/", Telemetry({}, {})),
    ("devices/d1/messages/events/a=1", Telemetry({}, {"a": "1"})),
    ("devices/d1/messages/events/%24.mid=7&a=b/c/", Telemetry({"message-id": "7"}, {"a": "b/c"})),
    ("$iothub/twin/GET/?$rid=1", TwinGet("1")),
    ("$iothub/twin/GET/?%24rid=a%20b", TwinGet("a%20b")),
    ("$iothub/twin/PATCH/properties/reported/?$rid=x-y", TwinPatch("x-y", None)),
    ("$iothub/twin/PATCH/properties/reported/?$rid=9&$version=4", TwinPatch("9", 4)),
    ("$iothub/methods/res/200/?$rid=1", MethodResponse("1", 200)),
    ("$iothub/methods/res/-5/?$rid=1", MethodResponse("1", -5)),
]


@pytest.mark.parametrize(("topic", "meaning"), PUBLISHED, ids=[topic for topic, _ in PUBLISHED])
def test_what_a_device_may_publish(topic: str, meaning: topics.Publication) -> None:
    assert topics.parse_publish(topic, "d1") == meaning


def test_what_a_module_may_publish() -> None:
    topic = "devices/d1/modules/m1/messages/events/%24.on=out"
    assert topics.parse_publish(topic, "d1", "m1") == Telemetry({"iothub-outputname": "out"}, {})
    with pytest.raises(TopicError):
        topics.parse_publish(topic, "d1")
    with pytest.raises(TopicError):
        topics.parse_publish("devices/d1/messages/events/", "d1", "m1")


@pytest.mark.parametrize(
    "topic",
    [
        "devices/d2/messages/events/",
        "devices/d1/messages/eventsx",
        "devices/d1/messages/devicebound/",
        "devices/d1x/messages/events/",
        "devices/D1/messages/events/",
        "anything",
        "/devices/d1/messages/events/",
        "$iothub/twin/GET/",
        "$iothub/twin/GET/?$rid=",
        "$iothub/twin/GET/?rid=1",
        "$iothub/twin/GET/?$rid=" + "1" * 257,
        "$iothub/twin/res/200/?$rid=1",
        "$iothub/twin/PATCH/properties/desired/?$version=1",
        "$iothub/twin/PATCH/properties/reported/?$rid=1&$version=x",
        "$iothub/twin/PATCH/properties/reported/?$rid=1&$version=-1",
        "$iothub/methods/POST/reboot/?$rid=1",
        "$iothub/methods/res/ok/?$rid=1",
        "$iothub/methods/res/200",
        "$iothub/methods/res/2147483648/?$rid=1",
        "$iothub/unknown",
        "$SYS/uptime",
    ],
)
def test_what_nobody_may_publish(topic: str) -> None:
    with pytest.raises(TopicError):
        topics.parse_publish(topic, "d1")


@pytest.mark.parametrize(
    ("name", "module_id"),
    [
        ("devices/d1/messages/devicebound/#", ""),
        ("devices/d1/messages/devicebound/+", ""),
        ("devices/d1/modules/m1/messages/devicebound/#", "m1"),
        ("devices/d1/modules/m1/inputs/#", "m1"),
        ("devices/d1/modules/m1/#", "m1"),
        ("$iothub/twin/res/#", ""),
        ("$iothub/twin/PATCH/properties/desired/#", "m1"),
        ("$iothub/methods/POST/#", ""),
        ("$iothub/methods/POST/reboot/#", ""),
        ("$iothub/methods/POST/+/+", ""),
    ],
)
def test_filters_that_are_granted(name: str, module_id: str) -> None:
    assert topics.check_filter(name, "d1", module_id) is None


@pytest.mark.parametrize(
    ("name", "module_id"),
    [
        ("#", ""),
        ("devices/#", ""),
        ("devices/d1/#", ""),
        ("devices/d2/messages/devicebound/#", ""),
        ("devices/+/messages/devicebound/#", ""),
        ("devices/d1/modules/m1/#", ""),
        ("devices/d1/modules/m2/#", "m1"),
        ("devices/d1/messages/devicebound/#", "m1"),
        ("devices/d1/inputs/#", ""),
        ("devices/d1/messages/events/#", ""),
        ("devices/d1/messages/devicebound/", ""),
        ("devices/d1/messages/devicebound/a=1", ""),
        ("devices/d1/messages/devicebound/+/#", ""),
        ("$iothub/#", ""),
        ("$iothub/twin/res/", ""),
        ("$iothub/twin/res/a#", ""),
        ("$iothub/twin/res/#/x", ""),
        ("$iothub/twin/res/a+", ""),
        ("$iothub/methods/POST/" + "x" * 1100, ""),
    ],
)
def test_filters_that_are_not(name: str, module_id: str) -> None:
    assert topics.check_filter(name, "d1", module_id)


@pytest.mark.parametrize(
    ("name", "topic", "matched"),
    [
        ("$iothub/methods/POST/#", "$iothub/methods/POST/reboot/?$rid=1", True),
        ("$iothub/methods/POST/reboot/#", "$iothub/methods/POST/reboot/?$rid=1", True),
        ("$iothub/methods/POST/reboot/#", "$iothub/methods/POST/rebooted/?$rid=1", False),
        ("$iothub/methods/POST/+/#", "$iothub/methods/POST/reboot/?$rid=1", True),
        ("$iothub/methods/POST/+/+", "$iothub/methods/POST/reboot/?$rid=1", True),
        ("$iothub/methods/POST/+", "$iothub/methods/POST/reboot/?$rid=1", False),
        ("$iothub/methods/POST/a/b/c", "$iothub/methods/POST/a/b", False),
        ("$iothub/twin/res/200/#", "$iothub/twin/res/200", True),
        ("$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/?$version=1", False),
    ],
)
def test_matching(name: str, topic: str, matched: bool) -> None:
    assert topics.matches(name, topic) is matched


@pytest.mark.parametrize(
    ("name", "prefix", "concerned"),
    [
        ("$iothub/methods/POST/#", topics.METHODS, True),
        ("$iothub/methods/POST/a/#", topics.METHODS, True),
        ("$iothub/methods/POST/#", topics.DESIRED, False),
        ("devices/d/modules/m/#", topics.devicebound_prefix("d", "m"), True),
        ("devices/d/modules/m/inputs/#", topics.devicebound_prefix("d", "m"), False),
    ],
)
def test_concerning(name: str, prefix: str, concerned: bool) -> None:
    assert topics.concerns(name, prefix) is concerned


def test_devicebound_as_the_clients_want_it() -> None:
    system = {"content-type": "text/plain; charset=UTF-8", "to": "/devices/d1/x", "message-id": "7"}
    assert topics.devicebound("d1", "", system, {"b b": "b", "iothub-ack": "full", "n": None}) == (
        "devices/d1/messages/devicebound/%24.mid=7&%24.to=%2Fdevices%2Fd1%2Fx"
        "&%24.ct=text%2Fplain%3B%20charset%3DUTF-8&b%20b=b&iothub-ack=full&n"
    )
    assert topics.devicebound("d1", "", {}, {}) == (
        "devices/d1/messages/devicebound/%24.to=%2Fdevices%2Fd1%2Fmessages%2Fdevicebound"
    )
    assert topics.devicebound("d1", "m1", {}, {}).startswith(
        "devices/d1/modules/m1/messages/devicebound/%24.to="
    )


def test_twin_and_method_topics_letter_by_letter() -> None:
    assert topics.twin_response(200, "a") == "$iothub/twin/res/200/?$rid=a"
    assert topics.twin_response(204, "a", 7) == "$iothub/twin/res/204/?$rid=a&$version=7"
    assert topics.desired_patch(3) == "$iothub/twin/PATCH/properties/desired/?$version=3"
    assert topics.method_call("reboot", "1") == "$iothub/methods/POST/reboot/?$rid=1"
    assert topics.method_call("t1*set", "1") == "$iothub/methods/POST/t1*set/?$rid=1"
    assert topics.method_call("a/b+c#?", "1") == "$iothub/methods/POST/a%2Fb%2Bc%23%3F/?$rid=1"


CLEAN = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ID = st.text("abcXYZ019-:.%_*?!(),=@;$'", min_size=1, max_size=128)


@given(
    st.dictionaries(st.sampled_from(list(topics.SYSTEM_PROPERTIES.values())), CLEAN),
    st.dictionaries(
        CLEAN.filter(lambda k: k and k not in topics.SYSTEM_PROPERTIES), st.none() | CLEAN
    ),
)
def test_a_bag_comes_back(system: dict[str, str], properties: dict[str, str | None]) -> None:
    bag = topics.build_bag(system, properties)
    assert not set(bag) & set("/+#?$ \0")
    assert topics.parse_bag(bag) == (system, properties)
    assert topics.parse_publish(f"devices/d/messages/events/{bag}", "d") == (system, properties)


@given(st.text(), st.text(max_size=30))
def test_any_user_name_is_parsed_or_a_topic_error(username: str, client_id: str) -> None:
    try:
        topics.parse_username(username, client_id)
    except TopicError:
        pass


@given(ID, st.none() | ID, st.sampled_from(["", "/", "/?api-version=1", "/api-version=1"]))
def test_any_legal_identity_is_found(device: str, module: str | None, tail: str) -> None:
    client_id = f"{device}/{module}" if module else device
    parsed = topics.parse_username(f"hub/{client_id}{tail}", client_id)
    assert parsed[:3] == ("hub", device, module or "")


@given(st.text() | st.text().map(lambda t: "devices/d1/messages/events/" + t) | st.text().map(
    lambda t: "$iothub/twin/GET/?$rid=" + t))  # fmt: skip
def test_any_topic_means_something_or_is_a_topic_error(topic: str) -> None:
    try:
        topics.parse_publish(topic, "d1")
    except TopicError:
        pass


@given(st.text("ab/+#$", max_size=30), st.text("ab/$", max_size=30))
def test_filters_never_fail(name: str, topic: str) -> None:
    topics.check_filter(name, "a")
    topics.check_filter(f"$iothub/methods/POST/{name}", "a")
    topics.matches(name, topic)


@given(CLEAN.filter(bool), st.text("abc019-", min_size=1, max_size=36))
def test_a_method_topic_is_a_legal_topic_of_five_levels(name: str, rid: str) -> None:
    topic = topics.method_call(name, rid)
    assert not set(topic) & set("+#\0")
    assert len(topic.split("/")) == 5
    assert topics.matches("$iothub/methods/POST/#", topic)
