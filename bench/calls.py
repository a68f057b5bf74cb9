"""Calls: single-text `/v1/embeddings` beside Infinity's HTTP server, at equal precision, with one client for both.

`python -m bench.calls [--full]`. Servers have all cores but one (each in its turn), the client has that one. All
servers stay up; rounds are interleaved. At concurrency 64 the texts are mixed (up to 400 characters), at 1 it is one
short text, of which the bare engine's forward pass is measured too.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from bench.infinity import Unavailable, ensure_environment, serving
from bench.machine import Meter, pinned, split_cores
from bench.report import Line, Size, run_line
from bench.rounds import Figures, Peer
from bench.stacks import MODEL, running_stack, stop_in_order, version_folder
from ondol.client.sync_client import Ondol
from ondol.demo.stack import Stack

CONCURRENCIES = (64, 1)
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
WARM_UP_CALLS = 64


@dataclass(frozen=True, slots=True)
class Server:
    """Who is asked: a name for the figures, the root of its processes, and its port."""

    name: str
    pid: int
    port: int


@dataclass(slots=True)
class Rounds:
    """Figures of each round by (server, concurrency)."""

    found: dict[tuple[str, int], list[Figures]] = field(default_factory=dict)

    def of(self, server: str, concurrency: int, figure: str) -> list[float]:
        """One figure of all rounds."""
        return [one[figure] for one in self.found[server, concurrency]]


def measure(parsed: argparse.Namespace, size: Size) -> Line:
    """All of it."""
    on, apart = split_cores()
    num = {64: parsed.num_calls or size.pick(500, 1_000), 1: (parsed.num_calls or size.pick(100, 300))}
    line = Line(
        "calls",
        "single-text embedding calls over HTTP",
        {"num_calls": num, "rounds": size.rounds, "model": MODEL, "server_cores": on, "client_cores": apart},
    )
    line.settings["infinity"] = "0.0.78, torch engine, batch size 32, no bettertransformer"
    has_infinity = _can_have_infinity(line)
    for dtype, short in DTYPES.items():
        _one_precision(line, dtype, short, size.rounds, num, has_infinity=has_infinity)
    return line


def _can_have_infinity(line: Line) -> bool:
    try:
        ensure_environment()
    except Unavailable as exc:
        line.leave_out(str(exc))
        return False
    return True


def _one_precision(line: Line, dtype: str, short: str, rounds: int, num: dict[int, int], *, has_infinity: bool) -> None:
    on, apart = split_cores()
    with contextlib.ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="ondol-bench-")))
        stack = held.enter_context(running_stack({"ONDOL_DTYPE": dtype, "ONDOL_ENGINE": "torch"}, on=on))
        servers = [Server(f"ours {short}", stack.pid, urlsplit(stack.url).port or 80)]
        _warm(stack)
        if has_infinity:
            try:
                pid, port = held.enter_context(serving(dtype, on, folder / "infinity.log"))
                servers.append(Server(f"infinity {short}", pid, port))
            except Unavailable as exc:
                line.leave_out(f"{short}: {exc}")
        client = held.enter_context(Peer(["bench.call_client"], on=apart))
        with pinned(on):
            bare = held.enter_context(_bare(stack, dtype, on))
        taken, forward_ms = _take_turns(servers, client, bare, rounds, num)
    _figures(line, short, [server.name for server in servers], taken, forward_ms)


def _bare(stack: Stack, dtype: str, on: tuple[int, ...]) -> Peer:
    where = ["--folder", str(version_folder(stack)), "--cores", ",".join(map(str, on)), "--dtype", dtype]
    return Peer(["bench.bare_loop", *where, "--serve", "--num-texts", "64", "--num-calls", "100"], on=on)


def _warm(stack: Stack) -> None:
    with Ondol(stack.url) as client:
        client.embed("warm", model=MODEL)


def _take_turns(
    servers: list[Server], client: Peer, bare: Peer, rounds: int, num: dict[int, int]
) -> tuple[Rounds, list[float]]:
    taken, forward_ms = Rounds(), []
    for server in servers:
        _ask(server, client, 64, WARM_UP_CALLS)
    for _ in range(rounds):
        for concurrency in CONCURRENCIES:
            for server in servers:
                taken.found.setdefault((server.name, concurrency), []).append(
                    _ask(server, client, concurrency, num[concurrency])
                )
        forward_ms.append(bare.run()["call_ms"])
    return taken, forward_ms


def _ask(server: Server, client: Peer, concurrency: int, num: int) -> Figures:
    meter = Meter((server.pid,), counts_self=False)
    found = client.run(
        host="127.0.0.1",
        port=server.port,
        path="/v1/embeddings",
        model=MODEL,
        concurrency=concurrency,
        num=num,
        texts="mixed" if concurrency > 1 else "one",
    )
    found["server_cpu_ms"] = meter.stop().cpu_s / num * 1e3
    found["per_s"] = num / found["wall_s"]
    return found


def _figures(line: Line, short: str, names: list[str], taken: Rounds, forward_ms: list[float]) -> None:
    for concurrency in CONCURRENCIES:
        for name in names:
            what = f"{name}, concurrency {concurrency}"
            line.add(f"{what}: requests a second", "/s", taken.of(name, concurrency, "per_s"))
            line.add(f"{what}: p50", "ms", taken.of(name, concurrency, "p50_ms"))
            line.add(f"{what}: p99", "ms", taken.of(name, concurrency, "p99_ms"))
            line.add(f"{what}: server CPU a request", "ms", taken.of(name, concurrency, "server_cpu_ms"))
    line.add(f"bare forward {short}, one short text: p50", "ms", forward_ms)
    ours = f"ours {short}"
    above = [a - b for a, b in zip(taken.of(ours, 1, "p50_ms"), forward_ms, strict=True)]
    line.add(f"{ours}, concurrency 1: p50 above the bare forward", "ms", above)
    for theirs in names[1:]:
        pair = (taken.of(ours, 64, "per_s"), taken.of(theirs, 64, "per_s"))
        line.add_ratio(f"requests a second at 64, ours ÷ infinity, {short}", *pair)
        for figure, text in (("p50_ms", "p50 at 1"), ("p99_ms", "p99 at 1"), ("server_cpu_ms", "server CPU at 1")):
            line.add_ratio(f"{text}, infinity ÷ ours, {short}", taken.of(theirs, 1, figure), taken.of(ours, 1, figure))
        pair = (taken.of(theirs, 64, "server_cpu_ms"), taken.of(ours, 64, "server_cpu_ms"))
        line.add_ratio(f"server CPU at 64, infinity ÷ ours, {short}", *pair)


if __name__ == "__main__":
    stop_in_order()
    sys.exit(
        run_line(
            measure,
            name="calls",
            about=__doc__,
            options={"--num-calls": {"type": int, "help": "calls a round, at each concurrency"}},
        )
    )
