"""Builds the compiled CPU kernels where that can be done; pyproject.toml says everything else.

The extension is optional. Where nothing can be built, or building fails, the install is pure Python, and its wheel is
tagged so; the reason is kept beside the package, where ``batchnorm.backends()`` finds it. ``BATCHNORM_BUILD=0`` never
builds; ``BATCHNORM_BUILD=1`` makes every failure an error.

LibTorch's headers and library come from the torch that is installed: it is no requirement of the build, since pip
would fetch gigabytes of it for each. So ``pip install --no-build-isolation .`` builds, and ``pip install .`` does not.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError

SOURCES = Path("src/batchnorm/ops/cpu")  # relative: setuptools runs where this file is, and refuses absolute paths
NOT_BUILT = "not_built.txt"
OLDEST_TORCH = (2, 10)

# The binary keeps to what these two promise, so one serves every later torch and CPython.
MACROS = [("TORCH_TARGET_VERSION", "0x020a000000000000"), ("Py_LIMITED_API", "0x030a0000")]
# No flag may assume finite numbers, contract a·b + c, or name a processor: the sources choose instruction sets.
FLAGS = [
    "-O3",
    "-std=c++17",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-MMD",  # list what a source includes, for _is_current
    # Against what this Python was built with, which setuptools passes on.
    "-g0",
    "-fno-wrapv",
    "-fno-lto",
]


class CannotBuildError(BaseError):
    """Why there is nothing to build with, as half a sentence."""


def torch_folder() -> Path:
    """The folder of the installed torch. Not imported: that takes seconds, and this runs several times an install."""
    again = "install again with `pip install --no-build-isolation`"
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise CannotBuildError(f"the build saw no torch, which pip hides from it by default; {again}")
    try:
        found = version("torch")
    except PackageNotFoundError:
        raise CannotBuildError(f"the torch that the build saw has no version; {again}") from None
    if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < OLDEST_TORCH:
        raise CannotBuildError(f"the build saw torch {found}, and 2.10 is the oldest that will do; {again}")
    return Path(next(iter(spec.submodule_search_locations)))


def kernels() -> Extension:
    """The one extension. Its paths to torch are set when it is built."""
    return Extension(
        "batchnorm.ops.cpu._kernels",
        sources=sorted(path.as_posix() for path in SOURCES.glob("*.cpp")),
        depends=sorted(path.as_posix() for path in SOURCES.glob("*.h")),
        define_macros=MACROS,
        libraries=["torch_cpu"],
        language="c++",
        py_limited_api=True,
    )


class BuildKernels(build_ext):
    """``build_ext`` that compiles sources side by side and only what changed, and that may fail."""

    command_name = "build_ext"  # as warnings call it

    def run(self) -> None:
        """Build; or say why not, and go on as a package without extensions."""
        wish, inplace = os.environ.get("BATCHNORM_BUILD", ""), self.inplace
        if wish not in ("", "0", "1"):
            raise CannotBuildError(f"BATCHNORM_BUILD is {wish!r}. Mend: 0 never builds, 1 must build, unset tries to.")
        try:
            if wish == "0":
                raise CannotBuildError("BATCHNORM_BUILD was 0 at install; install again without it")
            super().run()
        except Exception as error:  # of which kind a compiler's failure is depends on the version of setuptools
            if wish == "1":
                raise
            self.inplace = inplace
            self.go_without(error)
        else:
            self.leave_note(None)

    def go_without(self, error: Exception) -> None:
        """Leave pure Python behind: no binary of an earlier build, no extension that the wheel's tag would name."""
        reason = str(error)
        if not isinstance(error, CannotBuildError):
            reason = f"building failed ({type(error).__name__}); `pip install -v --no-build-isolation` shows why"
        if os.environ.get("BATCHNORM_BUILD") != "0":
            self.warn(f"batchnorm is installed without its compiled CPU kernels, and works: {reason}")
        for folder in self.folders():
            (folder / Path(self.get_ext_filename(self.extensions[0].name)).name).unlink(missing_ok=True)
        self.leave_note(f"not built: {reason}\n")
        self.distribution.ext_modules = self.extensions = []

    def leave_note(self, text: str | None) -> None:
        """Write why there is no binary to where it would be, or take an earlier note away."""
        for folder in self.folders():
            (folder / NOT_BUILT).unlink(missing_ok=True)
            if text is not None:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / NOT_BUILT).write_text(text, encoding="utf-8")

    def folders(self) -> list[Path]:
        """Where the binary goes: into what is installed, and for an editable install into the sources."""
        return [Path(self.build_lib, *SOURCES.parts[1:])] + ([SOURCES] if self.inplace else [])

    def build_extension(self, ext: Extension) -> None:
        """Compile what is older than its source or a header that it includes, and link."""
        if sys.platform == "win32":
            raise CannotBuildError("there are no compiled kernels for Windows yet")
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            raise CannotBuildError("free-threaded Python has no stable ABI to build for")
        compiler = self.compiler.compiler_so_cxx
        if shutil.which(compiler[0]) is None:
            raise CannotBuildError(
                f"there was no C++ compiler ({compiler[0]}) at install; install g++,"
                " then again with `pip install --no-build-isolation`"
            )
        torch = torch_folder()
        # -isystem: other people's headers may warn as they like.
        flags = [*FLAGS, "-isystem", str(torch / "include")]
        command = repr((compiler, flags, MACROS, self.debug, version("torch")))
        folder = Path(self.get_finalized_command("build").build_base, "kernels", _digest(command))
        compile_one = partial(self.compile_one, folder, flags)
        with ThreadPoolExecutor(self.parallel or _processors()) as pool:
            objects = list(pool.map(compile_one, ext.sources))
        self.compiler.force = True  # or a binary of objects with other flags, being newer than these, would stay
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            libraries=ext.libraries,  # not self.get_libraries(), which adds Python's own on some platforms
            library_dirs=[str(torch / "lib")],
            debug=self.debug,
            target_lang="c++",
        )

    def compile_one(self, folder: Path, flags: list[str], source: str) -> str:
        """The object of one source, compiled if it has to be."""
        target = folder / Path(source).with_suffix(".o")
        if self.force or not _is_current(target):
            self.compiler.compile(
                [source], output_dir=str(folder), macros=MACROS, debug=self.debug, extra_postargs=flags
            )
        return str(target)


class TagAfterBuild(bdist_wheel):
    """``bdist_wheel`` whose tag says what was built, not what was meant to be."""

    def run(self) -> None:
        """Build first: what comes of it decides the tag and where the files go."""
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


def _is_current(target: Path) -> bool:
    """Whether an object is no older than anything it was made of, as the compiler's list beside it says."""
    try:
        _, _, made_of = target.with_suffix(".d").read_text(encoding="utf-8").replace("\\\n", " ").partition(": ")
        return all(os.stat(path).st_mtime_ns <= target.stat().st_mtime_ns for path in shlex.split(made_of))
    except OSError:
        return False


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    stable = not sysconfig.get_config_var("Py_GIL_DISABLED")  # bdist_wheel refuses the option there
    setup(
        ext_modules=[kernels()],
        cmdclass={"build_ext": BuildKernels, "bdist_wheel": TagAfterBuild},
        options={"bdist_wheel": {"py_limited_api": "cp310"}} if stable else {},
    )
