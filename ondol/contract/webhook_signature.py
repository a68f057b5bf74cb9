"""The signature of a webhook, as the Standard Webhooks specification has it: made by the api, verified by receivers."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from ondol.contract.errors import InvalidWebhook

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"
TOLERANCE_S = 300
_PREFIX = "whsec_"
_SCHEME = "v1,"
_SECRET_BYTES = 32


def new_secret() -> str:
    """A fresh secret, `whsec_` and base64."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def sign(secret: str, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of a delivery of `body` at `timestamp` (Unix seconds)."""
    signature = _SCHEME + _digest(secret, webhook_id, str(timestamp), body)
    return {ID_HEADER: webhook_id, TIMESTAMP_HEADER: str(timestamp), SIGNATURE_HEADER: signature}


def verify_webhook(
    body: bytes | str, headers: Mapping[str, str], secret: str, *, tolerance_s: float = TOLERANCE_S
) -> dict[str, Any]:
    """The event in a webhook's body; InvalidWebhook unless this secret signed exactly these bytes a moment ago.

    `body` is the request's, as received: parsed and written again it has another signature. A delivery may come twice:
    act once for each `webhook-id`.
    """
    raw = body.encode() if isinstance(body, str) else bytes(body)
    found = {name.lower(): value for name, value in headers.items()}
    webhook_id, timestamp, given = (_header(found, name) for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER))
    _check_age(timestamp, tolerance_s)
    expected = (_SCHEME + _digest(secret, webhook_id, timestamp, raw)).encode()
    if not any(hmac.compare_digest(expected, one.encode()) for one in given.split()):
        raise InvalidWebhook("the signature does not fit the body: wrong secret, or the body is not as it was sent")
    try:
        event = json.loads(raw)
    except ValueError as exc:
        raise InvalidWebhook("the body is signed, but it is not JSON") from exc
    if not isinstance(event, dict):
        raise InvalidWebhook("the body is signed, but it is not a JSON object")
    return event


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name)
    if not value:
        raise InvalidWebhook(f"the request has no header {name}; it is no webhook of Ondol")
    return value


def _check_age(timestamp: str, tolerance_s: float) -> None:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise InvalidWebhook(f"the header {TIMESTAMP_HEADER} is not a time in Unix seconds")
    age_s = time.time() - int(timestamp)
    if age_s > tolerance_s:
        raise InvalidWebhook(f"the webhook was signed {age_s:.0f} s ago; at most {tolerance_s:g} s are taken")
    if age_s < -tolerance_s:
        raise InvalidWebhook(f"the webhook was signed {-age_s:.0f} s in the future; look at this machine's clock")


def _digest(secret: str, webhook_id: str, timestamp: str, body: bytes) -> str:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise InvalidWebhook(f"the secret is not {_PREFIX} and base64; `ondol webhooks secret` prints it") from exc
    if not key:  # anybody can sign with it
        raise InvalidWebhook("the secret is empty; `ondol webhooks secret` prints it")
    content = f"{webhook_id}.{timestamp}.".encode() + body
    return base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
