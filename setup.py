"""The extension modules, nothing else: metadata and settings are in pyproject.toml.

The environment variable `FASTECHO_BUILD_EXT` says what becomes of them:

    auto (default)  compile; if that fails, say so and install the pure twin alone
    yes             compile; if that fails, so does the installation
    no              compile nothing (what was built in place before stays there)
    checked         as `yes`, with every check of Cython's, ASan and UBSan: for tests alone, and
                    for processes that have ASan preloaded (`make sanitize`, docs/testing.md)

pip keeps the wheel that it built of an index's sdist, whatever the variable said then: after a
fallback, `pip install --no-cache-dir` builds again.
"""

import os
import sys
from pathlib import Path
from textwrap import shorten

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MODULES = ("framing", "stamping", "selector", "stream", "datagrams", "generator")
INTERFACES = sorted(Path("fastecho/_native").glob("*.pxd"))
HEADERS = sorted(str(path) for path in Path("ext").glob("*.h"))

DIRECTIVES = {
    "language_level": 3,
    # The C of the hot path, without checks: every index and divisor there is bounded by hand.
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "nonecheck": False,
    # `inspect.signature` reads the compiled twin as it reads the pure one.
    "embedsignature": True,
    "embedsignature.format": "clinic",
}

# What `checked` changes. An index below 0 stays an error there. Overflow is UBSan's to find:
# Cython's `overflowcheck` objects to unsigned numbers too, which may wrap and, in headers, do.
CHECKS = {"boundscheck": True, "cdivision": False, "initializedcheck": True, "nonecheck": True}
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
SANITIZERS += ["-fno-sanitize=pointer-overflow"]  # Cython's own code adds 0 to NULL
# Python's own flags make overflow wrap (-fwrapv), and then it is none.
CHECKED_CFLAGS = ["-O1", "-g", "-fno-wrapv", "-fno-omit-frame-pointer", "-Wall", *SANITIZERS]

# No -march: a wheel runs on every machine of its architecture. By instructions counted: -O3 takes
# 3% less than -O2 for a call with one line, -fno-plt 1% less; -flto and -fno-semantic-interposition
# change nothing, where all that is hot is static; -fno-tree-slp-vectorize takes 2% less for a line
# alone, and 2% more time for many. Only PyInit_* need be visible.
CFLAGS = ["-O3", "-fno-plt", "-fvisibility=hidden", "-Wall"]


class BuildAllOrNone(build_ext):
    """Compiles every module or, where the policy allows it, leaves none behind."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self) -> None:
        in_place = self.inplace  # build_ext.run() turns it off, and an exception leaves it so
        try:
            self.generate()
            super().run()
        except Exception as error:
            if policy != "auto":
                print(
                    f"error: fastecho: FASTECHO_BUILD_EXT={policy}, but the native twin could not "
                    "be built. That takes a C compiler and the headers of Python (in Debian: gcc, "
                    "libc6-dev, python3-dev). What went wrong:",
                    file=sys.stderr,
                )
                raise
            for extension in self.extensions:
                built = self.get_ext_filename(extension.name)
                Path(self.build_lib, built).unlink(missing_ok=True)
                if in_place:
                    Path(built).unlink(missing_ok=True)
            self.extensions = []
            print(
                "warning: fastecho: the native twin could not be built, so the slower pure twin is "
                "installed alone (FASTECHO_BUILD_EXT=yes makes this an error): "
                f"{type(error).__name__}: {shorten(str(error), 120)}",
                file=sys.stderr,
            )

    def generate(self) -> None:
        """Turn the .pyx into C, out of the way of the sources."""
        from Cython.Build import cythonize  # here: `auto` survives its absence, `no` needs none

        generated = Path("build/cython-checked" if checked else "build/cython")
        # Cython expects a module's own .pxd beside its .pyx and would not see ours change.
        inputs = [Path(__file__), *INTERFACES]
        outputs = [path.stat().st_mtime for path in generated.glob("ext/*.c")]
        stale = bool(outputs) and max(path.stat().st_mtime for path in inputs) > min(outputs)
        extensions = cythonize(
            self.extensions,
            build_dir=str(generated),
            compiler_directives=DIRECTIVES | CHECKS if checked else DIRECTIVES,
            force=bool(self.force) or stale,
        )
        for extension, with_c in zip(self.extensions, extensions, strict=True):
            extension.sources = with_c.sources


policy = os.environ.get("FASTECHO_BUILD_EXT", "auto")
if policy not in ("auto", "yes", "no", "checked"):
    sys.exit(f"FASTECHO_BUILD_EXT must be auto, yes, no or checked, not {policy!r}")
checked = policy == "checked"
if policy == "auto" and sys.platform != "linux":  # epoll, recvmmsg, SO_TIMESTAMPNS, ...
    policy = "no"

setup(
    cmdclass={"build_ext": BuildAllOrNone},
    ext_modules=[
        Extension(
            f"fastecho._native.{name}",
            [f"ext/{name}.pyx"],
            include_dirs=["ext"],
            depends=HEADERS,
            extra_compile_args=CHECKED_CFLAGS if checked else CFLAGS,
            extra_link_args=SANITIZERS if checked else [],
        )
        for name in MODULES
        if policy != "no"
    ],
)
