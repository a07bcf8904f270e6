"""What the fuzzer has found worth keeping, tried without it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

CORPUS = Path(__file__).parent / "fuzz" / "corpus"
LARGEST = 1024  # bytes of an input: small enough to be read


@pytest.mark.parametrize("target", ["streams", "datagrams"])
def test_the_corpus(twins: object, target: str) -> None:
    check = importlib.import_module(f"fuzz.{target}").check
    inputs = sorted((CORPUS / target).iterdir())
    assert inputs
    for path in inputs:
        data = path.read_bytes()
        assert len(data) <= LARGEST, path
        check(data)
