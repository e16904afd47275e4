"""Who the client is, and what of its word is believed."""

from __future__ import annotations

from dataclasses import replace

from ingress.headers import Field, client_of, counted_as, is_loopback, networks, to_client, to_node
from ingress.request import Kind, Request, with_query


def test_only_a_trusted_proxy_is_believed() -> None:
    fields: list[Field] = [(b"x-forwarded-for", b"1.1.1.1, 2.2.2.2, 10.0.0.9"), (b"x-forwarded-proto", b"https")]
    trusted = networks("10.0.0.0/8")
    assert client_of("9.9.9.9", fields, trusted) == ("9.9.9.9", "")
    assert client_of("10.0.0.1", fields, trusted) == ("2.2.2.2", "https"), "what stands before it is hearsay"
    assert client_of("10.0.0.1", [(b"x-forwarded-for", b"junk")], trusted) == ("10.0.0.1", "")
    assert client_of("10.0.0.1", fields, []) == ("10.0.0.1", "")


def test_loopback_in_all_its_spellings() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("10.0.0.1", "", "localhost", "::ffff:8.8.8.8")))


def test_of_ipv6_a_network_is_counted_as_one_address() -> None:
    assert counted_as("192.0.2.7") == counted_as("::ffff:192.0.2.7") == "192.0.2.7"
    assert {counted_as(f"2001:{name}:0:1::{n}") for name in ("db8", "DB8") for n in range(9)} == {"2001:db8:0:1::/64"}
    assert counted_as("2001:db8:0:2::1") == "2001:db8:0:2::/64"
    assert counted_as("fe80::1%eth0") == "fe80::/64"
    assert counted_as("") == "", "it came by no address"


def test_internal_fields_pass_in_neither_direction() -> None:
    fields: list[Field] = [(b"x-okome-relay", b"f"), (b"x-okome-admission", b"f"), (b"accept", b"a")]
    assert to_node(fields) == [(b"accept", b"a")]
    assert to_client([*fields, (b"x-okome-session", b"s")]) == [(b"accept", b"a"), (b"x-okome-session", b"s")]


def test_connection_cannot_take_out_what_decides_who_asks() -> None:
    fields: list[Field] = [
        (b"connection", b"cookie, origin, x-mine"),
        (b"cookie", b"c"),
        (b"origin", b"o"),
        (b"x-mine", b"m"),
    ]
    assert to_node(fields) == [(b"cookie", b"c"), (b"origin", b"o")]


def request(method: str, path: str, *fields: Field, query: str = "", upgrade: bool = False) -> Request:
    return Request(method, path, path, query, list(fields), upgrade=upgrade)


def test_kinds() -> None:
    sid = "07" + "a" * 20
    accept: Field = (b"accept", b"application/json, text/event-stream;q=0.9")
    assert request("GET", "/readyz").kind is Kind.OWN
    assert request("GET", f"/v1/sessions/{sid}/events").kind is Kind.EVENTS
    assert request("POST", f"/v1/sessions/{sid}/events").kind is Kind.ORDINARY
    assert request("GET", f"/v1/sessions/{sid}/ws", upgrade=True).kind is Kind.SOCKET
    assert request("GET", f"/v1/sessions/{sid}/ws").kind is Kind.ORDINARY
    assert request("POST", f"/v1/sessions/{sid}/generations", accept).kind is Kind.ANSWER
    assert request("POST", f"/v1/sessions/{sid}/generations").kind is Kind.ORDINARY
    assert request("POST", f"/v1/sessions/{sid}/generations/g/cancel", accept).kind is Kind.ORDINARY
    assert request("GET", f"/v1/sessions/{sid}").partition == "07"
    assert request("GET", "/v1/sessions/short").sid == ""


def test_a_cursor_in_the_header_beats_one_in_the_query() -> None:
    brought: Field = (b"last-event-id", b"inc-7")
    assert request("GET", "/x", brought, query="after=inc-3").after == "inc-7"
    assert request("GET", "/x", query="after=inc-3").after == "inc-3"
    assert request("GET", "/x", query="after=now").after == ""


def test_who_asks_is_counted_by_what_they_show() -> None:
    """However that is written, as the node reads it: else each request could be somebody new."""

    def shown(*fields: Field, path: str = "/v1/sessions/00aaaaaaaaaa", upgrade: bool = True) -> list[str]:
        return replace(request("GET", path, *fields), upgrade=upgrade).credentials

    (token,) = shown((b"authorization", b"Bearer t"))
    for brought in (b"Bearer  t", b"bEarer t ", b"bearer t"):
        assert shown((b"authorization", brought), (b"cookie", b"okome_s=c")) == [token]
    for offered in (b"okome.v1, bearer.t", b"bearer.t, bearer.other"):
        assert shown((b"sec-websocket-protocol", offered), (b"cookie", b"okome_s=c")) == [token]
    for upgrade, nothing in ((False, b"bearer.other"), (True, b"bearer.")):
        protocols = (b"sec-websocket-protocol", nothing)
        assert shown(protocols, (b"cookie", b"okome_s=t"), upgrade=upgrade) == [token]
    assert shown((b"cookie", b"a=b; okome_s=t; okome_s=other")) == [token]
    assert shown((b"cookie", b"okome_login=t; okome_login=other"), path="/v1/models") == [token]
    assert token in shown((b"cookie", b"okome_s=random; okome_login=t"))
    assert shown((b"cookie", b"okome_s=random; okome_login=t"), path="/v1/models") == [token]
    assert len(shown((b"authorization", b"Basic t"), (b"cookie", b"okome_s=t"))) == 1
    assert shown((b"cookie", b"a=b")) == shown() == []


def test_an_empty_key_is_replaced() -> None:
    """Beside another one it would be the one that a node reads, and a repeat would be another request."""
    for key, kept in ((b"", False), (b"mine", True)):
        request = Request("POST", "/v1/sessions", "/v1/sessions", "", [(b"idempotency-key", key), (b"host", b"x")])
        request.ensure_idempotency_key()
        (sent,) = [text for name, text in request.headers if name == b"idempotency-key"]
        assert sent
        assert (sent == key) is kept
        assert request.repeatable


def test_parameters_are_set_and_taken_out() -> None:
    assert with_query("/p", "a=1&after=x&ticket=t", after="i-1", ticket=None) == "/p?a=1&after=i-1"
    assert with_query("/p", "ticket=t", ticket=None) == "/p"
