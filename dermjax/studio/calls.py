"""Calls: what a browser or a script may ask for, as a table that requests are checked by and OpenAPI is written from.

Place in the flow: `guard` lets a request in -> a Call checks every field of it -> a plain function answers. Nothing
that the table does not name reaches a function.
"""

import json
import traceback
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dermjax.errors import UserError

OUR_FAULT = "something went wrong in the studio; its terminal says what"
PICTURE, FILE = ("image/png", "image/jpeg"), ("application/octet-stream",)  # kinds of uploads
TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


class Refused(UserError):
    """A request that is not answered: one plain sentence, and the status of HTTP that says of which kind it is."""

    def __init__(self, sentence: str, status: int = 400):
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Field:
    """One value of a request. least and most bound a number, or the length of a text; default None: it must be given.

    choices: the texts that it may be, () for any.
    """

    kind: type
    summary: str
    default: Any = None
    least: float = 0
    most: float = 200
    choices: tuple[str, ...] = ()

    def read(self, name: str, given: Any) -> Any:
        """The value as the function takes it; Refused names what does not fit."""
        if given is None:
            if self.default is None:
                raise Refused(f"{name} is missing: {self.summary}")
            return self.default
        value = float(given) if self.kind is float and type(given) is int and abs(given) < 1e15 else given
        if type(value) is not self.kind:
            raise Refused(f"{name}: give {WORDS[self.kind]}")
        if self.choices and value not in self.choices:
            raise Refused(f"{name}: give one of {', '.join(self.choices)}")
        if self.kind is str:
            self._check_text(name, value)
        elif self.kind is not bool and not self.least <= value <= self.most:  # NaN is not either
            raise Refused(f"{name}: give {self.least:.10g} to {self.most:.10g}")
        return value

    def _check_text(self, name: str, value: str) -> None:
        if not self.least <= len(value) <= self.most:
            raise Refused(f"{name}: give {self.least:g} to {self.most:g} characters")
        if self.least and not value.strip():
            raise Refused(f"{name}: has blanks alone; give words")
        # blanks of other kinds, as web pages and word processors have them, are blanks
        hidden = [c for c in value if not c.isprintable() and c not in "\n\t" and unicodedata.category(c) != "Zs"]
        if hidden:
            raise Refused(f"{name}: has a character that cannot be shown, U+{ord(hidden[0]):04X}; leave it out")

    def from_text(self, name: str, text: str | None) -> Any:
        """As `read`, of a value in an address, where all are texts."""
        if text is None or self.kind is str:
            return self.read(name, text)
        if self.kind is bool:
            return self.read(name, {"true": True, "false": False}.get(text, text))
        try:
            return self.read(name, self.kind(text[:40]))
        except ValueError:
            raise Refused(f"{name}: give {WORDS[self.kind]}") from None

    def schema(self) -> dict:
        """The value in the words of JSON Schema."""
        bounds = ("minLength", "maxLength") if self.kind is str else ("minimum", "maximum")
        schema = {"type": TYPES[self.kind], "description": self.summary}
        if self.choices:
            schema["enum"] = list(self.choices)
        elif self.kind is not bool:
            schema |= dict(zip(bounds, (self.least, self.most), strict=True))
        return schema if self.default is None else schema | {"default": self.default}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One address and its answer: `function` gets the fields by name, `client` where `asks_who`, `body` of an upload.

    It returns what JSON can say, or a Response. media is the kind of what it answers.
    """

    method: str
    path: str
    function: Callable[..., Any]
    summary: str
    fields: Mapping[str, Field] = field(default_factory=dict)
    upload: tuple[str, ...] = ()  # kinds of the body, for one that is no JSON
    asks_who: bool = False
    media: str = "application/json"

    def route(self) -> Route:
        """The call as Starlette serves it, in a thread of its own so that no call waits for another."""
        return Route(self.path, self._answer, methods=[self.method])

    async def _answer(self, request: Request) -> Response:
        given = await self._given(request)
        answer = await run_in_threadpool(self.function, **given)
        return answer if isinstance(answer, Response) else JSONResponse(answer)

    async def _given(self, request: Request) -> dict[str, Any]:
        who = {"client": request.client.host if request.client else ""} if self.asks_who else {}
        if self.method == "GET" or self.upload:
            texts = {**request.query_params, **request.path_params}
            given = {name: each.from_text(name, texts.get(name)) for name, each in self.fields.items()}
            return given | who | ({"body": await request.body()} if self.upload else {})
        values = {**_json_object(await request.body()), **request.path_params}
        unknown = sorted(values.keys() - self.fields.keys())
        if unknown:
            raise Refused(f"unknown field {unknown[0][:40]!r}; there are: {', '.join(self.fields) or 'none'}")
        return {name: each.read(name, values.get(name)) for name, each in self.fields.items()} | who

    def described(self) -> dict:
        """The call in the words of OpenAPI."""
        inside = {name: each for name, each in self.fields.items() if f"{{{name}}}" in self.path.replace(":path", "")}
        rest = {name: each for name, each in self.fields.items() if name not in inside}
        in_address = inside | (rest if self.method == "GET" or self.upload else {})
        operation = {
            "summary": self.summary,
            "parameters": [
                {"name": name, "in": "path" if name in inside else "query", "schema": each.schema()}
                | {"required": name in inside or each.default is None}
                for name, each in in_address.items()
            ],
            "responses": {
                "200": {"description": "the answer", "content": {self.media: {}}},
                "default": {"description": "refused", "content": {"application/json": {"schema": ERROR}}},
            },
        }
        if self.upload:
            operation["requestBody"] = {"required": True, "content": {kind: {} for kind in self.upload}}
        elif self.method == "POST":
            schema = {"type": "object", "properties": {name: each.schema() for name, each in rest.items()}}
            schema |= {"required": [name for name, each in rest.items() if each.default is None]}
            schema |= {"additionalProperties": False}
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        return operation


ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}


def openapi(calls: Sequence[Call], version: str) -> dict:
    """The description of a table of calls, OpenAPI 3.1."""
    paths: dict[str, dict] = {}
    for call in calls:
        paths.setdefault(call.path.replace(":path", ""), {})[call.method.lower()] = call.described()
    about = "Research use only. Not a medical device. Every image that it makes is synthetic."
    return {
        "openapi": "3.1.0",
        "info": {"title": "dermjax studio", "version": version, "description": about},
        "paths": paths,
    }


def refusal(error: Exception, say: Callable[[str], str]) -> JSONResponse:
    """One sentence, as `say` puts it, for whatever was raised; what is our fault is told in the terminal alone."""
    if isinstance(error, UserError):
        return JSONResponse({"error": say(str(error))}, getattr(error, "status", 400))
    traceback.print_exception(error)
    return JSONResponse({"error": OUR_FAULT}, 500)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _json_object(body: bytes) -> dict[str, Any]:
    """The object in a body; Refused for anything else, also numbers and brackets that Python would choke on."""
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refused("the request is not a JSON object")
    return value
