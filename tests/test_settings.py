"""Settings: each is checked before anything is opened, and can be printed as it is in force."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import re
import resource
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click.testing
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from processes import run

import fastecho
from fastecho import ConfigError, FastechoError, Server, cli, limits
from fastecho import settings as settings_module
from fastecho.faults.plan import parse
from fastecho.settings import DEFAULT_LISTEN, SETTINGS, Settings, load, misspelt

TIMEOUTS = ["idle_timeout", "frame_timeout", "linger_timeout", "drain_timeout"]
WHOLE = {"send_buffer": 2**30, "backlog": 2**31 - 1, "max_connections": 2**31 - 1}
DEFAULTS = {
    "listen": ("127.0.0.1:12345",),
    "framing": "line",
    "prefix": "[{ctime}]",
    "max_frame": None,
    "backend": None,
    "max_connections": None,
    "idle_timeout": 0.0,
    "frame_timeout": 60.0,
    "send_buffer": 262_144,
    "linger_timeout": 2.0,
    "drain_timeout": 5.0,
    "backlog": 4096,
    "verbose": False,
    "show_cuts": False,
    "log_format": "text",
    "faults": "",
    "fault_seed": "random",
    "fault_log": "",
    "slice": "",
    "delay": "",
    "drop": "",
}
SHORTCUTS = ["slice", "delay", "drop"]


def refusal(**settings: Any) -> str:
    """The sentence that refuses these."""
    with pytest.raises(ConfigError) as caught:
        Settings.of(**settings)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert isinstance(caught.value, ValueError)
    return sentence


def printed(*arguments: str, **variables: str) -> str:
    """What `--print-config` prints, with these variables of fastecho's and no others."""
    others = {name: None for name in os.environ if name.startswith("FASTECHO_")}
    outcome = click.testing.CliRunner().invoke(
        cli.commands,
        [*arguments, "--print-config"],
        env={**others, **variables},
        standalone_mode=False,
    )
    if outcome.exception:
        raise outcome.exception
    assert outcome.return_value == 0
    assert outcome.stderr == ""
    return outcome.stdout


# -- what is right


def test_the_defaults() -> None:
    assert dataclasses.asdict(Settings()) == DEFAULTS
    assert Settings.of() == Settings()


@pytest.mark.parametrize("name", TIMEOUTS)
@pytest.mark.parametrize("value", [0, 0.0, 1e-9, 1, 2.5, 1e9])
def test_a_timeout_is_seconds(name: str, value: float) -> None:
    assert getattr(Settings.of(**{name: value}), name) == value


@pytest.mark.parametrize("name", WHOLE)
def test_a_size_goes_from_one_to_its_ceiling(name: str) -> None:
    for value in (1, WHOLE[name]):
        assert getattr(Settings.of(**{name: value}), name) == value


@pytest.mark.parametrize(
    "listen", ["tcp://:1 udp://:2", " tcp://:1\tudp://:2\n", ["tcp://:1", "udp://:2"]]
)
def test_listen_is_words_or_a_text_of_words(listen: Any) -> None:
    assert Settings.of(listen).listen == ("tcp://:1", "udp://:2")


def test_a_path_with_a_space_can_be_listened_on() -> None:
    assert Settings.of(["unix:/a b"]).listen == ("unix:/a b",)


# -- what is wrong


@pytest.mark.parametrize("name", TIMEOUTS)
@pytest.mark.parametrize("value", [-1, -1e-9, math.nan, math.inf, 1e10, "1", None, True, b"1"])
def test_anything_else_is_no_timeout(name: str, value: Any) -> None:
    sentence = refusal(**{name: value})
    assert sentence.startswith(f"{name} must be seconds, ")
    assert sentence.endswith(f", not {value!r}")


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [0, -1, 2**31, 1.0, "1", True, b"1"])
def test_anything_else_is_no_size(name: str, value: Any) -> None:
    said = refusal(**{name: value})
    high = f"{WHOLE[name]:,}"
    assert said == f"{name} must be a whole number from 1 to {high}, not {value!r}"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("max_conections", "max_connections"),
        ("idle_time", "idle_timeout"),
        ("frametimeout", "frame_timeout"),
        ("sendbuffer", "send_buffer"),
        ("Backlog", "backlog"),
    ],
)
def test_an_unknown_setting_names_the_nearest(wrong: str, right: str) -> None:
    assert refusal(**{wrong: 1}) == f"unknown setting {wrong!r}: did you mean {right}?"


def test_a_setting_like_none_names_them_all() -> None:
    sentence = refusal(zzz=1)
    assert sentence == f"unknown setting 'zzz': choose from {', '.join(DEFAULTS)}"


@pytest.mark.parametrize("listen", ["", " ", [], ()])
def test_nothing_to_listen_on_is_refused(listen: Any) -> None:
    assert refusal(listen=listen) == "listen names no address"


@pytest.mark.parametrize(
    "wrong",
    [
        {"framing": "lines"},
        {"framing": ""},
        {"prefix": "{nothing}"},
        {"prefix": "\n"},
        {"max_frame": 0},
        {"max_frame": 2**30 + 1},
        {"max_frame": "65536"},
        {"backend": "fast"},
        {"listen": "127.0.0.1"},
        {"listen": "http://:80"},
        {"framing": "u8", "max_frame": 250},
    ],
)
def test_a_server_refuses_what_makes_no_sense_in_a_sentence(wrong: dict[str, Any]) -> None:
    """Before it opens anything: no address is taken."""
    with pytest.raises(ConfigError) as caught:
        Server(**{"listen": "127.0.0.1:0", **wrong})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*TIMEOUTS, *WHOLE])
def test_each_is_an_option_that_says_the_same(name: str) -> None:
    option = f"--{name.replace('_', '-')}"
    with pytest.raises(ConfigError, match=f"^{option} must be "):
        printed(option, "-1")


@pytest.mark.parametrize("value", ["nan", "inf", "-0.1"])
def test_what_is_no_duration_is_wrong_usage(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^--drain-timeout must be seconds"):
        printed("--drain-timeout", value)


# -- max_connections


@pytest.fixture
def few_descriptors() -> Any:
    """This process may have 100 of them."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_descriptors")
def test_as_many_connections_as_descriptors_less_64() -> None:
    assert Settings().connections == 36
    assert Settings(max_connections=7).connections == 7


@pytest.mark.usefixtures("few_descriptors")
def test_never_no_connection_at_all() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    assert Settings().connections == 1


# -- what it can cost


def test_the_worst_case_is_what_each_connection_can_make_it_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rmem, mem = tmp_path / "tcp_rmem", tmp_path / "tcp_mem"
    rmem.write_text("4096\t131072\t1000000\n")
    mem.write_text("1\t2\t1000000\n")
    monkeypatch.setattr(settings_module, "_RECEIVE_MEMORY", rmem)
    monkeypatch.setattr(settings_module, "_ALL_MEMORY", mem)
    ten = Settings(max_connections=10, send_buffer=5_000)
    assert ten.worst_case(300_000) == (10 * (262_144 + 300_000), 10 * (5_000 + 1_000_000))
    mem.write_text("1\t2\t3\n")
    assert ten.worst_case(1)[1] == 3 * resource.getpagesize()


def test_the_worst_case_is_known_where_the_kernel_shows_less(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A container has no tcp_mem, and another kernel than Linux neither file."""
    rmem = tmp_path / "tcp_rmem"
    rmem.write_text("4096\t131072\t1000000\n")
    monkeypatch.setattr(settings_module, "_RECEIVE_MEMORY", rmem)
    monkeypatch.setattr(settings_module, "_ALL_MEMORY", tmp_path / "tcp_mem")
    ten = Settings(max_connections=10, send_buffer=5_000)
    assert ten.worst_case(1)[1] == 10 * (5_000 + 1_000_000)
    rmem.unlink()
    assert ten.worst_case(1) == (10 * (262_144 + 1), None)
    assert "an unknown amount in the kernel" in printed()


@pytest.mark.parametrize(
    ("arguments", "piece"),
    [
        ((), 262_144),
        (("--max-frame", "1000000"), 1_000_000 + 26 + 1),
        (("--max-frame", "1000000", "--framing", "u32", "--prefix", "xyz"), 1_000_000 + 3 + 4),
    ],
)
def test_print_config_says_the_worst_case(arguments: tuple[str, ...], piece: int) -> None:
    text = printed(*arguments, "--max-connections", "1000")
    found = re.search(
        r"\n# worst case, if 1,000 clients send and none reads:\n"
        r"#   ([\d,]+) MiB in this process, ([\d,]+) MiB in the kernel\n\Z",
        text,
    )
    assert found, text
    process, kernel = (int(number.replace(",", "")) for number in found.groups())
    assert process == round(1000 * (262_144 + piece) / 2**20)
    assert kernel > 0


# -- --print-config


def test_print_config_is_toml_of_what_is_in_force(twin: Any) -> None:
    config = tomllib.loads(printed("--backend", twin.name))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert config == {
        **DEFAULTS,
        "listen": list(DEFAULT_LISTEN),
        "max_frame": limits.MAX_FRAME,
        "backend": twin.name,
        "max_connections": min(hard, 2**31 - 1) - limits.RESERVED_DESCRIPTORS,
    }


def test_print_config_prints_each_setting_as_it_was_given() -> None:
    given_settings = {
        "listen": ["tcp://:7", "unix:/run/a b"],
        "framing": "u16",
        "prefix": "[{seq}] ",
        "max_frame": 1000,
        "backend": "pure",
        "max_connections": 5,
        "idle_timeout": 1.5,
        "frame_timeout": 0.0,
        "send_buffer": 1,
        "linger_timeout": 1e-7,
        "drain_timeout": 1e9,
        "backlog": 3,
        "verbose": True,
        "show_cuts": True,
        "log_format": "json",
        "faults": "walk:pause=1ms; jitter",
        "fault_seed": 2**63 - 1,
        "fault_log": "a b.jsonl",
        "slice": "1-5",
        "delay": "50-100ms",
        "drop": "1%",
    }
    words = list(given_settings["listen"])  # type: ignore[call-overload]
    for name, value in given_settings.items():
        if value is True:
            words.append(f"--{name.replace('_', '-')}")
        elif name != "listen":
            words += [f"--{name.replace('_', '-')}", str(value)]
    assert tomllib.loads(printed(*words)) == given_settings


@pytest.mark.parametrize(
    ("framing", "longest"),
    [("u8", 255 - 26), ("u16", 65_535 - 26), ("fixed:9", 9), ("u32", 65_536), ("raw", 2**30)],
)
def test_print_config_says_the_max_frame_in_force(framing: str, longest: int) -> None:
    assert tomllib.loads(printed("--framing", framing))["max_frame"] == longest


def test_print_config_of_what_was_printed_is_the_same() -> None:
    """Its own output is what it would be given."""
    config = tomllib.loads(printed("--framing", "u16le", "--max-connections", "9"))
    again = Settings.of(**{**config, "listen": tuple(config["listen"])})
    for name, value in config.items():
        assert getattr(again, name) == (tuple(value) if name == "listen" else value)


NASTY = ["\\", "\\x41", '"', '\\"', "\t\r", "\x7f", "\x1b[31m", "é", "\u2028", "😀", "a\\u0041"]


@pytest.mark.parametrize("text", NASTY)
def test_print_config_escapes_what_toml_needs_escaped(text: str) -> None:
    prefix = text.replace("{", "{{").replace("}", "}}")
    assert tomllib.loads(printed("--prefix", prefix))["prefix"] == prefix


@given(
    st.text(
        st.characters(exclude_characters="{}\n", exclude_categories=["Cs"]), min_size=1, max_size=20
    )
)
def test_print_config_is_toml_whatever_the_prefix(prefix: str) -> None:
    assert tomllib.loads(printed(f"--prefix={prefix}"))["prefix"] == prefix


def test_print_config_opens_nothing(tmp_path: Path) -> None:
    printed(f"unix:{tmp_path}/s")
    assert not list(tmp_path.iterdir())


def test_print_config_goes_to_standard_output_of_the_command(twin: Any) -> None:
    done = run(sys.executable, "-m", "fastecho", "--backend", twin.name, "--print-config", ":7")
    assert (done.returncode, done.stderr) == (0, b"")
    assert tomllib.loads(done.stdout.decode())["listen"] == [":7"]


def test_print_config_refuses_what_a_server_would() -> None:
    for words in (["--framing", "u7"], ["--prefix", "{x}"], ["--backlog", "0"]):
        with pytest.raises(fastecho.ConfigError):
            printed(*words)


# -- flag, variable, key: which of them wins

SIZES = st.integers(1, 2**30)
COUNTS = st.integers(1, 2**31 - 1)
SECONDS = st.integers(0, 10**9) | st.floats(0, 1e9)
#: Right values of each, as a file has them, and such as go together with all others.
RIGHT: dict[str, st.SearchStrategy[Any]] = {
    "listen": st.lists(
        st.sampled_from(["127.0.0.1:0", "tcp://:7", "udp://[::1]:8", "unix:/run/é"]), min_size=1
    ),
    "framing": st.sampled_from(["line", "raw", "u32", "u64le", "varint", "delimiter:0d0a"]),
    "prefix": st.text(
        st.characters(exclude_characters="{}\0\n\r", exclude_categories=["Cs"]), max_size=9
    ),
    "max_frame": SIZES,
    "backend": st.sampled_from(["auto", "pure"]),
    "max_connections": COUNTS,
    "idle_timeout": SECONDS,
    "frame_timeout": SECONDS,
    "send_buffer": SIZES,
    "linger_timeout": SECONDS,
    "drain_timeout": SECONDS,
    "backlog": COUNTS,
    "verbose": st.booleans(),
    "show_cuts": st.booleans(),
    "log_format": st.sampled_from(["text", "json"]),
    "faults": st.sampled_from(["walk", "walk:pause=1ms ;stall:p=1%,from=7", "corrupt", " "]),
    "fault_seed": st.integers(0, 2**63 - 1) | st.just("random"),
    "fault_log": st.sampled_from(["faults.jsonl", "/tmp/a b", "é"]),
    "slice": st.sampled_from(["1", "1-5"]),
    "delay": st.sampled_from(["100ms", "1-2s", "0.5"]),
    "drop": st.sampled_from(["1%", "0.01", "0"]),
}
#: A wrong one of each, as a text.
WRONG = {
    "listen": "127.0.0.1",
    "framing": "u7",
    "prefix": "{x}",
    "backend": "fast",
    "verbose": "maybe",
    "show_cuts": "2",
    "log_format": "xml",
    "faults": "walks",
    "fault_seed": "-1",
    "fault_log": "logs/",
    "slice": "0",
    "delay": "soon",
    "drop": "101%",
    **dict.fromkeys(TIMEOUTS, "-1"),
    **dict.fromkeys([*WHOLE, "max_frame"], "0"),
}
NAMES = list(SETTINGS)


def variable(name: str) -> str:
    return f"FASTECHO_{name.upper()}"


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def words(name: str, value: Any) -> list[str]:
    """The flag that says so."""
    if name == "listen":
        return list(value)
    if isinstance(value, bool):
        return [flag(name) if value else flag(f"no_{name}")]
    return [f"{flag(name)}={value}"]


def text(value: Any) -> str:
    """The variable that says so."""
    return " ".join(value) if isinstance(value, list) else str(value)


def toml(value: Any) -> str:
    """The value as a file has it; every character of a text as its number."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(each):08X}" for each in value) + '"'
    return repr(value)


def file_of(values: Mapping[str, Any]) -> str:
    return "".join(f"{name} = {toml(value)}\n" for name, value in values.items())


def test_each_setting_has_values_here() -> None:
    assert list(RIGHT) == NAMES == list(DEFAULTS)
    assert set(WRONG) == set(NAMES)


def layers_of(name: str) -> st.SearchStrategy[tuple[Any, ...]]:
    """What flag, variable and key say, from the winner down; None says nothing, True is wrong.

    (A text or list in a tuple is the value, so that none of them is taken for a mark.)
    """
    right, nothing = RIGHT[name].map(lambda value: (value,)), st.none()
    anything = nothing | right | st.just(True)
    return (
        st.tuples(right, anything, anything)
        | st.tuples(nothing, right, anything)
        | st.tuples(nothing, nothing, right | nothing)
    )


LAYERS = st.fixed_dictionaries({name: layers_of(name) for name in NAMES})


@given(LAYERS)
def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(
    layers: dict[str, tuple[Any, ...]],
) -> None:
    """All settings at once; what is overridden may be as wrong as it likes."""
    arguments, variables, keys, due = [], {}, {}, {}
    for name, (first, second, third) in layers.items():
        if first is not None:
            arguments += words(name, first[0])
        if second is not None:
            variables[variable(name)] = WRONG[name] if second is True else text(second[0])
            if variables[variable(name)] == "" and name != "prefix":
                del variables[variable(name)]
        if third is not None:
            keys[name] = {} if third is True else third[0]
        for said in (third, second, first):
            due |= {} if said in (None, True) else {name: said[0]}
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".toml") as file:
        file.write(file_of(keys))
        file.flush()
        found = tomllib.loads(printed(*arguments, "--config", file.name, **variables))
    in_force = tomllib.loads(printed())
    in_force["max_frame"] = fastecho.framing.parse(due.get("framing", "line")).limit(None)
    if due.get("framing") == "raw":
        due["max_frame"] = found["max_frame"]  # its messages are bounded by one recv
    assert found == in_force | due


@given(st.fixed_dictionaries({}, optional=RIGHT))
@example({})
def test_what_is_printed_prints_itself(settings: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "any.toml")
        file.write_text(file_of(settings), "utf-8")
        first = printed("--config", str(file))
        file.write_text(first, "utf-8")
        assert printed("--config", str(file)) == first


def test_what_is_printed_can_be_told_to_a_server() -> None:
    """A file's names are the library's."""
    config = tomllib.loads(printed("127.0.0.1:0", "--framing", "u16", "--verbose"))
    with Server(**config) as server:
        told = {name: getattr(server.settings, name) for name in NAMES}
    assert told == {**config, "listen": ("127.0.0.1:0",)}


# -- each setting under its three names


def test_each_option_of_serve_is_a_setting_and_each_setting_an_option() -> None:
    serve = importlib.import_module("fastecho.cli.serve").serve
    options = [each.name for each in serve.params if each.name not in ("config", "print_config")]
    fields = [each.name for each in dataclasses.fields(Settings)]
    assert sorted(options) == sorted(fields) == sorted(NAMES)
    assert list(tomllib.loads(printed())) == NAMES
    said = serve.get_help(click.Context(serve))
    assert all(f"{flag(name)} " in said for name in NAMES if name != "listen")


@pytest.mark.parametrize("name", NAMES)
def test_a_sentence_names_what_was_wrong(name: str, tmp_path: Path) -> None:
    """The flag, the variable, the key and its file, or the library's setting."""
    wrong = WRONG[name]
    file = tmp_path / "my.toml"
    file.write_text(f"{name} = {toml(wrong)}\n")
    with pytest.raises(ConfigError) as told_by_variable:
        load({}, {variable(name): wrong})
    with pytest.raises(ConfigError) as told_by_key:
        load({}, {}, str(file))
    with pytest.raises(ConfigError) as told_by_setting:
        Server(**{"listen": "127.0.0.1:0", name: wrong})
    assert str(told_by_variable.value).startswith(variable(name))
    assert str(told_by_key.value).startswith(f"{name} in {file}")
    assert str(told_by_setting.value).startswith(name)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "listen"])
def test_a_sentence_names_the_flag(name: str) -> None:
    if not isinstance(SETTINGS[name].default, bool):
        with pytest.raises((ConfigError, click.UsageError)) as told:
            printed(f"{flag(name)}={WRONG[name]}")
        assert flag(name) in told.value.args[0] or flag(name) in str(told.value.format_message())
    else:
        with pytest.raises(click.UsageError) as told_of_switch:
            printed(f"{flag(name)}=1")
        assert flag(name) in told_of_switch.value.format_message()


# -- the file

NO_SIZE = ["true", '"3"', "1.0", "1.5", "inf", "nan", "0", "-1", "[1]", "1979-05-27"]
NO_TIME = ["true", '"3"', "inf", "-inf", "nan", "-1", "-0.1", "[1]", "1979-05-27", "1e10"]
NO_TEXT = ["1", "true", "1.0", '["line"]', "{a = 1}", "07:32:00"]
NO_SWITCH = ["1", "0", '"true"', '"yes"', "1.0", "[]"]
NO_LIST = ["7", "true", "1.5", "[7]", '["127.0.0.1:7", 8]', '[["127.0.0.1:7"]]', "[]", '""', '[""]']
NO_LIST += ['{"127.0.0.1:7" = 1}', r'"tcp://127.0.0.1\u0000b:7"']
WRONG_TYPES = {
    "listen": NO_LIST,
    **dict.fromkeys(["framing", "prefix", "backend", "log_format"], NO_TEXT),
    **dict.fromkeys([*WHOLE, "max_frame"], NO_SIZE),
    **dict.fromkeys(TIMEOUTS, NO_TIME),
    **dict.fromkeys(["verbose", "show_cuts"], NO_SWITCH),
    "faults": ["1", "true", "1.0", '["walk"]', "{walk = 1}", "{a = {}}", "07:32:00"],
    "fault_seed": ["true", '"3"', "1.0", "inf", "-1", "9223372036854775808", "[1]", "1979-05-27"],
    "fault_log": ["1", "true", "[]", "{a = 1}", r'"\u0000"'],
    "slice": ["true", "1.0", "0", "-1", "[1]", "{a = 1}", '"1,pause=1ms"', '"1;walk"'],
    "delay": ["true", "-1", "inf", "nan", "3601", "[1]", "1979-05-27", '"1ms;walk"'],
    "drop": ["true", "-1", "1.1", "nan", "[1]", '"2"', '"1%;walk"'],
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the current directory, not there yet."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "fastecho.toml"


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_another_type_is_no_value(name: str, file: Path) -> None:
    for literal in WRONG_TYPES[name]:
        file.write_text(f"{name} = {literal}\n")
        with pytest.raises(ConfigError) as caught:
            load({}, {})
        assert str(caught.value).startswith(f"{name} in fastecho.toml"), literal
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("literal", "listen"),
    [
        ('["tcp://:1", "unix:/a b"]', ("tcp://:1", "unix:/a b")),
        ('["tcp://:1"]', ("tcp://:1",)),
        ('"tcp://:1"', ("tcp://:1",)),
        ('"tcp://:1 udp://:2"', ("tcp://:1", "udp://:2")),
    ],
)
def test_listen_in_a_file_is_a_list_or_a_text(
    literal: str, listen: tuple[str, ...], file: Path
) -> None:
    file.write_text(f"listen = {literal}\n")
    assert load({}, {}).listen == listen


def test_whole_seconds_are_seconds_too(file: Path) -> None:
    file.write_text("idle_timeout = 3\nframe_timeout = 1e2\n")
    loaded = load({}, {})
    assert (loaded.idle_timeout, loaded.frame_timeout) == (3, 100.0)


def test_no_file_is_no_error_unless_it_was_named(file: Path) -> None:
    assert load({}, {}) == Settings()
    with pytest.raises(FastechoError, match=r"^cannot read fastecho\.toml: no such file"):
        load({}, {}, str(file.name))


def test_an_empty_file_says_nothing(file: Path) -> None:
    file.write_text("# nothing\n")
    assert load({}, {}) == Settings()


def test_the_file_of_the_current_directory_is_read_unless_another_is_named(
    file: Path, tmp_path: Path
) -> None:
    file.write_text("backlog = 1\n")
    for number in (2, 3):
        tmp_path.joinpath(f"{number}.toml").write_text(f"backlog = {number}\n")
    assert tomllib.loads(printed())["backlog"] == 1
    assert tomllib.loads(printed(FASTECHO_CONFIG=""))["backlog"] == 1
    assert tomllib.loads(printed(FASTECHO_CONFIG="2.toml"))["backlog"] == 2
    assert tomllib.loads(printed("--config=3.toml", FASTECHO_CONFIG="2.toml"))["backlog"] == 3
    assert tomllib.loads(printed("--config=3.toml", FASTECHO_CONFIG="gone"))["backlog"] == 3


def test_another_file_replaces_that_of_the_current_directory(file: Path, tmp_path: Path) -> None:
    file.write_text("this is no TOML")
    tmp_path.joinpath("other.toml").write_text('prefix = ">"\n')
    assert load({}, {}, "other.toml") == Settings(prefix=">")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("maxframe", "max_frame"),
        ("max-frame", "max_frame"),
        ("framming", "framing"),
        ("Listen", "listen"),
        ("log-format", "log_format"),
        ("idle_timout", "idle_timeout"),
    ],
)
def test_an_unknown_key_names_its_file_and_the_nearest(wrong: str, right: str, file: Path) -> None:
    """Even where a flag says the right one: nothing else would tell."""
    file.write_text(f"{wrong} = 1\n")
    with pytest.raises(ConfigError) as caught:
        load({right: None}, {})
    due = f"unknown key in fastecho.toml: {wrong!r}: did you mean {right}?"
    assert str(caught.value) == due


# -- faults


def test_a_plan_in_a_file_is_a_text_or_a_table(file: Path) -> None:
    file.write_text('faults = "walk; slice:size=1-5,pause=5ms,p=0.5"\n')
    written = load({}, {})
    file.write_text('[faults]\nwalk = {}\nslice = {size = "1-5", pause = 0.005, p = 0.5}\n')
    listed = load({}, {})
    assert listed.plan == written.plan
    assert listed.faults == "walk; slice:size=1-5,pause=5ms,p=0.5"
    file.write_text("[faults]\n[faults.walk]\n[faults.slow-read]\nsize = 7\n")
    assert load({}, {}).faults == "walk; slow-read:size=7"
    assert tomllib.loads(printed())["faults"] == "walk; slow-read:size=7"


def test_shortcuts_are_faults(file: Path) -> None:
    whole = parse("walk; slice:size=5; delay:time=100ms; drop:p=1%")
    assert Settings.of(faults="walk", slice="5", delay="100ms", drop="1%").plan == whole
    assert Settings.of(faults="walk", slice=5, delay=0.1, drop=0.01).plan == whole
    file.write_text('slice = 5\ndelay = "0.1"\ndrop = 0.01\nfaults = "walk"\n')
    assert load({}, {}).plan == whole
    assert load({"drop": "0"}, {"FASTECHO_DROP": "1%"}).plan.text.endswith("; drop:p=0.0")


@pytest.mark.parametrize("name", SHORTCUTS)
def test_a_shortcut_for_what_the_plan_has_is_refused(name: str) -> None:
    sentence = f"{name} stands in faults already: a plan has each fault once"
    assert refusal(faults=f"walk;{name}", **{name: "1"}) == sentence
    with pytest.raises(ConfigError, match=f"^{sentence}$"):
        load({"faults": name}, {variable(name): "1"})


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"faults": "wakl"}, "faults: unknown fault 'wakl': did you mean walk?"),
        ({"faults": {"walk": 1}}, "faults: walk must be a table of its keys, not 1"),
        ({"faults": ["walk"]}, "faults must be a text or a table, not ['walk']"),
        ({"drop": "2"}, "drop: p of drop must be a probability from 0 to 1, such as 0.01 or 1%, "),
        ({"fault_seed": 2**63}, "fault_seed must be a whole number from 0 to 9,223,372,036,854,7"),
        ({"fault_seed": "x"}, "fault_seed must be a whole number from 0 to 9,223,372,036,854,775,"),
        ({"fault_log": "logs/"}, "fault_log must be the name of a file, not 'logs/'"),
        ({"fault_log": 1}, "fault_log must be the name of a file, not 1"),
    ],
)
def test_what_is_wrong_with_faults_is_said(wrong: dict[str, Any], sentence: str) -> None:
    assert refusal(**wrong).startswith(sentence)


def test_without_faults_there_is_nothing_to_draw() -> None:
    assert not Settings().plan
    assert Settings(fault_seed=1).draws() is None


def test_the_draws_are_of_the_plan_and_the_seed(tmp_path: Path) -> None:
    chosen = Settings.of(faults="walk", drop="1%", fault_seed=5)
    draws = chosen.draws()
    assert draws is not None
    assert (draws.plan, draws.seed) == (chosen.plan, 5)
    logged = Settings.of(fault_log=tmp_path / "log", fault_seed=0).draws()
    assert logged is not None
    assert (logged.plan.text, logged.seed) == ("", 0)


def test_a_seed_is_drawn_where_none_is_told() -> None:
    seeds = {draws.seed for _ in range(9) if (draws := Settings(faults="walk").draws())}
    assert len(seeds) > 1
    assert max(seeds) < 2**32  # so that a person can type it


# -- variables


def test_an_empty_variable_is_as_good_as_none_but_for_the_prefix() -> None:
    assert load({}, {variable(name): "" for name in NAMES}) == Settings(prefix="")


@given(st.data())
def test_switches_can_be_written_in_many_ways(data: st.DataObject) -> None:
    on = data.draw(st.booleans())
    right = ["1", "true", "yes", "on"] if on else ["0", "false", "no", "off"]
    word = data.draw(st.sampled_from(right))
    spelt = "".join(data.draw(st.sampled_from([each, each.upper()])) for each in word)
    name = data.draw(st.sampled_from(["verbose", "show_cuts"]))
    assert load({}, {variable(name): spelt}) == Settings.of(**{name: on})


@pytest.mark.parametrize("word", ["2", "y", "t", "true ", "enabled", "None"])
def test_anything_else_is_no_switch(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({}, {"FASTECHO_VERBOSE": word})
    assert str(caught.value) == f"FASTECHO_VERBOSE must be true or false, not {word!r}"


@pytest.mark.parametrize("name", ["verbose", "show_cuts"])
def test_no_beats_true(name: str, file: Path) -> None:
    file.write_text(f"{name} = true\n")
    off = flag(f"no_{name}")
    assert tomllib.loads(printed())[name] is True
    assert tomllib.loads(printed(off))[name] is False
    assert tomllib.loads(printed(off, **{variable(name): "yes"}))[name] is False
    assert tomllib.loads(printed(off, flag(name)))[name] is True


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("FASTECHO_MAXFRAME", "FASTECHO_MAX_FRAME"),
        ("FASTECHO_FRAMMING", "FASTECHO_FRAMING"),
        ("FASTECHO_MAX_CONECTIONS", "FASTECHO_MAX_CONNECTIONS"),
        ("FASTECHO_LOGFORMAT", "FASTECHO_LOG_FORMAT"),
        ("FASTECHO_DRAIN_TIMEOUTS", "FASTECHO_DRAIN_TIMEOUT"),
    ],
)
def test_a_variable_nearly_right_is_named_once(name: str, right: str) -> None:
    environ = {name: "1", "HOME": "/", right.removeprefix("FASTECHO_"): "1"}
    assert misspelt(environ) == [f"{name} is no setting: did you mean {right}?"]
    assert load({}, environ) == Settings()


#: What Kubernetes sets in every container beside a service called fastecho.
ORCHESTRATED = {
    "FASTECHO_SERVICE_HOST": "10.0.0.7",
    "FASTECHO_SERVICE_PORT": "12345",
    "FASTECHO_SERVICE_PORT_ECHO": "12345",
    "FASTECHO_PORT": "tcp://10.0.0.7:12345",
    "FASTECHO_PORT_12345_TCP": "tcp://10.0.0.7:12345",
    "FASTECHO_PORT_12345_TCP_PROTO": "tcp",
    "FASTECHO_PORT_12345_TCP_PORT": "12345",
    "FASTECHO_PORT_12345_TCP_ADDR": "10.0.0.7",
}


@pytest.mark.parametrize("own", ["FASTECHO_CONFIG", "FASTECHO_BUILD_EXT", "FASTECHO_BACKEND"])
def test_variables_that_only_begin_like_ours_are_nobody_s_fault(own: str) -> None:
    assert misspelt({**ORCHESTRATED, own: "pure"}) == []
    assert load({}, ORCHESTRATED) == Settings()


def found_or_said(
    make: Callable[..., Settings], *arguments: Any, **settings: Any
) -> Settings | ConfigError:
    """The settings, or the one sentence that refuses them."""
    try:
        return make(*arguments, **settings)
    except ConfigError as error:
        return error


def is_right(outcome: Settings | ConfigError) -> bool:
    """Whether they are settings, and would be taken again."""
    if isinstance(outcome, Settings):
        return Settings.of(**vars(outcome)) == outcome
    assert "\n" not in str(outcome)
    return False


@given(st.dictionaries(st.sampled_from(NAMES), st.text(st.characters(exclude_characters="\0"))))
def test_any_variables_are_settings_or_a_sentence(texts: dict[str, str]) -> None:
    outcome = found_or_said(load, {}, {variable(name): value for name, value in texts.items()})
    assert is_right(outcome) or str(outcome).startswith("FASTECHO_")


TOML_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.dates()
    | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)


@given(st.sampled_from(NAMES), TOML_VALUES)
def test_any_value_is_right_or_a_sentence_that_names_the_setting(name: str, value: Any) -> None:
    """In a file, or told by a program."""
    outcome = found_or_said(Settings.of, **{name: value})
    assert is_right(outcome) or str(outcome).startswith(name)
