"""The checks of `ondol doctor` over the network: the server, who works for it, Flower, the ports that `up` wants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from ondol.cli.findings import Finding, bad, note, ok, without_secret
from ondol.client.settings import Target, find_target
from ondol.setting_values import is_loopback
from ondol.settings import FlowerSettings, UpSettings, load_settings

_ANSWER_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class _Reply:
    """An answer; its status is 0, and the text says why, where none came."""

    status: int
    text: str
    body: dict[str, Any]


def run(settings: UpSettings) -> Iterator[Finding]:
    """The findings. Blocks for seconds at most."""
    target = find_target()
    ready = _get(target, "/readyz")
    if ready.status == 0:
        remedy = "start it with `ondol up`, or set ONDOL_URL"
        yield note("server", f"{without_secret(target.url)} does not answer", remedy)
        yield from _ports(settings)
        return
    yield _server(target, ready)
    if ready.status == httpx.codes.OK:
        yield from _workers(_get(target, "/v1/workers"))
    yield from _flower(settings)


def _server(target: Target, ready: _Reply) -> Finding:
    where = without_secret(target.url)
    checks: dict[str, Any] = ready.body.get("checks") or {}
    failing = [f"{name}: {check.get('reason')}" for name, check in checks.items() if not check.get("ok")]
    if ready.status == httpx.codes.OK and failing:
        found = f"{where} is ready, but {'; '.join(failing)}"
        if "reconciler" not in checks:
            return note("server", found, "synchronise the clocks (NTP)")
        return bad("server", found, "look at the reconciler's log, and start one: `ondol reconciler`")
    if ready.status == httpx.codes.OK:
        return ok("server", f"{where} is ready")
    if not checks:
        found = f"{where} answers {ready.status}: {ready.text[:120]}"
        return bad("server", found, "is it an Ondol? Correct ONDOL_URL, or stop the other program")
    return bad("server", f"{where} is not ready: {'; '.join(failing)}", "look at the logs in the data folder")


def _workers(answer: _Reply) -> Iterator[Finding]:
    if answer.status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        yield note("workers", "the server wants an API key", "set ONDOL_API_KEY to a key made by `ondol keys create`")
        return
    found: list[dict[str, Any]] = answer.body.get("data") or []
    ready = [worker for worker in found if worker.get("is_ready")]
    roles = Counter(str(worker.get("role")) for worker in ready)
    named = ", ".join(f"{worker.get('worker')} on {worker.get('device')}" for worker in ready)
    if roles["train"] == len(ready):
        remedy = "look at the logs of the worker, or start `ondol worker`"
        yield bad("workers", f"{len(found)} known, none ready: jobs and calls wait", remedy)
    elif not roles["train"]:
        yield note("workers", f"{named}; no trainer: fine-tunes wait", "start `ondol trainer`, if they are wanted")
    else:
        yield ok("workers", named)


def _flower(settings: UpSettings) -> Iterator[Finding]:
    if not settings.flower and settings.flower_url is None:
        return
    address = settings.flower_url or _read(settings, "flower.url")
    if address is None:
        return  # nobody has started it here
    alive = _get(Target(address.rstrip("/"), None), "/healthcheck")
    address = without_secret(address)
    if alive.status == httpx.codes.OK:
        yield ok("Flower", f"{address} is up")
    else:
        yield note("Flower", f"{address} does not answer", "start `ondol flower`, or set ONDOL_FLOWER=false")


def _ports(settings: UpSettings) -> Iterator[Finding]:
    from ondol.control.host import is_port_free

    wanted = {"ONDOL_PORT": (settings.host, settings.port)}
    if settings.flower:
        flower = load_settings(FlowerSettings)
        wanted["ONDOL_FLOWER_PORT"] = (flower.flower_host, flower.flower_port)
    taken = {name: at for name, at in wanted.items() if at[1] and not is_port_free(*at)}
    if taken:
        named = ", ".join(f"{host}:{port}" for host, port in taken.values())
        remedy = f"stop the program that has it, or set {' and '.join(taken)} to another; 0 takes a free one"
        yield note("ports", f"taken already: {named}", remedy)
    else:
        yield ok("ports", ", ".join(f"{host}:{port}" for host, port in wanted.values()) + " can be bound")


def _read(settings: UpSettings, name: str) -> str | None:
    try:
        return (settings.run_dir / name).read_text(encoding="utf-8").strip() or None
    except OSError:  # not running here
        return None


def _get(target: Target, path: str) -> _Reply:
    headers = {"authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    try:
        host = httpx.URL(target.url).host
        answer = httpx.get(
            f"{target.url}{path}", headers=headers, timeout=_ANSWER_LIMIT_S, trust_env=not is_loopback(host)
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return _Reply(0, str(error), {})
    try:
        body = answer.json()
    except ValueError:
        body = {}
    return _Reply(answer.status_code, answer.text, body if isinstance(body, dict) else {})
