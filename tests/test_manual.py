"""docs/fastecho.1 says what `--help` says, and nothing that is not so."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

import fastecho
from fastecho import framing, prefix
from fastecho.cli import COMMANDS, commands
from fastecho.faults.plan import FAULTS, Fault
from fastecho.settings import DEFAULT_ADDRESS, DEFAULT_FILE

PAGE = Path(__file__).parents[1] / "docs" / "fastecho.1"


def options(name: str) -> dict[str, click.Option]:
    """A command's options, by each way to write them."""
    context = click.Context(commands, **commands.context_settings)
    command = commands.get_command(context, name) if name else commands
    assert command is not None
    return {
        flag: each
        for each in command.get_params(context)
        if isinstance(each, click.Option)
        for flag in (*each.opts, *each.secondary_opts)
    }


def plain() -> str:
    """The page as a reader sees its words, on one line."""
    text = re.sub(r"\\f[RBI]", "", PAGE.read_text()).replace("\\-", "-")
    lines = []
    for line in text.splitlines():
        macro, _, rest = line.partition(" ")
        if macro in (".BI", ".BR", ".IB", ".RB", ".RI"):
            pieces = re.findall(r'"([^"]*)"|(\S+)', rest)
            lines.append("".join(quoted or bare for quoted, bare in pieces))
        elif line.startswith("."):
            lines.append(rest)
        else:
            lines.append(line)
    return " ".join(" ".join(lines).split())


def written() -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", plain()))


def test_each_option_is_on_the_page_and_no_other() -> None:
    known = {flag for name in ("", *COMMANDS) for flag in options(name)}
    assert written() == known


def test_the_page_says_what_help_says_of_the_daemon() -> None:
    page = plain()
    for flag, option in options("serve").items():
        told, _, default = (option.help or "").rstrip(".").partition(" (default ")
        if flag not in ("--framing", "--prefix", "-h", "--help"):
            assert told in page
        if default:
            assert f"(default {default.rstrip(')')}" in page


@pytest.mark.parametrize("spec", framing.SPECS)
def test_each_framing_is_on_the_page(spec: str) -> None:
    assert re.search(rf"(?<!\w){re.escape(spec)}(?!\w)", plain().replace(" ,", ","))


@pytest.mark.parametrize("token", prefix.NAMES)
def test_each_token_is_on_the_page(token: str) -> None:
    assert f"{{{token}}}" in plain()


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_each_fault_is_on_the_page_with_its_keys(fault: Fault) -> None:
    name = re.escape(fault.name.replace("-", "\\-"))
    pattern = rf"^\.TP\n\.B {name}\n(.*?)^\.(TP|RE)$"
    item = re.search(pattern, PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert item, fault.name
    assert item[1].startswith(f"({fault.sockets})") == (fault.sockets != "both")
    if "likewise" not in item[1]:
        told = re.findall(r"^\.B (\w+)=$", item[1], re.MULTILINE)
        assert told == [key.name for key in fault.keys]


def test_the_page_is_of_this_version() -> None:
    assert f'"fastecho {fastecho.__version__}"' in PAGE.read_text().splitlines()[0]
    assert DEFAULT_ADDRESS in plain()
    assert DEFAULT_FILE in plain()


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_page_has_no_roff_at_fault() -> None:
    shown = subprocess.run(
        ["groff", "-man", "-ww", "-Tascii", PAGE], capture_output=True, check=True, text=True
    )
    assert shown.stderr == ""
    assert "daemon that stamps every message" in shown.stdout.replace("\n       ", " ")
