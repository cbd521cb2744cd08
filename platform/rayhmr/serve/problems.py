"""Errors as clients see them: application/problem+json (RFC 9457), never a stack trace."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from hmr.errors import DataError, HmrError, ImageError

_STATUS_OF_IMAGE = {
    "not_an_image": 415,
    "format_not_allowed": 415,
    "too_many_pixels": 413,
}


class Problem(Exception):  # noqa: N818  # RFC 9457 calls it a problem
    """A refusal. code: short and stable, for programs; detail: value, rule and cure, for people.

    errors: one dict(loc, msg) for each wrong field.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.errors, self.headers = tuple(errors), dict(headers or {})

    def content(self, request_id: str) -> dict[str, Any]:
        """What the answer says."""
        return {
            "type": f"urn:rayhmr:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "errors": [dict(error) for error in self.errors],
            "request_id": request_id,
        }

    def response(self, request_id: str) -> Response:
        """The answer that says it."""
        return Response(
            json.dumps(self.content(request_id)), self.status, self.headers,
            media_type="application/problem+json",
        )  # fmt: skip


def problem_of(error: Exception) -> Problem:
    """What an error raised while answering means to the client."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ImageError):
        return Problem(_STATUS_OF_IMAGE.get(error.reason, 422), error.reason, str(error))
    if isinstance(error, DataError):
        return Problem(422, "bad_value", str(error))
    if type(error) is HmrError:  # its kinds are about files and settings of this machine
        return Problem(500, "model_nonfinite", str(error))
    return Problem(
        500, "internal", "the service failed on this request; its log has the request_id"
    )
