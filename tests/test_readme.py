"""What README.md shows is what happens."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_python_runs(code):
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=30)


def test_every_framing_and_token_is_named():
    from fastecho import framing, prefix

    for spec in framing.SPECS:
        name = spec.partition(":")[0]
        assert re.search(rf"`{name}\b", README) or name in ("u16le", "u24le", "u32le", "u64le")
    for token in prefix.NAMES:
        assert f"`{{{token}}}`" in README
