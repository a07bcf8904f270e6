"""What a measurement was made on, and with: nobody can use a figure without that."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .errors import FastechoError


def describe(version: str) -> dict[str, Any]:
    """The machine and the programs, fastecho's version among them, as JSON has them."""
    return {
        "fastecho": version,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "host": platform.node(),
    }


def cpu_model() -> str:
    """The processor's name, as the kernel knows it, or the architecture."""
    with suppress(OSError):
        told = Path("/proc/cpuinfo").read_text()
        found = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.machine()


def now() -> str:
    """When it was: RFC 3339, UTC, seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def writable(path: str) -> None:
    """See that a file can be written before anything is measured for it.

    Raises:
        FastechoError: it cannot.
    """
    try:
        with open(path, "ab"):
            pass
    except OSError as error:
        words = os.strerror(error.errno or 0).lower()
        raise FastechoError(f"cannot write {path}: {words}") from error
