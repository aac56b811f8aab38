"""What is installed: the wheel with compiled kernels, the one without, and the binary's debts to the system.

Builds here are real ones in a copy of the tree, of the real Python module over a few lines in place of the kernels,
which take long to compile. The binary that serves these tests is looked at as it is.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from batchnorm.errors import ArgumentError
from batchnorm.ops import cpu

ROOT = Path(__file__).parents[1]
KERNELS = Path("src/batchnorm/ops/cpu")
BINARY = ROOT / KERNELS / "_kernels.abi3.so"

STAND_IN = """
#include "direct.h"
#include <cstdlib>
#include "dispatch.h"
#ifndef LAST
#define LAST "last"
#endif
namespace {
const char* const names[] = {"best", "second", LAST};
int chosen = 1;
}
namespace batchnorm {
int instruction_set_count() { return 3; }
const char* instruction_set_name(int index) { return names[index]; }
bool instruction_set_runs(int index) { return index > 0 && !std::getenv("STAND_IN_RUNS_NOTHING"); }
int chosen_instruction_set() { return instruction_set_runs(1) ? chosen : -1; }
void choose_instruction_set(int index) { chosen = index; }
PyObject* direct_prepare(PyObject*, PyObject*) { Py_RETURN_NONE; }
PyObject* direct_train(PyObject*, PyObject* const*, Py_ssize_t) { Py_RETURN_FALSE; }
PyObject* direct_normalize(PyObject*, PyObject* const*, Py_ssize_t) { Py_RETURN_FALSE; }
PyObject* direct_backward(PyObject*, PyObject* const*, Py_ssize_t) { Py_RETURN_FALSE; }
PyObject* direct_train_parts(PyObject*, PyObject* const*, Py_ssize_t) { Py_RETURN_FALSE; }
PyObject* direct_backward_parts(PyObject*, PyObject* const*, Py_ssize_t) { Py_RETURN_FALSE; }
}
"""

COMPILER = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++").split()[0]
needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"there is no {COMPILER} to build with")
needs_kernels = pytest.mark.skipif(not cpu.available, reason=f"the kernels do not serve here: {cpu.reason}")
needs_binary = pytest.mark.skipif(not BINARY.is_file(), reason=f"there is no binary to look at: {cpu.reason}")


def run(*command: str, where: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("BATCHNORM_")}
    result = subprocess.run(
        command, cwd=where, env=plain | environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def build(tree: Path, kind: str, *, torch_there: bool = True, check: bool = True, **environment: str):
    """What pip does, without pip: one hook of the build backend, in the tree. Gives the archive and the output."""
    hide = "" if torch_there else "import sys; sys.modules['torch'] = None; "
    code = f"{hide}from setuptools import build_meta; build_meta.build_{kind}('made')"
    shutil.rmtree(tree / "made", ignore_errors=True)
    (tree / "made").mkdir()
    result = run(sys.executable, "-c", code, where=tree, check=check, **environment)
    return next((tree / "made").iterdir(), None), result


def unpacked(wheel: Path) -> Path:
    folder = wheel.parent.parent / "installed"
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(installed: Path, code: str, **environment: str) -> str:
    """Run Python on the package as it lies there. ``-S`` with the path by hand: no editable install comes first."""
    path = os.pathsep.join([str(installed), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return run(sys.executable, "-S", "-W", "error", "-c", code, where=installed, PYTHONPATH=path, **environment).stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a build reads, with a few lines in place of the kernels."""
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    left_out = shutil.ignore_patterns("*.so", "not_built.txt", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=left_out)
    for source in (tmp_path / KERNELS).glob("*.cpp"):
        if source.name != "module.cpp":
            source.unlink()
    (tmp_path / KERNELS / "stand_in.cpp").write_text(STAND_IN)
    return tmp_path


@needs_compiler
def test_a_wheel_with_kernels_is_for_every_later_python(tree):
    wheel, _ = build(tree, "wheel", BATCHNORM_BUILD="1")
    assert re.fullmatch(r"batchnorm-[\d.]+-cp310-abi3-\w+\.whl", wheel.name)
    installed = unpacked(wheel)
    cpu_files = {path.name for path in (installed / "batchnorm/ops/cpu").iterdir()}
    assert "_kernels.abi3.so" in cpu_files
    assert "_kernels.pyi" in cpu_files
    assert not {name for name in cpu_files if name.endswith((".cpp", ".h", ".txt"))}
    assert "Root-Is-Purelib: false" in next(installed.glob("*.dist-info/WHEEL")).read_text()
    code = """
from batchnorm.ops import cpu
from batchnorm.ops.cpu import _kernels
assert cpu.__file__.startswith(PLACE)
print(cpu.available, cpu.reason)
print(_kernels.instruction_sets(), _kernels.instruction_set())
print(_kernels.use("last"), _kernels.instruction_set())
for wrong in ("best", "none", 7):
    try:
        _kernels.use(wrong)
    except (ValueError, TypeError) as error:
        print(type(error).__name__, error)
print(_kernels.instruction_set())
"""
    printed = python(installed, f"PLACE = {str(installed)!r}\n{code}").splitlines()
    assert printed[0].startswith("True compiled; second instructions, the best")
    assert printed[1:] == [
        "('second', 'last') second",
        "None last",
        "ValueError this processor does not run best instructions",
        "ValueError this build knows no instruction set 'none'",
        "TypeError bad argument type for built-in operation",
        "last",
    ]
    reason = "from batchnorm.ops import cpu; print(cpu.available, cpu.reason)"
    chosen = python(installed, reason, BATCHNORM_INSTRUCTION_SET="last")
    assert chosen == "True compiled; last instructions, as BATCHNORM_INSTRUCTION_SET says\n"
    # Turned off means not loaded: a binary that is loaded serves torch.ops.batchnorm.
    assert (
        python(
            installed,
            f"{reason}; import sys; print('batchnorm.ops.cpu._kernels' in sys.modules)",
            BATCHNORM_CPU_KERNELS="0",
        )
        == "False turned off by BATCHNORM_CPU_KERNELS=0\nFalse\n"
    )
    none = python(installed, reason, STAND_IN_RUNS_NOTHING="1")
    assert none == "False built, but this processor runs none of the instruction sets that they are built for\n"
    # Damaged, as by a copy that was cut short: the library works, and says why there are none.
    (installed / "batchnorm/ops/cpu/_kernels.abi3.so").write_bytes(b"no library")
    assert re.match(r"False built, but not loadable: .*_kernels\.abi3\.so: ", python(installed, reason))


@pytest.mark.parametrize(
    ("why", "environment", "torch_there", "warnings"),
    [
        ("BATCHNORM_BUILD was 0 at install; install again without it", {"BATCHNORM_BUILD": "0"}, True, 0),
        ("there was no C++ compiler (/no/compiler) at install; install g++", {"CXX": "/no/compiler"}, True, 1),
        ("building failed (CompileError); `pip install -v", {"CXX": "false"}, True, 1),
        ("the build saw no torch, which pip hides from it by default; install again with", {}, False, 1),
    ],
    ids=["unwanted", "no compiler", "compile error", "no torch"],
)
def test_where_nothing_can_be_built_the_wheel_is_pure_and_says_why(tree, why, environment, torch_there, warnings):
    # What an earlier build left must not get in.
    for folder in (f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}", "src"):
        stale = tree / folder / "batchnorm/ops/cpu/_kernels.abi3.so"
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.write_bytes(b"of an earlier build")
    wheel, result = build(tree, "wheel", torch_there=torch_there, **environment)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert (result.stdout + result.stderr).count("without its compiled CPU kernels") == warnings
    installed = unpacked(wheel)
    assert not list(installed.rglob("*.so"))
    assert "Root-Is-Purelib: true" in next(installed.glob("*.dist-info/WHEEL")).read_text()
    note = (installed / "batchnorm/ops/cpu/not_built.txt").read_text()
    assert note.startswith(f"not built: {why}")
    assert note.count("\n") == 1


def test_an_install_without_kernels_works_and_says_why(tree):
    installed = unpacked(build(tree, "wheel", BATCHNORM_BUILD="0")[0])
    code = """
import torch, batchnorm
from batchnorm.ops import cpu
batchnorm.BatchNorm1d(3)(torch.randn(4, 3)).sum().backward()
print(cpu.reason)
"""
    assert python(installed, code) == (installed / "batchnorm/ops/cpu/not_built.txt").read_text()
    (installed / "batchnorm/ops/cpu/not_built.txt").unlink()
    assert python(installed, code).startswith("not built: these are sources that nobody installed")


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"BATCHNORM_BUILD": "1", "CXX": "false"}, "'false'"),
        ({"BATCHNORM_BUILD": "1", "CXX": "/no/compiler"}, "there was no C++ compiler (/no/compiler)"),
        ({"BATCHNORM_BUILD": "yes"}, "BATCHNORM_BUILD is 'yes'. Mend: 0 never builds, 1 must build"),
    ],
    ids=["compile error", "no compiler", "unknown value"],
)
def test_where_kernels_are_a_must_a_failure_fails(tree, environment, says):
    wheel, result = build(tree, "wheel", check=False, **environment)
    assert wheel is None
    assert result.returncode != 0
    assert says in result.stderr


@needs_compiler
def test_a_source_distribution_builds(tree):
    archive, _ = build(tree, "sdist", torch_there=False)  # with nothing there to build the kernels
    with tarfile.open(archive) as opened:
        opened.extractall(tree / "unpacked", filter="data")
    (folder,) = (tree / "unpacked").iterdir()
    for kind in ("*.cpp", "*.h", "*.pyi"):
        assert {path.name for path in (folder / KERNELS).glob(kind)} == {p.name for p in (tree / KERNELS).glob(kind)}
    wheel, _ = build(folder, "wheel", BATCHNORM_BUILD="1")
    assert "-cp310-abi3-" in wheel.name


@needs_compiler
def test_an_editable_install_builds_into_the_sources_and_takes_it_away_again(tree):
    binary, note = tree / KERNELS / "_kernels.abi3.so", tree / KERNELS / "not_built.txt"
    build(tree, "editable")
    assert binary.is_file()
    assert not note.exists()
    build(tree, "editable", BATCHNORM_BUILD="0")
    assert not binary.exists()
    assert note.read_text().startswith("not built: BATCHNORM_BUILD was 0")
    build(tree, "editable")
    assert binary.is_file()
    assert not note.exists()


@needs_compiler
def test_only_what_changed_is_compiled_again(tree):
    def compiled(flags: str = "") -> set[str]:
        before = {path: path.stat().st_mtime_ns for path in objects()}
        run(sys.executable, "setup.py", "build_ext", "--inplace", where=tree, BATCHNORM_BUILD="1", CXXFLAGS=flags)
        return {path.stem for path in objects() if path.stat().st_mtime_ns != before.get(path)}

    def objects() -> Iterator[Path]:
        return (tree / "build").rglob("*.o")

    def later(path: Path) -> None:
        newest = max(each.stat().st_mtime_ns for each in objects())
        os.utime(path, ns=(newest + 1, newest + 1))

    own = tree / KERNELS / "own.h"
    own.touch()
    (tree / KERNELS / "stand_in.cpp").write_text(f'#include "own.h"{STAND_IN}')
    assert compiled() == {"module", "stand_in"}
    assert compiled() == set()
    later(own)
    assert compiled() == {"stand_in"}
    later(tree / KERNELS / "stand_in.cpp")
    assert compiled() == {"stand_in"}
    later(tree / KERNELS / "dispatch.h")
    assert compiled() == {"module", "stand_in"}
    binary = tree / KERNELS / "_kernels.abi3.so"
    assert compiled("""-DLAST='"renamed"'""") == {"module", "stand_in"}
    assert b"renamed" in binary.read_bytes()
    # The objects without that flag are still good. The binary that is newer than they are is not theirs.
    assert compiled() == set()
    assert b"renamed" not in binary.read_bytes()


# What the binary may take from CPython. Each is in the stable ABI of 3.10, by docs.python.org/3/c-api/stable.html;
# look there before a name is added.
STABLE_PYTHON = {
    "PyErr_Format",
    "PyErr_Occurred",
    "PyErr_SetString",
    "PyEval_RestoreThread",
    "PyEval_SaveThread",
    "PyExc_RuntimeError",
    "PyExc_TypeError",
    "PyExc_ValueError",
    "PyFloat_AsDouble",
    "PyLong_AsVoidPtr",
    "PyModuleDef_Init",
    "PyObject_CallMethodObjArgs",
    "PyObject_GetAttr",
    "PyTuple_GetItem",
    "PyTuple_New",
    "PyTuple_SetItem",
    "PyTuple_Size",
    "PyUnicode_AsUTF8AndSize",
    "PyUnicode_FromString",
    "PyUnicode_InternFromString",
    "_Py_Dealloc",
    "_Py_FalseStruct",
    "_Py_NoneStruct",
    "_Py_TrueStruct",
}
RUNTIME = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$")  # versions of the C and C++ libraries
SHIM = re.compile(r"^(aoti_torch|torch)_[a-z0-9_]+$")  # LibTorch's C functions; C++ ones begin with _Z
LINKER = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}


def strangers(symbols: str) -> list[str]:
    """What a symbol table takes from elsewhere than CPython's stable ABI, LibTorch's shim, C and C++."""
    names = [line.split()[-1] for line in symbols.splitlines()]
    known = STABLE_PYTHON | LINKER
    return [name for name in names if not (name in known or RUNTIME.search(name) or SHIM.match(name))]


@needs_binary
@pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm to read the symbol table")
def test_the_binary_keeps_to_stable_interfaces():
    symbols = run("nm", "-D", "--undefined-only", str(BINARY), where=ROOT).stdout
    assert "aoti_torch_" in symbols  # it is the binary, and its table was read
    assert strangers(symbols) == []


@pytest.mark.parametrize(
    "symbol",
    [
        "_ZN3c105ErrorC1Ev",
        "_ZN2at5emptyEv",
        "_ZTIN5torch4TypeE",
        "GOMP_parallel@GOMP_4.0",
        "omp_get_max_threads",
        "Py_IncRef",
    ],
)
def test_a_stranger_among_the_symbols_is_seen(symbol):
    table = f"                 U {symbol}\n                 U memcpy@GLIBC_2.14\n                 U aoti_torch_get_dim"
    assert strangers(table) == [symbol]


@needs_binary
@pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf to read what it is linked with")
def test_the_binary_is_linked_with_torch_cpu_and_nothing_else_of_torch():
    printed = run("readelf", "-d", str(BINARY), where=ROOT).stdout
    linked = {name.split(".so")[0] for name in re.findall(r"\(NEEDED\).*\[(.+)\]", printed)}
    assert "libtorch_cpu" in linked
    assert linked <= {"libtorch_cpu", "libstdc++", "libgcc_s", "libc", "libm", "ld-linux-x86-64", "ld-linux-aarch64"}
    assert not re.search(r"\((RPATH|RUNPATH)\)", printed)  # torch is loaded before, from wherever it is


ARM = "aarch64-linux-gnu-g++"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(ARM) is None, reason=f"there is no {ARM} to compile with")
@pytest.mark.parametrize("source", sorted(path.name for path in (ROOT / KERNELS).glob("*.cpp")))
def test_every_source_compiles_for_arm(source, tmp_path):
    settings = runpy.run_path(str(ROOT / "setup.py"))
    # Debian's pyconfig.h includes the one of the processor, which this machine does not have. That of its own says
    # the same: both have 64-bit pointers and longs.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    config = tmp_path / "aarch64-linux-gnu" / version / "pyconfig.h"
    config.parent.mkdir(parents=True)
    config.write_text(f'#include "{sysconfig.get_config_h_filename()}"\n')
    includes = [str(tmp_path), sysconfig.get_path("include"), str(Path(torch.__file__).parent / "include")]
    target = tmp_path / "object.o"
    run(
        ARM,
        *settings["FLAGS"],
        "-O0",  # quicker; what is checked is that the code is code there
        *(f"-D{name}={value}" for name, value in settings["MACROS"]),
        *(part for folder in includes for part in ("-isystem", folder)),
        "-fPIC",
        "-c",
        str(ROOT / KERNELS / source),
        "-o",
        str(target),
        where=tmp_path,
    )
    machine = int.from_bytes(target.read_bytes()[18:20], "little")
    assert machine == 183  # AArch64, in the ELF header


def test_kernels_can_be_turned_off():
    assert cpu._load({"BATCHNORM_CPU_KERNELS": "0"}) == (False, "turned off by BATCHNORM_CPU_KERNELS=0")


def test_an_environment_variable_of_unknown_value_is_an_error():
    with pytest.raises(ArgumentError, match=r"BATCHNORM_CPU_KERNELS is 'no'\. Mend: 0 leaves .* out"):
        cpu._load({"BATCHNORM_CPU_KERNELS": "no"})


@needs_kernels
def test_an_instruction_set_that_is_not_there_is_an_error():
    names = ", ".join(cpu._kernels.instruction_sets())
    with pytest.raises(ArgumentError, match=rf"BATCHNORM_INSTRUCTION_SET is 'sse', .* have {names}\. Mend: name one"):
        cpu._load({"BATCHNORM_INSTRUCTION_SET": "sse"})


@needs_kernels
def test_an_instruction_set_can_be_named():
    before = cpu._kernels.instruction_set()
    try:
        for name in cpu._kernels.instruction_sets():
            available, reason = cpu._load({"BATCHNORM_INSTRUCTION_SET": name})
            assert available
            assert reason == f"compiled; {name} instructions, as BATCHNORM_INSTRUCTION_SET says"
            assert cpu._kernels.instruction_set() == name
        assert cpu._load({"BATCHNORM_CPU_KERNELS": "1"})[0]
    finally:
        cpu._kernels.use(before)


def test_an_old_torch_is_named(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert cpu._load({}) == (False, "torch 2.9.1+cpu is too old: they need 2.10 or later")
