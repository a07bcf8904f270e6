"""Whole pure servers under a simulated clock and network: timeouts, limits, failures.

To replay a seed that failed: `pytest tests/test_simulation.py --simulate SEED`; to look for one:
`--simulations N`.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from reference import Framing, judge
from simulation import Connection, Listening, Selector, World

import fastecho
from fastecho import backend, sockets

LINES = Framing("delimiter", max_frame=40, delimiter=b"\n")
IDLE, FRAME, LINGER, DRAIN = 30.0, 10.0, 2.0, 5.0
#: One sweep, and what its waits take longer than asked for.
LATE = 1.1


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        one = metafunc.config.getoption("--simulate")
        seeds = [one] if one is not None else range(metafunc.config.getoption("--simulations"))
        metafunc.parametrize("seed", seeds)


class Client:
    """Does one kind of thing, and knows what must come of it."""

    def __init__(self, world: World, listening: Listening, number: int) -> None:
        random = world.random
        self.world = world
        self.kind = random.choice(["honest", "slow", "stuck", "deaf", "resets", "long", "silent"])
        self.line = Connection(world, number, window=random.choice([7, 300, 5_000]))
        self.sent = b""
        self.done = False
        messages = [b"m" * random.randint(0, 40) + b"\n" for _ in range(random.randint(1, 60))]
        if self.kind == "deaf":
            messages += [b"\n"] * 5_000
        self.stream = b"".join(messages)
        if self.kind == "long":
            self.stream += b"x" * 41 + b"\n" * random.randint(0, 50)
        if self.kind == "stuck":
            self.stream += b"unfinished"
        if random.random() < 0.3 and self.kind in ("honest", "slow"):
            self.stream += b"tail"
        world.after(random.uniform(0, 40), lambda: self.connect(listening))

    def connect(self, listening: Listening) -> None:
        if listening.fileno() < 0:
            self.line.refused = True
            return
        listening.backlog.append(self.line)
        self.world.note(self.line.number, "connects", self.kind)
        self.go_on()
        if self.kind != "deaf":
            self.world.after(12.0 if self.kind == "slow" else 0.01, self.read)

    def go_on(self) -> None:
        """Send a little, then the rest later; then whatever this kind does at the end."""
        random = self.world.random
        if self.kind == "silent":
            return
        if self.sent != self.stream and not self.line.closed:
            size = random.choice([1, 3, 50, 3_000])
            chunk = self.stream[len(self.sent) : len(self.sent) + size]
            self.line.write(chunk)
            self.sent += chunk
            self.world.after(random.choice([0, 0.001, 0.05]), self.go_on)
        elif self.kind == "resets":
            self.line.was_reset = True
        elif self.kind in ("honest", "slow"):
            self.line.half_closed = True
        self.done = self.sent == self.stream

    def read(self) -> None:
        self.line.take(self.world.random.choice([1, 100, 10_000]))
        if not self.line.closed or self.line.arrived:
            self.world.after(self.world.random.choice([0.001, 0.01]), self.read)

    # -- what must have come of it

    def expected(self) -> bytes:
        ended = self.line.half_closed
        verdict = judge(LINES, self.sent, ended)
        return b"".join(
            b"%d:" % number + frame.wire for number, frame in enumerate(verdict.frames, 1)
        )

    def check(self, stopped_at: float) -> None:
        line, got = self.line, bytes(self.line.read + self.line.arrived)
        whole = self.expected()
        assert whole.startswith(got), (line.number, self.kind)
        if line.fd < 0:
            assert got == b""
            return
        assert line.closed
        moved = max(line.received[-1][1], line.last_sent)
        if self.kind == "stuck":
            # The clock stands still while replies are unsent.
            due = max(self.held_since(), line.last_sent) + FRAME
        else:
            due = moved + IDLE
        if line.closed_at >= stopped_at:
            assert stopped_at <= due + LATE, "a timeout did not come"
            assert line.closed_at <= stopped_at + DRAIN + LATE
            return
        assert line.closed_at <= due + LATE
        if self.kind == "stuck":
            assert got == whole
            assert line.closed_at >= self.held_since() + FRAME
        elif self.kind in ("deaf", "silent"):
            assert line.closed_at >= moved + IDLE
        elif self.kind != "resets":
            assert got == whole
        if self.kind == "long":
            assert line.shut

    def held_since(self) -> float:
        """When the server received the first byte of what is never finished."""
        first = len(self.stream) - len(b"unfinished") + 1
        moments = (moment for total, moment in self.line.received if total >= first)
        return next(moments, float("inf"))


def simulate(seed: int, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """One server's life; all that can be said of it afterwards."""
    world = World(seed, descriptors=0, trouble=0.0)
    connections = world.random.choice([3, 12, 100])
    world.descriptors = world.random.choice([5, 200])
    world._trouble = world.random.choice([0.0, 0.05, 0.4])
    listening = Listening(world)
    twin = backend.load("pure")._replace(Selector=lambda: Selector(world))  # type: ignore[arg-type]
    for module in ("_pure.stream", "loop", "server", "tcp"):
        monkeypatch.setattr(f"fastecho.{module}.time", world)
    monkeypatch.setattr("fastecho.server.SEND_BUFFER", world.random.choice([1, 500, 262_144]))
    monkeypatch.setattr("fastecho.backend.load", lambda _=None: twin)
    monkeypatch.setattr(
        "fastecho.sockets.bind",
        lambda *_: [sockets.Bound("tcp", listening)],  # type: ignore[arg-type]
    )
    server = fastecho.Server(
        prefix="{seq}:",
        max_frame=40,
        max_connections=connections,
        idle_timeout=IDLE,
        frame_timeout=FRAME,
        linger_timeout=LINGER,
        drain_timeout=DRAIN,
    )
    clients = [Client(world, listening, number) for number in range(1, 25)]
    stopped_at = world.now + world.random.uniform(1, 120)
    world.after(stopped_at - world.now, server.stop)
    server.run()
    return SimpleNamespace(
        world=world, server=server, clients=clients, stopped_at=stopped_at, limit=connections
    )


def test_every_client_gets_what_it_is_due(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    life = simulate(seed, monkeypatch)
    for client in life.clients:
        client.check(life.stopped_at)
    assert life.world.open == {}
    assert life.world.most_open <= min(life.world.descriptors, life.limit + 1)
    counters = life.server.counters
    ended = sum(count for name, count in counters.items() if name.startswith("closed."))
    accepted = [client for client in life.clients if client.line.fd >= 0]
    assert counters["connections"] == ended == len(accepted)
    sent = sum(len(client.line.read) + len(client.line.arrived) for client in accepted)
    assert counters["bytes_out"] >= sent


def test_a_seed_is_the_same_life_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    first = simulate(7, monkeypatch)
    monkeypatch.undo()
    again = simulate(7, monkeypatch)
    assert first.world.trace == again.world.trace
    assert first.server.counters == again.server.counters
