"""The HTTP routes besides the streams, with FastAPI. Every route is a few lines over `Operations`.

Errors have one shape, `{"error": {code, message, param?, request_id}}`, never a framework's own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from broker.bus import operations as ops
from broker.bus.credentials import LOGIN_COOKIE, SESSION_COOKIE
from broker.bus.errors import BusError, CredentialInvalid, Refusal
from broker.bus.records import Session
from broker.bus.subjects import Cursor, is_request_id, partition_of, random_id
from broker.node.access import Access, Caller, Principal, check_session_id, read_caller
from broker.node.inputs import GenerationBody, LoginBody, SessionBody, SessionPatch, TicketBody, parse
from broker.node.operations import Operations
from broker.node.settings import NodeSettings
from broker.node.tails import Tails
from broker.node.waiting import Waiting

log = structlog.get_logger("node")

NO_STORE = {"cache-control": "no-store"}  # errors and 204 are cacheable unless it is said (RFC 9110)


def request_id(caller: Caller) -> str:
    """The client's own, if it is short and plain, else a new one."""
    given = caller.headers.get("x-request-id", "")
    return given if is_request_id(given) else random_id(12)


def refuse(refusal: Refusal, id: str, more: Mapping[str, str] | None = None) -> Response:
    headers = {**NO_STORE, "x-request-id": id, **(more or {})}
    if (wait := refusal.retry_after_header) is not None:
        headers["Retry-After"] = wait
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(json.dumps(refusal.answer(id)), refusal.status, headers, "application/json")


def as_refusal(error: Exception) -> Refusal:
    """Any error of ours in the words of the public API."""
    match error:
        case Refusal():
            return error
        case CredentialInvalid():
            return Refusal(error.code, error.message)
        case BusError():
            return Refusal("unavailable", "a part of the system does not answer; try again", retry_after=1)
    raise AssertionError(error)


def caller_of(request: Request) -> Caller:
    return read_caller(request.scope)


def set_session_cookie(response: Response, token: ops.SessionToken, *, secure: bool) -> None:
    """For this session only, so that several in one browser do not overwrite one another."""
    response.set_cookie(
        SESSION_COOKIE,
        token.token,
        expires=_http_date(token.expires_at),
        path=f"/v1/sessions/{token.session_id}",
        secure=secure,
        httponly=True,
        samesite="strict",
    )


def build(operations: Operations, access: Access, waiting: Waiting, tails: Tails, settings: NodeSettings) -> FastAPI:
    """The application. It holds no state of its own."""
    # A redirect would name the scheme and host that this node believes in, or those that a client made up.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    async def on_error(request: Request, error: Exception) -> Response:
        return refuse(as_refusal(error), request_id(caller_of(request)))

    async def on_framework_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "malformed")
        return refuse(
            Refusal(code, f"no such thing here: {request.method} {request.url.path[:100]}"),
            request_id(caller_of(request)),
            {"allow": methods(request)} if error.status_code == 405 else None,
        )

    def methods(request: Request) -> str:
        """Of all routes with this path; the framework names those of the first one."""
        there = [route for route in app.routes if isinstance(route, Route)]
        there = [route for route in there if route.matches(request.scope)[0] is not Match.NONE]
        return ", ".join(sorted({method for route in there for method in route.methods or ()}))

    for kind in (Refusal, CredentialInvalid, BusError):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(HTTPException, on_framework_error)

    async def on_mistake_of_ours(request: Request, error: Exception) -> Response:
        """The shape of a 500; Starlette raises the error on to `App`, which logs it."""
        return refuse(Refusal("internal", "the request could not be carried out"), request_id(caller_of(request)))

    app.add_exception_handler(Exception, on_mistake_of_ours)

    def who(request: Request, sid: str = "", *, acts: bool = False) -> Principal:
        """`acts`: this changes something, so a cookie alone must come from a page of ours."""
        if sid:
            check_session_id(sid)
        caller = caller_of(request)
        principal = access.principal(caller, sid)
        if acts:
            access.may_act(caller, principal)
        return principal

    async def body_of(request: Request) -> bytes:
        """The whole body; a media type that another site's page can send unasked is refused, and so is none: it can
        send that, too."""
        body = b""
        try:
            async with asyncio.timeout(settings.body_timeout):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > settings.body_limit:
                        raise Refusal("too_large", f"a body is at most {settings.body_limit} bytes")
        except TimeoutError as error:
            raise Refusal("malformed", "the request's body did not arrive in time", status=408) from error
        if body and "json" not in request.headers.get("content-type", "").partition(";")[0]:
            raise Refusal("malformed", "the body must be application/json", param="content-type")
        return body

    def session_answer(request: Request, token: ops.SessionToken, status: int) -> Response:
        path = f"/v1/sessions/{token.session_id}"
        answer = {
            "session_id": token.session_id,
            "token": token.token,
            "expires_at": token.expires_at,
            "events_url": f"{path}/events",
            "ws_url": f"{path}/ws",
        }
        response = _json(answer, status, {"x-okome-session": token.session_id})
        set_session_cookie(response, token, secure=access.secure(caller_of(request)))
        return response

    @app.post("/v1/login")
    async def login(request: Request) -> Response:
        caller = caller_of(request)
        if "origin" in caller.headers and not access.same_origin(caller):
            # That page would log this browser in as whom it likes.
            raise Refusal("forbidden", "a page that logs in needs an Origin that is allowed here")
        body = parse(LoginBody, await body_of(request))
        if body.api_key or body.ticket:
            question = ops.Login(body.api_key, body.ticket)
        elif access.loopback_login(caller):
            question = ops.Login(loopback=True)
        else:
            raise Refusal("unauthenticated", "an api_key or a ticket is needed here")
        found = await operations.login(question)
        response = _json({"expires_at": found.expires_at})
        response.set_cookie(
            LOGIN_COOKIE,
            found.token,
            expires=_http_date(found.expires_at),
            path="/",
            secure=access.secure(caller),
            httponly=True,
            samesite="strict",
        )
        return response

    @app.post("/v1/sessions")
    async def create_session(request: Request) -> Response:
        principal = who(request, acts=True)
        body = parse(SessionBody, await body_of(request))
        token = await operations.create_session(principal, body, _idempotency_key(request))
        return session_answer(request, token, 201)

    @app.get("/v1/sessions")
    async def sessions(request: Request) -> Response:
        limit = _number(request, "limit", 50, 200)
        return _json(
            {"sessions": await operations.sessions(who(request), limit, request.query_params.get("before", ""))}
        )

    @app.get("/v1/sessions/{sid}")
    async def session(request: Request, sid: str) -> Response:
        principal = who(request, sid)
        record = await operations.session(principal, sid)
        return _json(_session(record) | {"generations": await operations.generations(principal, sid)})

    @app.patch("/v1/sessions/{sid}")
    async def patch_session(request: Request, sid: str) -> Response:
        principal = who(request, sid, acts=True)
        return _json(
            _session(await operations.patch_session(principal, sid, parse(SessionPatch, await body_of(request))))
        )

    @app.delete("/v1/sessions/{sid}")
    async def delete_session(request: Request, sid: str) -> Response:
        await operations.delete_session(who(request, sid, acts=True), sid)
        return Response(status_code=204, headers=NO_STORE)

    @app.get("/v1/sessions/{sid}/messages")
    async def messages(request: Request, sid: str) -> Response:
        limit = _number(request, "limit", 200, 1000)
        found, last = await operations.messages(who(request, sid), sid)
        if before := request.query_params.get("before"):
            places = [index for index, message in enumerate(found) if message["generation_id"] == before]
            found = found[: places[0]] if places else []
        tail = await tails.get(partition_of(sid))
        return _json({"messages": found[-limit:], "cursor": str(Cursor(tail.incarnation, last))})

    @app.post("/v1/sessions/{sid}/token")
    async def token(request: Request, sid: str) -> Response:
        return session_answer(request, await operations.token(who(request, sid, acts=True), sid), 200)

    @app.post("/v1/sessions/{sid}/tickets")
    async def ticket(request: Request, sid: str) -> Response:
        principal = who(request, sid, acts=True)
        body = parse(TicketBody, await body_of(request))
        made = await operations.ticket(principal, sid, body.scope)
        return _json({"ticket": made.ticket, "expires_at": made.expires_at}, 201)

    @app.post("/v1/sessions/{sid}/generations")
    async def generate(request: Request, sid: str) -> Response:
        principal = who(request, sid, acts=True)
        wait = _number(request, "wait", 0, 600)
        body = parse(GenerationBody, await body_of(request))
        created = await operations.generate(principal, sid, body, _idempotency_key(request))
        headers = {"x-okome-session": sid, "x-okome-generation": created.generation_id}
        if "text/event-stream" in request.headers.get("accept", "").lower():
            return await waiting.stream(principal, sid, created, headers)
        if wait:
            try:
                await waiting.until_ended(principal, sid, created, wait)
                return _json(await operations.generation(principal, sid, created.generation_id), 200, headers)
            except (Refusal, BusError) as error:  # what was accepted is accepted: which one it is, is said
                return refuse(as_refusal(error), request_id(caller_of(request)), headers)
        return _json({"generation_id": created.generation_id, "cursor": created.cursor}, 202, headers)

    @app.get("/v1/sessions/{sid}/generations/{gid}")
    async def generation(request: Request, sid: str, gid: str) -> Response:
        return _json(await operations.generation(who(request, sid), sid, gid))

    @app.post("/v1/sessions/{sid}/generations/{gid}/cancel")
    async def cancel(request: Request, sid: str, gid: str) -> Response:
        return _json(await operations.cancel(who(request, sid, acts=True), sid, gid), 202)

    def unsupported(what: str) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            who(request)
            raise Refusal("unsupported", f"{what} is not built yet")

        return answer

    for path, what in UNSUPPORTED.items():
        app.add_api_route(path, unsupported(what), methods=["POST"])

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        who(request)
        data = [
            {"id": model.id, "object": "model", "created": model.created_at // 1000, "owned_by": model.engine}
            for model in await operations.models()
        ]
        return _json({"object": "list", "data": data})

    return app


UNSUPPORTED = {
    "/v1/sessions/{sid}/generations/{gid}/tool_results": "tool results",
    "/v1/sessions/{sid}/generations/{gid}/approve": "approval",
    "/v1/embeddings": "embeddings",
    "/v1/chat/completions": "the OpenAI chat dialect",
    "/v1/responses": "the OpenAI responses dialect",
    "/v1/messages": "the Anthropic dialect",
    "/ollama/api/chat": "the Ollama dialect",
    "/ollama/api/generate": "the Ollama dialect",
    "/api/chat": "the AI SDK dialect",
    "/ag-ui": "the AG-UI dialect",
}


def _json(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(data), status, {**NO_STORE, **(headers or {})}, "application/json")


def _session(record: Session) -> dict[str, Any]:
    return {
        "id": record.id,
        "title": record.title,
        "model": record.model,
        "metadata": record.metadata,
        "on_disconnect": record.on_disconnect,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "status": "running" if record.running else "idle",
    }


def _idempotency_key(request: Request) -> str:
    key = request.headers.get("idempotency-key", "")
    if len(key) > 200:
        raise Refusal("malformed", "an Idempotency-Key has at most 200 characters", param="Idempotency-Key")
    return key


def _number(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 0 < int(text) <= most:
        raise Refusal("malformed", f"{name} is a number from 1 to {most}", param=name)
    return int(text)


def _http_date(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
