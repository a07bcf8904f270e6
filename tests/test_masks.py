"""The C of the native twin that finds lines, each way of it: also those that this processor lacks.

The programs in `native/` compare them with a loop over single bytes, under the sanitizers.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHECKED = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
#: For another machine: compiled for, and run by.
ARM = "aarch64-linux-gnu-gcc", "qemu-aarch64"

on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64")


def run(program: str, folder: Path, compiler: list[str], runner: list[str]) -> list[str]:
    """The lines that a program prints; it fails where something differs."""
    if not (HERE.parent / "ext").is_dir():
        pytest.skip("the sources of the native twin are not here")
    for tool in (compiler[0], *runner[:1]):
        if not shutil.which(tool):
            pytest.skip(f"there is no {tool}")
    made = folder / program
    source = HERE / "native" / f"{program}.c"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{HERE.parent / 'ext'}"]
    subprocess.run([*compiler, *flags, source, "-o", made], check=True)
    # A preloaded library would come before the sanitizer's.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(
        [*runner, made], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("program", ["masks", "lines", "lengths"])
def test_all_ways_say_the_same(program: str, tmp_path: Path) -> None:
    said = run(program, tmp_path, ["gcc", *CHECKED], [])
    if program == "masks":
        assert said[0] == "words"
        if platform.machine() == "x86_64":
            assert said[1] == "sse2"


@on_x86
@pytest.mark.parametrize("program", ["masks", "lines", "lengths"])
def test_all_ways_say_the_same_on_arm64(program: str, tmp_path: Path) -> None:
    compiler, runner = ARM
    said = run(program, tmp_path, [compiler, "-static", "-O2"], [runner])
    if program == "masks":
        assert said == ["words", "neon"]
