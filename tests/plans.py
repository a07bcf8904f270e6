"""Fault plans for tests: any, as texts."""

from __future__ import annotations

from hypothesis import strategies as st

from fastecho.faults.plan import FAULTS, SHARED, Fault

TIMES = st.sampled_from(["0", "2us", "0.5ms", "100ms", "1.5s", "3600", ".25"])
SIZES = st.sampled_from(["1", "5", "1-5", "7-7", "1073741824"])
#: Right values by the key's name.
VALUES = {
    "p": st.sampled_from(["0", "1", "1%", "0.7%", "0.5", "99.9%", "1e-3"]),
    "from": st.sampled_from(["1", "2", "40", "9223372036854775807"]),
    "bits": st.sampled_from(["1", "2", "65536"]),
    "wait": TIMES,
    "at": SIZES,
    "after": SIZES,
    "rate": st.sampled_from(["1", "1500", "10k", "2M", "1e3"]),
    "count": st.sampled_from(["2", "256"]),
    "size": SIZES,
    "pause": TIMES,
    "window": st.sampled_from(["1", "4096"]),
}
FIXED = {("slow-read", "size"): st.sampled_from(["1", "512", "262144"])}
RANGED = TIMES | st.sampled_from(["50-100ms", "1us-2s"])


def values(fault: Fault, key: str) -> st.SearchStrategy[str]:
    if key == "time":
        return TIMES if fault.name == "jitter" else RANGED
    return FIXED.get((fault.name, key), VALUES[key])


def told(fault: Fault) -> st.SearchStrategy[dict[str, str]]:
    """Any of its keys with a value each."""
    names = [key.name for key in (*fault.keys, *SHARED)]
    return st.fixed_dictionaries({}, optional={name: values(fault, name) for name in names})


def tables() -> st.SearchStrategy[dict[str, dict[str, str]]]:
    """Any plans, as a file has them; in any order."""
    one = st.sampled_from(list(FAULTS.values())).flatmap(
        lambda fault: st.tuples(st.just(fault.name), told(fault))
    )
    return st.lists(one, max_size=6, unique_by=lambda pair: pair[0]).map(dict)


def text(table: dict[str, dict[str, str]], space: str = "") -> str:
    """The table as a plan is written, with this around each separator."""
    return f"{space};{space}".join(
        name
        + (f"{space}:{space}" if keys else "")
        + f"{space},{space}".join(f"{key}{space}={space}{value}" for key, value in keys.items())
        for name, keys in table.items()
    )
