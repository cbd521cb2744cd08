"""API keys: where they come from, how they are compared, and how much each may ask for.

Only digests are kept, so that a key is in no process list, state or log.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Callable, Sequence
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.types import Scope

from rayhmr.serve.problems import Problem

MIN_KEY_LENGTH = 22
"""128 bits in base64."""
_NAMES_IN_ADDRESSES = frozenset(
    {"access_token", "api-key", "api_key", "apikey", "authorization", "bearer", "key", "token"}
)
_WRONG_KEYS_PER_S = 20.0
"""Beyond these a wrong key is told to wait. Right keys are judged first and notice nothing."""


def digest_of(key: str) -> bytes:
    """What is kept of an API key."""
    return hashlib.sha256(key.encode()).digest()


class TokenBucket:
    """Lets through `rate` requests a second on average, and a second's worth of them at once."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._capacity = max(1.0, rate)
        self._tokens, self._filled_at = self._capacity, clock()

    def take(self) -> float:
        """0 when one more may pass now; else the seconds after which it is worth to try again."""
        now = self._clock()
        self._tokens = min(self._capacity, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate


class Keyring:
    """Who may ask, and how often.

    digests: of the keys; none: everybody is let in, as one key would be. rate_per_s: of each key;
    none: as often as it likes.
    """

    def __init__(
        self,
        digests: Sequence[bytes],
        rate_per_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._digests = tuple(digests)
        self._buckets = (
            None
            if rate_per_s is None
            else [TokenBucket(rate_per_s, clock) for _ in range(max(1, len(self._digests)))]
        )
        self._wrong = TokenBucket(_WRONG_KEYS_PER_S, clock)

    def admit(self, scope: Scope, headers: Headers) -> int:
        """Which key a request came with; Problem 401 for none of them, 429 for too often."""
        number = self._number(scope, headers) if self._digests else 0
        if number is None:
            raise self._refusal()
        if self._buckets is not None and (wait_s := self._buckets[number].take()):
            raise too_often("rate_limited", "this key asks more often than it may", wait_s)
        return number

    def _number(self, scope: Scope, headers: Headers) -> int | None:
        given = headers.getlist("authorization")
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        digest = digest_of(key.strip())
        # Every key is compared, and each in constant time: the time tells nothing.
        equal = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(equal) or _key_in_address(scope):
            return None
        return equal.index(True)

    def _refusal(self) -> Problem:
        if wait_s := self._wrong.take():
            return too_often("too_many_wrong_keys", "too many requests come without a key", wait_s)
        return Problem(
            401,
            "unauthorized",
            "this service needs its key in one header, Authorization: Bearer <key>, and nowhere "
            "else; addresses end up in logs",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _key_in_address(scope: Scope) -> bool:
    query = scope.get("query_string", b"").decode("latin-1")
    return any(name.lower() in _NAMES_IN_ADDRESSES for name, _ in parse_qsl(query, True))


def too_often(code: str, what: str, wait_s: float) -> Problem:
    """429 with the whole seconds after which to try again."""
    seconds = max(1, math.ceil(wait_s))
    return Problem(
        429, code, f"{what}; try again in {seconds} s", headers={"Retry-After": str(seconds)}
    )
