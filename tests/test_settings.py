"""Settings: each is checked before anything is opened, and can be printed as it is in force."""

from __future__ import annotations

import dataclasses
import math
import re
import resource
import sys
import tomllib
from pathlib import Path
from typing import Any

import click.testing
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import run

import fastecho
from fastecho import ConfigError, Server, cli, limits
from fastecho import settings as settings_module
from fastecho.settings import DEFAULT_LISTEN, Settings

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
}


def refusal(**settings: Any) -> str:
    """The sentence that refuses these."""
    with pytest.raises(ConfigError) as caught:
        Settings.of(**settings)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert isinstance(caught.value, ValueError)
    return sentence


def printed(*arguments: str) -> str:
    """What `--print-config` prints."""
    outcome = click.testing.CliRunner().invoke(
        cli.commands, [*arguments, "--print-config"], standalone_mode=False
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
