"""What Ondol signs, the Standard Webhooks verifiers accept as it is, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import openai
import pytest

from api.webhooks.message import Delivery, make_delivery
from ondol import InvalidWebhook, verify_webhook
from ondol.contract.webhook_signature import new_secret, sign

pytestmark = pytest.mark.unit

SECRET = new_secret()
EVENT = {"id": "ntc_1", "object": "event", "type": "job.succeeded", "created_at": 1790000000, "data": {"id": "job_1"}}


def delivery(*, age_s: int = 0, secret: str = SECRET) -> Delivery:
    return make_delivery(EVENT, secret=secret, timestamp=int(time.time()) - age_s)


def test_the_signature_is_that_of_the_specification() -> None:
    # The example that the specification's own libraries are tested with.
    headers = sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_openai_client_verifies_it() -> None:
    sent = delivery()
    with openai.OpenAI(api_key="x", base_url="http://127.0.0.1:9") as client:
        event = client.webhooks.unwrap(sent.body, sent.headers, secret=SECRET)
        assert event.id == "ntc_1" and str(event.type) == "job.succeeded"
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.verify_signature(sent.body, sent.headers, secret=new_secret())


def test_the_receiver_gets_the_event() -> None:
    sent = delivery()
    named = {name.title(): value for name, value in sent.headers.items()}
    assert verify_webhook(sent.body, named, SECRET) == EVENT
    assert verify_webhook(sent.body.decode(), named, SECRET) == EVENT
    both = {**sent.headers, "webhook-signature": "v1,AAAA v2,other " + sent.headers["webhook-signature"]}
    assert verify_webhook(sent.body, both, SECRET) == EVENT


Change = Callable[[Delivery], Delivery]
CHANGES: tuple[tuple[Change, str], ...] = (
    (lambda sent: replace(sent, body=sent.body + b" "), "not as it was sent"),
    (lambda sent: replace(sent, headers={**sent.headers, "webhook-id": "ntc_2"}), "does not fit"),
    (lambda sent: replace(sent, headers={}), "webhook-id"),
    (lambda sent: replace(sent, headers={**sent.headers, "webhook-timestamp": "soon"}), "Unix seconds"),
    (lambda _sent: delivery(age_s=301), "at most 300 s"),
    (lambda _sent: delivery(age_s=-400), "clock"),
    (lambda _sent: delivery(secret=new_secret()), "wrong secret"),
)


@pytest.mark.parametrize(("change", "reason"), CHANGES)
def test_what_cannot_be_believed_is_refused_with_the_reason(change: Change, reason: str) -> None:
    sent = change(delivery())
    with pytest.raises(InvalidWebhook, match=reason):
        verify_webhook(sent.body, sent.headers, SECRET)


def test_a_secret_that_is_none_is_told_apart() -> None:
    sent = delivery()
    with pytest.raises(InvalidWebhook, match="ondol webhooks secret"):
        verify_webhook(sent.body, sent.headers, "whsec_???")
    for secret in ("", "whsec_"):  # as of a variable that is not set: anybody could sign with it
        with pytest.raises(InvalidWebhook, match="the secret is empty"):
            verify_webhook(sent.body, sent.headers, secret)


def test_verifying_loads_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); from ondol import verify_webhook;"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['ondol']"
