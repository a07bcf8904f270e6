"""The one choice between the twins, and how it fails: loudly."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fastecho
from fastecho import backend
from fastecho.errors import ConfigError

SHOW = "from fastecho import backend; print(backend.name)"


def python(code: str, chosen: str | None = None, path: Path | None = None) -> tuple[int, str]:
    """(exit status, output and the last line of the error) of a new interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != backend.VARIABLE}
    if chosen is not None:
        environment[backend.VARIABLE] = chosen
    environment["PYTHONPATH"] = str(path or Path(fastecho.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=path,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    return done.returncode, (done.stdout + done.stderr).strip().rpartition("\n")[2]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package, to be broken."""
    source = Path(fastecho.__file__).parent
    shutil.copytree(source, tmp_path / "fastecho", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def compiled(path: Path) -> list[Path]:
    return sorted((path / "fastecho" / "_native").glob("*.so"))


def test_a_twin_has_every_class(twin: Any) -> None:
    for name in backend.Twin._fields[1:]:
        assert getattr(twin, name).__module__.startswith(f"fastecho._{twin.name}."), name


def test_the_twins_have_the_same_names(twins: tuple[Any, Any]) -> None:
    internal = {"stamp", "stamp_whole", "prefix", "ended"}  # how a twin does it inside is its own
    for name in backend.Twin._fields[1:]:
        pure, native = (set(dir(getattr(twin, name))) for twin in twins)
        assert {each for each in pure if not each.startswith("_")} <= native | internal, name


def test_auto_and_none_are_the_chosen_one() -> None:
    assert backend.load().name == backend.name
    assert backend.load("auto").name == ("native" if backend.native_built() else "pure")


def test_a_wrong_name_lists_the_right_ones() -> None:
    for wrong in ("", "Native", "c", "auto "):
        with pytest.raises(ConfigError, match=r"auto, native, pure"):
            backend.load(wrong)


def test_a_module_has_no_other_attributes() -> None:
    with pytest.raises(AttributeError, match=r"nope"):
        backend.nope  # noqa: B018


@pytest.mark.parametrize("chosen", ["pure", "native"])
def test_the_environment_chooses(twins: tuple[Any, Any], chosen: str) -> None:
    assert python(SHOW, chosen) == (0, chosen)


def test_an_empty_choice_is_none(twins: tuple[Any, Any]) -> None:
    assert python(SHOW, "") == python(SHOW, None) == python(SHOW, "auto") == (0, "native")


def test_a_wrong_choice_is_refused_by_the_variables_name() -> None:
    status, said = python(SHOW, "fast")
    assert status == 1
    assert "not 'fast'" in said


def test_the_environment_is_read_once() -> None:
    change = "import os; os.environ['FASTECHO_BACKEND'] = 'fast'; print(backend.name)"
    assert python(f"{SHOW}; {change}", "pure") == (0, "pure")


def test_an_argument_beats_the_environment(twins: tuple[Any, Any]) -> None:
    code = "import fastecho; print(type(fastecho.framing.codec('line', backend='pure')).__module__)"
    assert python(code, "native") == (0, "fastecho._pure.framing")


def test_where_nothing_was_compiled_auto_is_pure(copied: Path) -> None:
    for module in compiled(copied):
        module.unlink()
    assert python(SHOW, None, copied) == (0, "pure")
    status, said = python(SHOW, "native", copied)
    assert status == 1
    assert "ConfigError" in said
    assert "FASTECHO_BUILD_EXT=yes" in said


@pytest.mark.parametrize("chosen", [None, "native"])
@pytest.mark.parametrize("index", range(len((*backend.MODULES, backend.ENGINE))))
def test_a_missing_module_is_no_fallback(
    twins: tuple[Any, Any], copied: Path, index: int, chosen: str | None
) -> None:
    modules = compiled(copied)
    assert len(modules) == len((*backend.MODULES, backend.ENGINE))
    modules[index].unlink()
    status, said = python(SHOW, chosen, copied)
    assert status == 1
    assert "FastechoError: the native backend is broken" in said
    assert python(SHOW, "pure", copied) == (0, "pure")


def test_a_module_that_does_not_load_is_no_fallback(twins: tuple[Any, Any], copied: Path) -> None:
    compiled(copied)[0].write_bytes(b"\x7fELF no more")
    status, said = python(SHOW, None, copied)
    assert status == 1
    assert "FastechoError: the native backend is broken" in said
