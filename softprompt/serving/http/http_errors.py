"""What goes wrong with a request, as HTTP: OpenAI's format of errors, and which error has which status.

400  the body is no JSON, or not the kind of JSON that is meant; the Host is not ours; no answer can follow the schema
401  no API key, a wrong or expired one   403  the key is not for this
404  no such model, or no such path       413  the body is too large
422  a field has a wrong value, or the template cannot take the text
429  the queue is full, or the key asks   503  the prompt, or the engine, is damaged or out of reach
     too often (Retry-After)
504  the answer took too long             500  a failure of ours
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from softprompt.errors import (
    BaseModelError,
    DataError,
    GrammarError,
    PromptFileError,
    SoftpromptError,
    TemplateError,
    shorten,
)
from softprompt.serving.engine.engine_requests import DeadlineExceededError, EngineBusyError, EngineUnreachableError
from softprompt.serving.engine.prompt_registry import ModelNotFoundError, ModelUnavailableError

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.\[\]-]{0,59}")

CLIENT_GONE = 499  # nobody sees it but the log and the metrics
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}


# errors whose message is for whoever asked, with their status and code, and the field that is wrong; the first counts
KNOWN: tuple[tuple[type[Exception], int, str, str | None], ...] = (
    (ModelNotFoundError, 404, "model_not_found", "model"),
    (ModelUnavailableError, 503, "model_unavailable", "model"),
    (GrammarError, 400, "invalid_schema", "response_format"),
    (TemplateError, 422, "unusable_text", None),
    (DataError, 422, "unusable_text", None),
    (PromptFileError, 503, "model_unavailable", "model"),
    (BaseModelError, 503, "model_unavailable", "model"),
    (SoftpromptError, 422, "unusable_request", None),
)


class ApiError(HTTPException):
    """An error with a status, in OpenAI's format.

    Attributes:
        code: what a program tells it by.
        param: the field of the request that is wrong, if it is one.
        kind: OpenAI's ``type``; that of the status, if not given.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers=headers)
        self.code, self.param = code, param
        self.kind = kind or TYPES.get(status, "invalid_request_error")

    def to_dict(self) -> dict[str, Any]:
        """What the body of the response is."""
        return {"error": {"message": self.detail, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.to_dict(), self.status_code, headers=self.headers)


class ClientDisconnectedError(ApiError):
    """Whoever asked does not wait for the answer any more."""

    def __init__(self) -> None:
        super().__init__(CLIENT_GONE, "client_gone", "the client closed the connection")


def to_api_error(error: Exception) -> ApiError:
    """What to answer for an error; 500, which says nothing of the inside, for one that is not the request's fault."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _describe_invalid(error.errors(), error.body)
    if isinstance(error, EngineBusyError):
        seconds = str(max(1, math.ceil(error.retry_after)))
        return ApiError(429, "queue_full", str(error), headers={"Retry-After": seconds})
    if isinstance(error, EngineUnreachableError):
        return ApiError(503, "engine_unavailable", str(error), headers={"Retry-After": "1"})
    if isinstance(error, DeadlineExceededError | TimeoutError):
        return ApiError(504, "timeout", "the answer was not there in time: ask for less, or allow more time")
    for kind, status, code, param in KNOWN:
        if isinstance(error, kind):
            return ApiError(status, code, str(error), param=param)
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        message = {404: "there is nothing at this path: /docs tells what there is"}.get(error.status_code, error.detail)
        return ApiError(error.status_code, code, message, headers=error.headers)
    return ApiError(500, "internal_error", "a failure of the server: its log has it under this request's id")


WORDS = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "greater_than": "more than {gt}",
    "union_tag_invalid": "{discriminator} to be one of {expected_tags}",
    "union_tag_not_found": "{discriminator} in it",
    "string_too_short": "at least {min_length:,} characters",
    "string_too_long": "at most {max_length:,} characters",
    "string_pattern_mismatch": "more than white space",
    "too_short": "at least {min_length:,} in the list",
    "too_long": "at most {max_length:,} in it",
    "finite_number": "a number that is finite",
}  # what pydantic's errors expect


def _describe_invalid(errors: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """The first problem of a field, the one that went deepest where a field may be of several types."""
    paths = [_find_path(error, body) for error in errors]
    where = max((path for path in paths if path[:1] == paths[0][:1]), key=len)
    here = [error for error, path in zip(errors, paths, strict=True) if path == where]
    kinds = {error["type"] for error in here}
    if "extra_forbidden" in kinds:
        message = "this field is not known here, and might change the answer: leave it out"
    elif "missing" in kinds:
        message = "expected this field, it is not there" if where else "expected a body of JSON, got none"
    else:
        expected = dict.fromkeys(_describe_expected(error) for error in here)
        message = f"expected {' or '.join(expected)}, got {_describe_value(here[0]['input'])}"
    # names of fields are of whoever asks
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{shorten(part, 80)}" for part in where).lstrip(".")
    return ApiError(422, "invalid_value", f"{name}: {message}" if name else message, param=name or None)


def _find_path(error: Mapping[str, Any], body: Any) -> tuple[str | int, ...]:
    """Where an error is, by names of fields and numbers in lists; pydantic names the types in between, too."""
    source, *parts = error["loc"]
    if source != "body":
        return tuple(parts)
    path: list[str | int] = []
    for number, part in enumerate(parts):
        absent = error["type"] == "missing" and number == len(parts) - 1
        inside = isinstance(part, int) and part < len(body) if isinstance(body, list) else _has_name(body, part)
        if inside:
            body = body[part]
        elif not absent:
            continue
        path.append(part)
    return tuple(path)


def _has_name(body: Any, name: Any) -> bool:
    return isinstance(body, dict) and name in body


def _describe_expected(error: Mapping[str, Any]) -> str:
    words = WORDS.get(error["type"])
    bounds = error.get("ctx", {})
    if error["type"] == "literal_error":
        # pydantic writes them as Python does
        return {"True": "true", "False": "false"}.get(str(bounds["expected"]), str(bounds["expected"]))
    whole = {name: int(one) for name, one in bounds.items() if isinstance(one, float) and one.is_integer()}
    return str(error["msg"]) if words is None else words.format(**{**bounds, **whole})


def _describe_value(value: Any) -> str:
    """What came, without a text of whoever sent it."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str):
        return f"a string of {len(value):,} characters" if value else "an empty string"
    return f"a list of {len(value):,}" if isinstance(value, list) else "an object"


def loggable_field(param: str | None) -> str:
    """The name of a field for the log, unless it looks like anything else than a name."""
    return param if param is not None and _FIELD.fullmatch(param) else ""
