"""Access: who may, by which credential, from where; and what is not believed."""

from __future__ import annotations

import time
from http.cookies import Morsel, SimpleCookie
from typing import Any

import jwt
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from broker.bus.clock import now_ms
from broker.bus.credentials import (
    ADMISSION_HEADER,
    RELAY_HEADER,
    SigningKey,
    digest,
    new_api_key,
    new_internal_key,
    seal,
)
from broker.bus.errors import CredentialInvalid, Refusal
from broker.bus.frames import json_encode
from broker.bus.records import ApiKey, Revocation, encode
from broker.node.access import Access, Caller, Principal
from ingress.headers import _IN_BETWEEN
from tests.broker.node.conftest import Plane
from tests.fixtures.node import RunningNode

SID, OTHER = "00" + "a" * 20, "00" + "b" * 20


class Door:
    """An access with one key of each kind."""

    def __init__(self, origins: tuple[str, ...] = (), trust_loopback: bool = True) -> None:
        self.access = Access(origins, trust_loopback)
        self.signing = SigningKey.generate()
        self.access.verifier.take(self.signing.kid, json_encode(self.signing.public))
        self.api_key = new_api_key()
        self.access.take_key(digest(self.api_key), encode(ApiKey("key1", "acme", "test", now_ms())))
        self.access.take_key("internal", json_encode({"key": new_internal_key()}))

    def session(self, sid: str = SID, life: float = 600, scope: str = "write") -> str:
        return self.signing.session("acme", "key1", sid, scope, "finish", life)[0]

    def login(self, life: float = 600) -> str:
        return self.signing.login("acme", "login", life)[0]

    def relay(self, *, loopback: bool = False, proto: str = "http", age: float = 0) -> str:
        said = {"ingress": "i", "proto": proto, "loopback": loopback, "ip": "9.9.9.9", "t": now_ms() - int(age * 1000)}
        return seal(self.access._internal, said, purpose="relay")

    def who(self, sid: str = SID, *, headers: dict[str, str]) -> Principal:
        return self.access.principal(caller(headers), sid)

    def why(self, sid: str = SID, *, headers: dict[str, str]) -> str:
        with pytest.raises((Refusal, CredentialInvalid)) as refused:
            self.who(sid, headers=headers)
        error = refused.value
        assert isinstance(error, (Refusal, CredentialInvalid))
        return error.code


def caller(headers: dict[str, str], client: str = "127.0.0.1", scheme: str = "http") -> Caller:
    return Caller({"host": "here:1", **headers}, {}, scheme, client=client)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_each_credential_opens_what_it_is_for() -> None:
    door = Door()
    assert door.who(headers=bearer(door.api_key))[:4] == ("acme", "key1", "", "write")
    assert door.who(headers=bearer(door.session()))[:4] == ("acme", "key1", SID, "write")
    by_cookie = door.who(headers={"cookie": f"okome_s={door.session()}"})
    assert (by_cookie.sid, by_cookie.cookie) == (SID, True)
    by_login = door.who(headers={"cookie": f"okome_login={door.login()}"})
    assert (by_login.tenant, by_login.sid, by_login.cookie) == ("acme", "", True)


def test_a_key_that_an_operator_chose_may_look_like_a_token() -> None:
    door = Door()
    door.access.take_key(digest("a.key.of-theirs-12"), encode(ApiKey("key2", "acme", "chosen", now_ms())))
    assert door.who(headers=bearer("a.key.of-theirs-12")).subject == "key2"


def test_what_is_expired_forged_or_for_another_audience_is_refused() -> None:
    door, elsewhere = Door(), Door()
    assert door.why(headers={}) == "unauthenticated"
    assert door.why(headers=bearer("ok_nobody")) == "unauthenticated"
    assert door.why(headers=bearer(door.session(life=-100))) == "token_expired"
    assert door.why(headers=bearer(elsewhere.session())) == "unauthenticated"
    assert door.why(headers=bearer(door.login())) == "unauthenticated", "a login is no session token"
    assert door.why(headers={"cookie": f"okome_login={door.session()}"}) == "unauthenticated"
    head, body, mac = door.session().split(".")
    assert door.why(headers=bearer(f"{head}.{body[:-2]}AA.{mac}")) == "unauthenticated"
    assert door.why(headers=bearer("x" * 5000)) == "unauthenticated"


@pytest.mark.parametrize("key", ["sid", "jti", "key"])
def test_what_was_revoked_is_refused_however_it_is_shown(key: str) -> None:
    door = Door()
    token = door.session()
    principal = door.who(headers=bearer(token))
    name = {"sid": SID, "jti": principal.jti, "key": "key1"}[key]
    door.access.revocations.take(f"{key}.{name}", encode(Revocation(now_ms(), "test")))
    admission = door.access.admission(principal, SID)
    for headers in (
        bearer(token),
        {"cookie": f"okome_s={token}"},
        {RELAY_HEADER: door.relay(), ADMISSION_HEADER: admission},
    ):
        assert door.why(headers=headers) == "token_revoked"
    if key == "key":
        assert door.why(headers=bearer(door.api_key)) == "token_revoked"


def test_our_cookie_is_found_among_strangers() -> None:
    """Every program on localhost sets cookies for every port, some with names that parsers give up at."""
    door = Door()
    token = door.session()
    for strange in ("a[b]=1; ", "{}=x; ", '"; ', "=; ", 'q="a;b"; ', "é=1; ", ";;; "):
        assert door.who(headers={"cookie": f"{strange}okome_s={token}; z=1"}).sid == SID, strange


def test_a_session_cookie_that_is_void_does_not_take_the_logins_force() -> None:
    door = Door()
    for void in (door.session(life=-100), "junk", Door().session(), door.session(OTHER)):
        cookies = {"cookie": f"okome_s={void}; okome_login={door.login()}"}
        assert door.who(headers=cookies).subject == "login"
    assert door.why(headers={"cookie": f"okome_s={door.session(life=-100)}"}) == "token_expired"
    assert door.why(headers={"cookie": f"okome_s={door.session(OTHER)}"}) == "unauthenticated"


def test_a_cookie_that_may_only_read_does_not_take_the_force_of_a_login_of_the_same_tenant() -> None:
    door = Door()
    reading = door.session(scope="read")
    assert door.who(headers={"cookie": f"okome_s={reading}; okome_login={door.login()}"}).subject == "login"
    assert door.who(headers={"cookie": f"okome_s={door.session()}; okome_login={door.login()}"}).sid == SID
    stranger = door.signing.login("another", "login", 600)[0]
    assert door.who(headers={"cookie": f"okome_s={reading}; okome_login={stranger}"}).sid == SID, (
        "his opens nothing here"
    )


@pytest.mark.parametrize("shown", ["Basic eHg6eA==", "Bearer", "Bearer ", "Token x", "junk"])
def test_an_authorization_that_is_no_bearer_is_refused_whatever_comes_with_it(shown: str) -> None:
    door = Door()
    admission = door.access.admission(door.who(headers=bearer(door.session())), SID)
    for beside in (
        {},
        {"cookie": f"okome_s={door.session()}"},
        {"cookie": f"okome_login={door.login()}"},
        {RELAY_HEADER: door.relay(), ADMISSION_HEADER: admission},
    ):
        assert door.why(headers={"authorization": shown, **beside}) == "unauthenticated", beside
    assert door.who(headers={"authorization": "", "cookie": f"okome_s={door.session()}"}).sid == SID, "none at all"


def test_an_admission_is_believed_from_an_ingress_and_for_its_session_only() -> None:
    door = Door()
    first = door.who(headers=bearer(door.session(life=5)))
    admitted = door.access.admission(first, SID)
    relay = {RELAY_HEADER: door.relay()}
    found = door.who(headers={**relay, ADMISSION_HEADER: admitted})
    assert (found.sid, found.expires_at, found.cookie) == (SID, first.expires_at, False)
    for headers, sid in [
        ({ADMISSION_HEADER: admitted}, SID),
        ({RELAY_HEADER: door.relay(age=100), ADMISSION_HEADER: admitted}, SID),
        ({RELAY_HEADER: Door().relay(), ADMISSION_HEADER: admitted}, SID),
        ({RELAY_HEADER: "junk.junk", ADMISSION_HEADER: admitted}, SID),
        ({**relay, ADMISSION_HEADER: admitted}, OTHER),
        ({**relay, ADMISSION_HEADER: admitted}, ""),
        ({**relay, ADMISSION_HEADER: admitted[:-4] + "AAAA"}, SID),
        ({**relay, ADMISSION_HEADER: door.relay()}, SID),
        ({**relay, ADMISSION_HEADER: Door().access.admission(found, SID)}, SID),
    ]:
        assert door.why(sid, headers=headers) == "unauthenticated"


@pytest.mark.parametrize(
    ("host", "origin", "client", "allowed"),
    [
        ("127.0.0.1:80", "http://127.0.0.1:80", "127.0.0.1", True),
        ("localhost:8080", "http://localhost:8080", "127.0.0.1", True),
        ("[::1]:80", "http://[::1]:80", "::1", True),
        ("LOCALHOST:80", "http://localhost:80", "127.0.0.1", True),
        ("127.0.0.1:80", "", "127.0.0.1", False),
        ("127.0.0.1:80", "null", "127.0.0.1", False),
        ("127.0.0.1:80", "http://127.0.0.1:81", "127.0.0.1", False),
        ("127.0.0.1:80", "http://localhost:80", "127.0.0.1", False),
        ("127.0.0.1:80", "http://evil", "127.0.0.1", False),
        ("evil:80", "http://evil:80", "127.0.0.1", False),
        ("127.0.0.1.evil:80", "http://127.0.0.1.evil:80", "127.0.0.1", False),
        ("localhost:80", "http://localhost:80", "10.0.0.7", False),
        ("", "", "127.0.0.1", False),
        ("[::1", "http://[::1", "127.0.0.1", False),
    ],
)
def test_only_a_browser_on_this_machine_at_our_own_page_logs_in_without_a_key(
    host: str, origin: str, client: str, allowed: bool
) -> None:
    headers = {"host": host, **({"origin": origin} if origin else {})}
    door = Door()
    assert door.access.loopback_login(caller(headers, client)) is allowed
    assert not Door(trust_loopback=False).access.loopback_login(caller(headers, client))
    relayed = {**headers, RELAY_HEADER: door.relay(loopback=False)}
    assert not door.access.loopback_login(caller(relayed, client))


@pytest.mark.parametrize("between", sorted({RELAY_HEADER, *(name.decode() for name in _IN_BETWEEN)}))
def test_who_came_through_something_that_is_not_believed_is_not_on_this_machine(between: str) -> None:
    """Also where that something is: an ingress whose clock is wrong, or somebody's proxy on this host."""
    door = Door()
    headers = {"host": "localhost:80", "origin": "http://localhost:80"}
    assert door.access.loopback_login(caller(headers))
    old = door.relay(loopback=True, age=100)
    assert not door.access.loopback_login(caller({**headers, between: old}))
    assert door.access.loopback_login(caller({**headers, RELAY_HEADER: door.relay(loopback=True)}, "10.0.0.7"))


@pytest.mark.parametrize(
    ("origin", "same"),
    [
        ("http://here:1", True),
        ("https://HERE:1", True),
        ("https://friend", True),
        ("https://friend/", True),
        ("https://friend.evil", False),
        ("http://friend", False),
        ("null", False),
        ("", False),
        ("http://[", False),
    ],
)
def test_a_cookie_acts_only_from_a_page_of_ours(origin: str, same: bool) -> None:
    door = Door(("https://friend",))
    headers = {"cookie": f"okome_s={door.session()}", **({"origin": origin} if origin else {})}
    asking = caller(headers)
    principal = door.access.principal(asking, SID)
    if same:
        door.access.may_act(asking, principal)
    else:
        with pytest.raises(Refusal) as refused:
            door.access.may_act(asking, principal)
        assert refused.value.code == "forbidden"
    door.access.may_act(caller({**bearer(door.session()), "origin": origin}), door.who(headers=bearer(door.session())))


def test_secure_is_what_an_ingress_says_it_is() -> None:
    door = Door()
    assert not door.access.secure(caller({}))
    assert door.access.secure(caller({}, scheme="https"))
    assert door.access.secure(caller({RELAY_HEADER: door.relay(proto="https")}))
    assert not door.access.secure(caller({RELAY_HEADER: Door().relay(proto="https")}))


# -- over HTTP ---------------------------------------------------------------------------------------------------------


def cookie_of(answer: Any, name: str) -> Morsel[str]:
    jar: SimpleCookie = SimpleCookie()
    for value in answer.headers.get_list("set-cookie"):
        jar.load(value)
    return jar[name]


async def test_cookies_are_for_one_session_and_for_no_script(plane: Plane) -> None:
    internal = plane.node.internal
    said = {"ingress": "i", "proto": "https", "loopback": True, "ip": "127.0.0.1", "t": now_ms()}
    relayed = {RELAY_HEADER: seal(internal, said, purpose="relay")}
    made = await plane.http.post("/v1/sessions", json={}, headers={**plane.key, **relayed})
    sid = made.json()["session_id"]
    again = await plane.http.post(f"/v1/sessions/{sid}/token", json={}, headers=plane.key)
    for answer, secure in ((made, True), (again, "")):
        cookie = cookie_of(answer, "okome_s")
        assert cookie.value == answer.json()["token"]
        assert (cookie["path"], cookie["httponly"], cookie["secure"]) == (f"/v1/sessions/{sid}", True, secure)
        assert cookie["samesite"].lower() == "strict"
        assert cookie["expires"]
    login = await plane.http.post("/v1/login", json={"api_key": "ok_first"})
    cookie = cookie_of(login, "okome_login")
    assert (cookie["path"], cookie["httponly"], cookie["samesite"].lower()) == ("/", True, "strict")
    assert "ok_first" not in login.text


async def test_a_ticket_opens_once_leaves_a_cookie_and_the_cookie_wins_over_the_spent_ticket(plane: Plane) -> None:
    made = await plane.session()
    sid, path = made["session_id"], f"/v1/sessions/{made['session_id']}"
    answer = await plane.http.post(f"{path}/tickets", json={"scope": "read"}, headers=plane.key)
    assert answer.status_code == 201
    ticket = answer.json()["ticket"]
    assert 50 < answer.json()["expires_at"] - time.time() <= 60
    url = f"{path}/events?ticket={ticket}&until=done"
    first = await plane.http.get(url)
    assert first.status_code == 200
    assert "event: caught_up" in first.text
    cookie = cookie_of(first, "okome_s")
    assert (cookie["path"], cookie["httponly"], bool(cookie["expires"])) == (path, True, True)
    again = await plane.http.get(url, headers={"cookie": f"okome_s={cookie.value}"})
    assert again.status_code == 200, "the cookie wins"
    plane.http.cookies.clear()
    spent = await plane.http.get(url)
    assert (spent.status_code, spent.json()["error"]["code"]) == (401, "unauthenticated")
    posted = await plane.http.post(
        f"{path}/generations",
        json={"prompt": "x"},
        headers={"cookie": f"okome_s={cookie.value}", "origin": plane.node.url},
    )
    assert (posted.status_code, posted.json()["error"]["code"]) == (403, "forbidden"), "it may only read"
    other = await plane.http.post(f"{path}/tickets", json={}, headers=plane.key)
    elsewhere = (await plane.session())["session_id"]
    wrong = await plane.http.get(f"/v1/sessions/{elsewhere}/events?ticket={other.json()['ticket']}")
    assert wrong.status_code == 403
    assert sid != elsewhere
    async with connect(f"{plane.node.url.replace('http', 'ws')}{path}/ws?ticket={ticket}", proxy=None) as socket:
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4401, "it is spent, and no first message is waited for"


async def test_who_may_only_read_makes_no_token_that_outlives_his_own(plane: Plane) -> None:
    sid = (await plane.session())["session_id"]
    path, life = f"/v1/sessions/{sid}", 100
    mine = plane.okome.keyring.signing.session("acme", "key1", sid, "read", "finish", life)[0]
    for headers, least, most in [({"authorization": f"Bearer {mine}"}, 0, life), (plane.key, 1000, 10**6)]:
        made = await plane.http.post(f"{path}/tickets", json={}, headers=headers)
        opened = await plane.http.get(f"{path}/events?ticket={made.json()['ticket']}&until=done")
        token = cookie_of(opened, "okome_s").value
        plane.http.cookies.clear()
        claims = jwt.decode(token, options={"verify_signature": False})
        assert least < claims["exp"] - time.time() <= most
        assert claims["scope"] == "read"


async def test_a_page_on_this_machine_logs_in_and_acts_with_its_cookie(plane: Plane) -> None:
    node = plane.node
    refused = await plane.http.post("/v1/login", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthenticated")
    answer = await plane.http.post("/v1/login", json={}, headers={"origin": node.url})
    assert answer.status_code == 200
    cookie = {"cookie": f"okome_login={cookie_of(answer, 'okome_login').value}"}
    plane.http.cookies.clear()
    for headers, status in [({}, 403), ({"origin": "http://evil"}, 403), ({"origin": node.url}, 201)]:
        made = await plane.http.post("/v1/sessions", json={}, headers={**cookie, **headers})
        plane.http.cookies.clear()
        assert made.status_code == status
    listed = await plane.http.get("/v1/sessions", headers=cookie)
    assert [session["id"] for session in listed.json()["sessions"]] == [made.json()["session_id"]]
    form = {"content-type": "application/x-www-form-urlencoded", "origin": node.url}
    posted = await plane.http.post("/v1/sessions", content=b"a=b", headers={**cookie, **form})
    assert (posted.status_code, posted.json()["error"]["param"]) == (400, "content-type")


async def test_no_page_of_another_origin_logs_a_browser_in(plane: Plane) -> None:
    """Of a subdomain, say, whose cookies count here; it need not read the answer."""
    for origin, status in [("http://evil", 403), ("null", 403), (plane.node.url, 200)]:
        answer = await plane.http.post("/v1/login", json={"api_key": "ok_first"}, headers={"origin": origin})
        plane.http.cookies.clear()
        assert (answer.status_code, "set-cookie" in answer.headers) == (status, status == 200), origin


async def test_a_body_that_does_not_say_what_it_is_is_refused(plane: Plane) -> None:
    """A page of any origin can send one, and the browser asks nobody before."""
    answer = await plane.http.post("/v1/login", content=b'{"api_key": "ok_first"}')
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "content-type")
    assert "set-cookie" not in answer.headers


async def test_an_ingress_is_given_an_admission_and_nobody_else(node: RunningNode) -> None:
    author = await node.session()
    said = {"ingress": "i", "proto": "http", "loopback": False, "ip": "1.2.3.4", "t": now_ms()}
    relayed = {RELAY_HEADER: seal(node.internal, said, purpose="relay")}
    async with node.events(author.sid, headers=relayed) as events:
        admission = events.response.headers[ADMISSION_HEADER]
    async with node.events(author.sid) as events:
        assert ADMISSION_HEADER not in events.response.headers
    path = f"/v1/sessions/{author.sid}/events"
    async with node.http.stream("GET", path, headers={**relayed, ADMISSION_HEADER: admission}) as response:
        assert response.status_code == 200
    assert (await node.http.get(path, headers={ADMISSION_HEADER: admission})).status_code == 401
