"""Runs of `load`, kept: JSON and the HdrHistogram log format; read again, and merged.

A file is never trusted: what does not fit is a `ConfigError` of one sentence. Of a saved run only
what was measured is read; every figure that follows from it is computed again.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, NamedTuple, TextIO

from hdrh.histogram import HdrHistogram

from . import __version__, dial, machine
from . import backend as backends
from .errors import ConfigError, FastechoError
from .load import DATAGRAMS, LONGEST, Plan, Result, histogram

#: Of the JSON; one more when what it says is read differently.
SCHEMA = 1
#: What is told of a latency, besides its maximum and mean.
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)
#: Bytes of the largest file that is read: a run of a week has an interval of 2 KB a second.
LARGEST = 2**31
#: HdrHistogram's V2 encoding: two cookies, then what a histogram was made with.
COMPRESSED, ENCODED = 0x1C849314, 0x1C849313
HEADER = struct.Struct(">IIIIQQd")
#: Options that must be the same in runs that are merged.
SAME = (
    "udp",
    "framing",
    "prefix",
    "pipeline",
    "size",
    "arrivals",
    "connect_per_message",
    "close",
    "gso",
)


class Machine(NamedTuple):
    """The machine that a run was measured from, as `machine.describe` has it."""

    fastecho: str
    python: str
    system: str
    kernel: str
    architecture: str
    cpu: str
    cores: int | None
    host: str


class Part(NamedTuple):
    """About a second of a run.

    Attributes:
        start: since the beginning of the measurement, in seconds.
        seconds: how long it was.
        received: right replies.
        latency: of these, as HdrHistogram writes it: decoded, a histogram has a quarter megabyte.
        p50, p99, longest: of these, in nanoseconds; 0 where there are none.
    """

    start: float
    seconds: float
    received: int
    latency: str
    p50: int
    p99: int
    longest: int

    @classmethod
    def of(cls, start: float, seconds: float, received: int, latency: HdrHistogram) -> Part:
        p50, p99 = percentiles(latency, (50, 99))
        encoded = latency.encode().decode()
        return cls(start, seconds, received, encoded, p50, p99, longest(latency))


@dataclass
class Run:
    """A run of `load` as it is kept.

    Attributes:
        result: what came of it; the intervals are in `parts`.
        backend: of the engine.
        machine: that it was measured from.
        parts: what happened in each second.
        name: for people: its file.
        merged: how it came of several runs; empty: it is one.
        bound: why its figures are the generator's; empty: they are not.
    """

    result: Result
    backend: str
    machine: Machine
    parts: list[Part] = field(default_factory=list)
    name: str = ""
    merged: str = ""
    bound: str = ""

    @classmethod
    def of(cls, result: Result) -> Run:
        """What is kept of a run that has just been done here."""
        parts = [
            Part.of(each.start, each.seconds, each.received, each.latency)
            for each in result.intervals
        ]
        backend = backends.load(result.plan.backend).name
        here = Machine(**machine.describe(__version__))
        return cls(result, backend, here, parts=parts, bound=result.bound)

    @property
    def version(self) -> str:
        """Of fastecho."""
        return self.machine.fastecho

    @property
    def target(self) -> str:
        """Whom it was done to."""
        plan = self.result.plan
        return shown(dial.parse(plan.address, plan.udp).name)

    @property
    def is_stream(self) -> bool:
        plan = self.result.plan
        return dial.parse(plan.address, plan.udp).is_stream

    @property
    def loop(self) -> str:
        """How it was driven, in words."""
        plan = self.result.plan
        if plan.rate is None:
            return "closed loop"
        return f"open loop at {per_second(plan.rate)}, {plan.arrivals}"

    @property
    def work(self) -> str:
        """What was sent, in words."""
        plan = self.result.plan
        connections = f"{plan.connections:,} connection{'s' * (plan.connections > 1)}"
        framing = f"{plan.framing}, " if self.is_stream else ""
        if plan.connect_per_message:
            ended = ", reset" if plan.close == "rst" else ""
            return (
                f"{framing}{plan.connections:,} at once, a connection a message{ended},"
                f" {plan.size} bytes"
            )
        return f"{framing}{connections}, {plan.pipeline:,} in flight, {shown(plan.size)} bytes"

    @property
    def rate(self) -> float:
        """Right replies in a second."""
        return self.result.received / self.result.seconds if self.result.seconds else 0.0

    @property
    def cost(self) -> float | None:
        """Nanoseconds of processor time that a message cost the generator."""
        return self._each(self.result.cpu)

    @property
    def server_cost(self) -> float | None:
        """Nanoseconds of processor time that a message cost the server, if that was measured."""
        return None if self.result.server_cpu is None else self._each(self.result.server_cpu)

    def _each(self, seconds: float) -> float | None:
        return seconds * 1e9 / self.result.received if self.result.received else None


def shown(text: str) -> str:
    """A text of somebody else's, with everything that a terminal could obey escaped."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def duration(nanoseconds: float) -> str:
    """A duration in the unit that suits it, with three digits."""
    for unit, size in (("ns", 1), ("us", 1e3), ("ms", 1e6)):
        if nanoseconds < 999.5 * size:
            return f"{_digits(nanoseconds / size)} {unit}"
    return f"{_digits(nanoseconds / 1e9)} s"


def _digits(value: float) -> str:
    """Three of them, or all before the point."""
    if value == round(value) and value < 10:
        return f"{value:.0f}"
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def per_second(rate: float) -> str:
    """A rate as it is shown."""
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s"


# -- histograms


def percentiles(latency: HdrHistogram, wanted: Sequence[float]) -> list[int]:
    """The durations that so many percent do not exceed; 0 where there are none.

    As `HdrHistogram.get_value_at_percentile` has it, in a tenth of its time: the generator waits.
    """
    if not latency.total_count:
        return [0] * len(wanted)
    first = latency.get_counts_array_index(latency.min_value)
    last = latency.get_counts_array_index(latency.max_value)
    sums = list(accumulate(latency.counts[first : last + 1]))
    places = [bisect_left(sums, latency.get_target_count_at_percentile(each)) for each in wanted]
    return [
        latency.get_highest_equivalent_value(latency.get_value_from_index(first + place))
        for place in places
    ]


def longest(latency: HdrHistogram) -> int:
    """The longest duration, as exactly as it is known; 0 where there is none."""
    return latency.get_highest_equivalent_value(latency.max_value) if latency.total_count else 0


def figures(latency: HdrHistogram) -> dict[str, int]:
    """Percentiles, maximum and mean, in nanoseconds; empty where there was nothing."""
    if not latency.total_count:
        return {}
    found = {
        f"p{each:g}": value
        for each, value in zip(PERCENTILES, percentiles(latency, PERCENTILES), strict=True)
    }
    return {**found, "max": longest(latency), "mean": round(latency.get_mean_value())}


def decode(text: str) -> HdrHistogram:
    """A histogram of ours, from HdrHistogram's base64.

    Raises:
        ConfigError: it is none.
    """
    empty = histogram()
    most = HEADER.size + 9 * empty.counts_len  # no count takes more bytes
    try:
        packed = base64.b64decode(text, validate=True)
        unpack = zlib.decompressobj()
        data = unpack.decompress(packed[8:], most)
        cookie, size, offset, digits, low, high, _ = HEADER.unpack_from(data)
        if unpack.unconsumed_tail or (digits, low, high, offset) != (3, 1, LONGEST, 0):
            raise ConfigError("a histogram is not of the kind that load makes")
        if cookie != ENCODED or size != len(data) - HEADER.size:
            raise ConfigError("a histogram is damaged")
        found = HdrHistogram.decode(text)
    except ConfigError:
        raise
    except (binascii.Error, zlib.error, struct.error, ValueError) as error:
        raise ConfigError("a histogram is damaged") from error
    except Exception as error:  # hdrh has errors of its own, without a common ancestor
        raise ConfigError("a histogram is damaged") from error
    if not 0 <= found.total_count < 2**62:
        raise ConfigError("a histogram is damaged")
    return found


# -- JSON


def to_json(run: Run) -> dict[str, Any]:
    """Everything that is known of a run; docs/load.md says what each key means."""
    result = run.result
    return {
        "schema": SCHEMA,
        "backend": run.backend,
        "machine": run.machine._asdict(),
        "began": result.began,
        "options": {each.name: getattr(result.plan, each.name) for each in fields(Plan)},
        "loop": "closed" if result.plan.rate is None else "open",
        "generator_bound": bool(run.bound),
        "generator_bound_reason": run.bound or None,
        "right": result.right,
        "stopped": result.stopped,
        "seconds": result.seconds,
        "counts": _counts(result),
        "closed": dict(result.closed),
        "first_wrong": None
        if result.first_wrong is None
        else {"sentence": result.first_wrong[0], "hex": result.first_wrong[1].hex()},
        "per_second": _per_second(result),
        "cpu": {
            "generator_seconds": result.cpu,
            "generator_busy": result.busy,
            "generator_ns_per_message": run.cost,
            "server_seconds": result.server_cpu,
            "server_busy": result.server_busy,
            "server_ns_per_message": run.server_cost,
        },
        "latency": figures(result.latency),
        "lateness": figures(result.lateness),
        "histograms": {
            "latency": result.latency.encode().decode(),
            "lateness": result.lateness.encode().decode(),
        },
        "intervals": [_interval(part) for part in run.parts],
    }


def _counts(result: Result) -> dict[str, int]:
    return {
        **{name: getattr(result, name) for name in TOTALS},
        **{name: result.datagrams[name] for name in DATAGRAMS},
    }


TOTALS = ("sent", "received", "bytes_out", "bytes_in", "missing", "wrong")


def _per_second(result: Result) -> dict[str, float]:
    return {
        name: getattr(result, name) / result.seconds if result.seconds else 0.0
        for name in ("received", "bytes_out", "bytes_in")
    }


def _interval(part: Part) -> dict[str, Any]:
    return {
        "start": part.start,
        "seconds": part.seconds,
        "received": part.received,
        "p50": part.p50,
        "p99": part.p99,
        "max": part.longest,
        "histogram": part.latency,
    }


class _Reader:
    """A dictionary from a file, each value of which is looked at before it is used."""

    def __init__(self, data: object, name: str) -> None:
        if not isinstance(data, dict):
            raise ConfigError(f"{name} is missing, or no object")
        self._data: dict[str, Any] = data

    def inner(self, key: str) -> _Reader:
        return _Reader(self._data.get(key), repr(key))

    def inners(self, key: str) -> list[_Reader]:
        found = self._data.get(key)
        if not isinstance(found, list):
            raise ConfigError(f"{key!r} is missing, or no list")
        return [_Reader(each, f"what is in {key!r}") for each in found]

    def words(self, key: str) -> str:
        found = self._data.get(key)
        if isinstance(found, str):
            return found
        raise ConfigError(f"{key!r} is missing, or no text")

    def text(self, key: str) -> str:
        found = self.words(key)
        if found.isprintable():
            return found
        raise ConfigError(f"{key!r} is no text that can be shown")

    def number(self, key: str) -> float:
        found = self._data.get(key)
        if isinstance(found, (int, float)) and not isinstance(found, bool) and 0 <= found < 1e15:
            return float(found)
        raise ConfigError(f"{key!r} is missing, or no number")

    def count(self, key: str) -> int:
        found = self._data.get(key)
        if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 2**62:
            return found
        raise ConfigError(f"{key!r} is missing, or no whole number")

    def flag(self, key: str) -> bool:
        found = self._data.get(key)
        if isinstance(found, bool):
            return found
        raise ConfigError(f"{key!r} is missing, or neither true nor false")

    def has(self, key: str) -> bool:
        return self._data.get(key) is not None

    def names(self) -> list[str]:
        return list(self._data)


def from_json(data: object, name: str = "") -> Run:
    """A run as `to_json` made it.

    Raises:
        ConfigError: it is none.
    """
    saved = _Reader(data, "it")
    schema = saved.count("schema")
    if schema != SCHEMA:
        raise ConfigError(f"it is of schema {schema}, and this fastecho reads {SCHEMA}")
    counts, closed, cpu = saved.inner("counts"), saved.inner("closed"), saved.inner("cpu")
    histograms = saved.inner("histograms")
    totals: dict[str, Any] = {each: counts.count(each) for each in TOTALS}
    result = Result(
        _plan(saved.inner("options")),
        seconds=saved.number("seconds"),
        datagrams=Counter({each: counts.count(each) for each in DATAGRAMS}),
        closed=Counter({each: closed.count(each) for each in closed.names()}),
        first_wrong=_first_wrong(saved.inner("first_wrong")) if saved.has("first_wrong") else None,
        latency=decode(histograms.text("latency")),
        lateness=decode(histograms.text("lateness")),
        cpu=cpu.number("generator_seconds"),
        server_cpu=cpu.number("server_seconds") if cpu.has("server_seconds") else None,
        began=saved.number("began"),
        stopped=saved.flag("stopped"),
        **totals,
    )
    return Run(
        result,
        saved.text("backend"),
        _machine(saved.inner("machine")),
        [_part(each) for each in saved.inners("intervals")],
        name,
        bound=result.bound,
    )


def _machine(saved: _Reader) -> Machine:
    texts = {name: saved.text(name) for name in Machine._fields if name != "cores"}
    return Machine(cores=saved.count("cores") if saved.has("cores") else None, **texts)


def _plan(options: _Reader) -> Plan:
    known = {each.name: str(each.type) for each in fields(Plan)}
    unknown = sorted(set(options.names()) - set(known))
    if unknown:
        raise ConfigError(f"there is no option {unknown[0]!r}")
    plan = Plan(
        **{
            each: _READ[kind.partition(" ")[0]](options, each)
            for each, kind in known.items()
            if options.has(each) or "None" not in kind
        }
        | {each: None for each, kind in known.items() if "None" in kind and not options.has(each)}
    )
    dial.parse(plan.address, plan.udp)
    return plan


_READ: dict[str, Callable[[_Reader, str], Any]] = {
    "str": _Reader.words,
    "bool": _Reader.flag,
    "int": _Reader.count,
    "float": _Reader.number,
}


def _first_wrong(saved: _Reader) -> tuple[str, bytes]:
    try:
        return saved.text("sentence"), bytes.fromhex(saved.text("hex"))
    except ValueError as error:
        raise ConfigError("'first_wrong' is not hexadecimal") from error


def _part(saved: _Reader) -> Part:
    return Part(
        saved.number("start"),
        saved.number("seconds"),
        saved.count("received"),
        saved.text("histogram"),
        saved.count("p50"),
        saved.count("p99"),
        saved.count("max"),
    )


def save(run: Run, out: TextIO) -> None:
    """As JSON, with an interval a line."""
    data = to_json(run)
    intervals = data.pop("intervals")
    head = json.dumps(data, indent=2, ensure_ascii=True, allow_nan=False).removesuffix("\n}")
    lines = ",\n".join("    " + json.dumps(each, allow_nan=False) for each in intervals)
    out.write(f'{head},\n  "intervals": [\n{lines}\n  ]\n}}\n')


def read(path: str) -> Run:
    """A run as `save` wrote it.

    Raises:
        ConfigError: it is none.
        FastechoError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise FastechoError(f"cannot read {path}: {dial.explain(error)}") from error
    try:
        if len(data) > LARGEST:
            raise ConfigError(f"it has more than {LARGEST:,} bytes")
        return from_json(json.loads(data), path)
    except ConfigError as error:
        raise ConfigError(f"{path} is no result of fastecho load: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no result of fastecho load: it is no JSON") from error


# -- HdrHistogram's log


def save_log(run: Run, out: TextIO) -> None:
    """In the HdrHistogram log format, version 1.2: values are nanoseconds, all else seconds."""
    began = run.result.began
    when = datetime.fromtimestamp(began, UTC).strftime("%a %b %d %H:%M:%S UTC %Y")
    out.write(f"#[Logged by fastecho {run.version}: {run.target}, {run.loop}, nanoseconds]\n")
    out.write("#[Histogram log format version 1.2]\n")
    out.write(f"#[StartTime: {began:.3f} (seconds since epoch), {when}]\n")
    out.write(f"#[BaseTime: {began:.3f} (seconds since epoch)]\n")
    out.write('"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n')
    for part in run.parts:  # its maximum in milliseconds, as Java's own writer has it
        milliseconds = part.longest / 1e6
        out.write(f"{part.start:.3f},{part.seconds:.3f},{milliseconds:.3f},{part.latency}\n")


# -- merged


def merge(runs: Sequence[Run]) -> Run:
    """Several runs as if they were one.

    Histograms are added, counts summed. Seconds are those in which any of them was measuring, so
    that rates of runs at the same time add up, and those of runs one after the other do not. The
    processor time of a server that several runs measured at the same time is counted once.

    Raises:
        ConfigError: they did not do the same.
    """
    seen: dict[tuple[str, float], str] = {}
    for run in runs:
        _compare(runs[0], run)
        key = (run.machine.host, run.result.began)
        if key in seen:
            raise ConfigError(f"{seen[key]} and {run.name} are the same run")
        seen[key] = run.name
    spans = [(run.result.began, run.result.began + run.result.seconds) for run in runs]
    union = _union(spans)
    seconds = sum(end - start for start, end in union)
    together = seconds < 0.99 * sum(run.result.seconds for run in runs)
    results = [run.result for run in runs]
    total = Result(
        _joint_plan(runs, together),
        seconds=seconds,
        datagrams=sum((each.datagrams for each in results), Counter()),
        closed=sum((each.closed for each in results), Counter()),
        first_wrong=next((each.first_wrong for each in results if each.first_wrong), None),
        latency=_sum(each.latency for each in results),
        lateness=_sum(each.lateness for each in results),
        cpu=sum(each.cpu for each in results),
        server_cpu=_server_cpu([each.server_cpu for each in results], together),
        began=min(each.began for each in results),
        stopped=any(each.stopped for each in results),
        **{name: sum(getattr(each, name) for each in results) for name in TOTALS},
    )
    how = "at the same time" if together else "one after the other"
    return Run(
        total,
        _common(run.backend for run in runs),
        _joint_machine([run.machine for run in runs]),
        _merge_parts(runs, union),
        f"{len(runs)} runs merged",
        f"{len(runs)} runs {how}",
        next((f"{run.name}: {run.bound}" for run in runs if run.bound), ""),
    )


def _compare(first: Run, other: Run) -> None:
    one, two = first.result.plan, other.result.plan
    for name in SAME:
        if getattr(one, name) != getattr(two, name):
            raise ConfigError(
                f"cannot merge {first.name} and {other.name}: their {name} is"
                f" {getattr(one, name)!r} and {getattr(two, name)!r}"
            )
    if (one.rate is None) != (two.rate is None):
        raise ConfigError(
            f"cannot merge {first.name} and {other.name}: one is a closed loop, one is open"
        )


def _joint_plan(runs: Sequence[Run], together: bool) -> Plan:
    """What they did together; one after the other, what each did."""
    plans = [run.result.plan for run in runs]
    if not together:
        if len({(plan.connections, plan.rate) for plan in plans}) > 1:
            raise ConfigError(
                "cannot merge runs one after the other with different connections or rates"
            )
        return plans[0]
    rate = None if plans[0].rate is None else sum(plan.rate or 0 for plan in plans)
    return replace(plans[0], connections=sum(plan.connections for plan in plans), rate=rate)


def _joint_machine(machines: Sequence[Machine]) -> Machine:
    """All of them."""
    texts = {
        name: _common(getattr(each, name) for each in machines)
        for name in Machine._fields
        if name != "cores"
    }
    cores = {each.host: each.cores for each in machines}.values()
    return Machine(cores=None if None in cores else sum(each or 0 for each in cores), **texts)


def _server_cpu(costs: list[float | None], together: bool) -> float | None:
    known = [cost for cost in costs if cost is not None]
    if together:
        return max(known, default=None)
    return sum(known) if len(known) == len(costs) else None


def _common(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _sum(histograms: Iterable[HdrHistogram]) -> HdrHistogram:
    total = histogram()
    for each in histograms:
        if each.total_count:
            total.add(each)
    return total


def _union(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The time that any of them covers, in spans that do not meet."""
    found: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _merge_parts(runs: Sequence[Run], union: list[tuple[float, float]]) -> list[Part]:
    """Second by second of the time that any of them covers."""
    seconds: dict[int, list[tuple[float, Part]]] = {}
    for run in runs:
        for part in run.parts:
            at = run.result.began + part.start
            gone = sum(min(max(at - start, 0), end - start) for start, end in union)
            seconds.setdefault(math.floor(gone + 0.5), []).append((gone, part))
    return [
        Part.of(
            min(gone for gone, _ in seconds[second]),
            max(part.seconds for _, part in seconds[second]),
            sum(part.received for _, part in seconds[second]),
            _sum(decode(part.latency) for _, part in seconds[second]),
        )
        for second in sorted(seconds)
    ]
