"""What clients may say in request bodies, and how a mistake is named. pydantic here; inside, `records.Request`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from broker.bus.errors import Refusal
from broker.bus.records import Message, Request
from broker.bus.script import MAX_TOKENS


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


def _json(value: dict[str, Any]) -> dict[str, Any]:
    """What pydantic takes for numbers and JSON does not: they would be stored as null."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise ValueError("NaN, infinity and numbers that are too large are not JSON") from error
    return value


Metadata = Annotated[dict[str, Any], AfterValidator(_json)]


class LoginBody(Body):
    api_key: str = Field("", max_length=200)
    ticket: str = Field("", max_length=200)


class SessionBody(Body):
    model: str = Field("", max_length=200)
    title: str = Field("", max_length=200)
    metadata: Metadata = {}
    on_disconnect: Literal["finish", "cancel"] = "finish"
    id: str = Field("", max_length=200, description="an id of the client's own")


class SessionPatch(Body):
    title: str | None = Field(None, max_length=200)
    metadata: Metadata | None = None


class TicketBody(Body):
    scope: Literal["read", "write"] = "read"


class Part(Body):
    type: Literal["text"]
    text: str


class TurnBody(Body):
    role: Literal["system", "user", "assistant", "developer", "tool"]
    content: str | list[Part]

    def message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class GenerationBody(Body):
    prompt: str | None = Field(None, min_length=1)
    messages: list[TurnBody] | None = Field(None, min_length=1, max_length=10_000)
    model: str = Field("", max_length=200)
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)  # a model's own context is checked by its engine
    temperature: float | None = Field(None, ge=0, le=2)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    tools: list[Any] | None = None
    drafts: bool = False

    @field_validator("temperature", mode="before")
    @classmethod
    def _whole_temperature(cls, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError("a number from 0 to 2") from error

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > 16 or any(not stop or len(stop) > 200 for stop in stops):
            raise ValueError("at most 16 stop strings of 1 to 200 characters")
        return value

    @model_validator(mode="after")
    def _one_input(self) -> GenerationBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("either prompt or messages")
        return self

    def request(self) -> Request:
        """Raises Refusal 422 for what is not built."""
        if self.tools:
            raise Refusal("unsupported", "tools are not supported yet", param="tools")
        if self.drafts:
            raise Refusal("unsupported", "drafts are not supported yet", param="drafts")
        if self.messages is not None:
            messages = [turn.message() for turn in self.messages]
        else:
            messages = [Message("user", self.prompt or "")]
        return Request(
            model=self.model,
            messages=messages,
            whole_context=self.messages is not None,
            max_tokens=self.max_tokens or 0,
            temperature=self.temperature,
            stop=[self.stop] if isinstance(self.stop, str) else self.stop or [],
            seed=self.seed,
        )


Kind = TypeVar("Kind", bound=Body)


def _is_field(part: str) -> bool:
    """pydantic names the alternative of a union, too: `content.str`, `stop.list[str]`."""
    return part.isidentifier() and part != "str"


def parse(kind: type[Kind], body: bytes | dict[str, Any]) -> Kind:
    """Raises Refusal `malformed`, naming the field that is wrong (the first one, if several are)."""
    try:
        if isinstance(body, bytes):
            return kind.model_validate_json(body or b"{}")
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or _is_field(part))
        param = place or ("prompt" if "either prompt" in first["msg"] else None)
        raise Refusal("malformed", first["msg"].removeprefix("Value error, "), param=param) from error
