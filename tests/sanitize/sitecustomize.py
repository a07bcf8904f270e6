"""Loaded by each Python that `make sanitize` starts: a failed check is an end, not a remark.

What a check raises in a C function that cannot raise, Cython hands to this hook.
"""

from __future__ import annotations

import os
import sys


def end(unraisable: sys.UnraisableHookArgs) -> None:
    sys.__unraisablehook__(unraisable)
    os.abort()


sys.unraisablehook = end
