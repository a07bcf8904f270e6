"""libFuzzer tries inputs on a target: `python -P -m fuzz TARGET [libFuzzer's arguments]`.

libFuzzer is a library of clang's that calls a function with one input after the other, keeps those
that take the compiled modules new ways, and changes those. It has been preloaded together with
ASan (docs/testing.md), before the modules that report to it; so here it only needs to be called.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import traceback

Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)


def main(name: str, *arguments: str) -> int:
    """Run libFuzzer on that target's `check`; its exit status."""
    check = importlib.import_module(f"fuzz.{name}").check

    @Callback
    def try_one(data: int, size: int) -> int:
        try:
            check(ctypes.string_at(data, size))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os.abort()  # libFuzzer writes the input down
        return 0

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # then libFuzzer handles it
    sys.unraisablehook = lambda what: os.abort()
    # To merge or minimise, libFuzzer starts itself again through a shell.
    words = [f"{sys.executable} -P -m fuzz {name}", *arguments]
    argv = (ctypes.c_char_p * (len(words) + 1))(*map(str.encode, words))
    return ctypes.CDLL(None).LLVMFuzzerRunDriver(
        ctypes.byref(ctypes.c_int(len(words))),
        ctypes.byref(ctypes.cast(argv, ctypes.POINTER(ctypes.c_char_p))),
        try_one,
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
