"""The rules that kernels keep, checked on the syntax tree, and what compiling them must come to."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import vmbk
from tests.test_kernels import GOLDEN_XXH3_64, compiled_only
from vmbk.kernels.jit import Kernel

PACKAGE = Path(vmbk.__file__).parent
KERNELS = PACKAGE / "kernels"
TESTS = Path(__file__).parent
COMPILING = KERNELS / "compiling.py"
# What kernels are made of and by: its functions run while kernels are compiled or loaded.
INTRINSICS, LOWERINGS = KERNELS / "intrinsics.py", KERNELS / "lowerings.py"
MACHINERY = {"__init__", "__main__", "jit", "objects", "compiling", "intrinsics", "lowerings"}
KERNEL_MODULES = sorted(path for path in KERNELS.glob("*.py") if path.stem not in MACHINERY)
COMPILERS = {"njit", "jit", "vectorize", "guvectorize", "stencil", "cfunc", "prange", "jitclass"}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def decorator_calls(function: ast.FunctionDef) -> dict[str, ast.Call]:
    """Decorators that are calls of a plain name, by that name."""
    return {
        decorator.func.id: decorator
        for decorator in function.decorator_list
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name)
    }


def compiler_uses(tree: ast.AST) -> list[str]:
    """Every way into Numba's compilers: imported by name, or reached through the module."""
    numba_names = {
        alias.asname or alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name.split(".")[0] == "numba"
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "numba":
            found += [alias.name for alias in node.names if alias.name in COMPILERS | {"*"}]
        if isinstance(node, ast.Attribute) and node.attr in COMPILERS:
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in numba_names:
                found.append(node.attr)
    return found


def kernel_faults(tree: ast.AST) -> list[str]:
    """What is wrong with the functions of a module of kernels."""
    faults = []
    for function in functions(tree):
        kernel = decorator_calls(function).get("kernel")
        if kernel is None or len(function.decorator_list) != 1:
            faults.append(f"{function.name} is not decorated with @kernel(signature) alone")
        elif kernel.keywords or len(kernel.args) != 1 or not isinstance(kernel.args[0], ast.Call):
            faults.append(f"{function.name} has no explicit signature")
    faults += [
        f"line {node.lineno}: {type(node).__name__}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise | ast.Assert | ast.Try | ast.Lambda | ast.AsyncFunctionDef)
    ]
    return faults


def called_names(tree: ast.AST) -> set[str]:
    return {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def twins_compared() -> set[str]:
    """Names used as ``naive.name`` anywhere in the tests."""
    return {
        node.attr
        for path in TESTS.glob("test_*.py")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "naive"
    }


def test_the_compiler_is_called_in_one_module_only() -> None:
    paths = [path for path in PACKAGE.rglob("*.py") if path != COMPILING]
    assert len(paths) > len(KERNEL_MODULES)
    uses = {str(path): compiler_uses(tree_of(path)) for path in paths}
    assert {path: names for path, names in uses.items() if names} == {}


@pytest.mark.parametrize("path", KERNEL_MODULES, ids=lambda path: path.stem)
def test_every_function_is_a_kernel_that_never_raises(path: Path) -> None:
    assert kernel_faults(tree_of(path)) == []


def test_every_kernel_has_a_twin_that_it_is_compared_with() -> None:
    twins = {function.name for function in functions(tree_of(TESTS / "naive.py"))}
    kernels = {f.name for path in KERNEL_MODULES for f in functions(tree_of(path))}
    public = {name for name in kernels if not name.startswith("_")}
    assert public - twins == set()
    assert public - twins_compared() == set()
    # What has no twin of its own is a part of a kernel that has one.
    called = set.union(*(called_names(tree_of(path)) for path in KERNEL_MODULES))
    assert kernels - public - called == set()


def test_every_operation_has_a_definition_and_a_lowering() -> None:
    definitions = {f.name for f in functions(tree_of(INTRINSICS)) if f.name[0] == "_"}
    lowerings = {f.name for f in tree_of(LOWERINGS).body if isinstance(f, ast.FunctionDef)}
    public = {name for name in lowerings if name[0] != "_"}
    assert len(public) > 5
    operations = {
        node.targets[0].id: ast.unparse(node.value)
        for node in tree_of(INTRINSICS).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert {name for name, value in operations.items() if value.startswith("_operation")} == public
    for name in public:
        assert operations[name] == f"_operation(_{name})"
        assert f"_{name}" in definitions


def test_kernels_are_imported_where_they_are_used() -> None:
    """Importing the package must compile nothing, and load no compiler."""
    eager = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if KERNELS not in path.parents
        for node in tree_of(path).body
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vmbk.kernels"))
        or (isinstance(node, ast.Import) and any("kernels" in a.name for a in node.names))
    ]
    assert eager == []


@pytest.mark.parametrize(
    "source",
    [
        "from numba import njit",
        "from numba import njit as fast",
        "from numba import *",
        "from numba.experimental import jitclass",
        "import numba\n@numba.njit\ndef f(): pass",
        "import numba as nb\n@nb.vectorize()\ndef f(): pass",
        "import numba.core\nnumba.core.decorators.jit(f)",
        "import numba\nfor i in numba.prange(3): pass",
    ],
)
def test_bare_use_of_a_compiler_is_found(source: str) -> None:
    assert compiler_uses(ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "def f(): pass",
        "@kernel\ndef f(): pass",
        "@kernel()\ndef f(): pass",
        "@kernel(signature)\ndef f(): pass",
        "@kernel(void(U8), cache=False)\ndef f(): pass",
        "@other\n@kernel(void(U8))\ndef f(): pass",
        "@kernel(void(U8))\ndef f(a):\n    raise ValueError",
        "@kernel(void(U8))\ndef f(a):\n    assert a",
    ],
)
def test_bad_kernels_are_found(source: str) -> None:
    assert kernel_faults(ast.parse(source))
    assert kernel_faults(ast.parse("@kernel(void(U8))\ndef f(a):\n    a[0] = 1")) == []


# --- What compiling them comes to ----------------------------------------------------------------


@compiled_only
@pytest.mark.parametrize("path", KERNEL_MODULES, ids=lambda path: path.stem)
def test_kernels_release_the_gil_and_compile_once(path: Path) -> None:
    module = import_module(f"vmbk.kernels.{path.stem}")
    for function in functions(tree_of(path)):
        kernel = getattr(module, function.name)
        assert isinstance(kernel, Kernel)
        options = kernel.dispatcher.targetoptions
        assert options["nogil"]
        assert not options.get("fastmath", False)
        assert len(kernel.dispatcher.signatures) == 1


@compiled_only
def test_arrow_and_writable_arrays_share_one_compiled_version() -> None:
    from vmbk.kernels.bitmap import mark_ranges
    from vmbk.kernels.hash import xxh3_64, xxh3_64_blocks

    writable = np.arange(10_000, dtype=np.uint8)
    arrow = pa.array(writable).to_numpy(zero_copy_only=True)
    assert not arrow.flags.writeable
    assert xxh3_64(arrow) == xxh3_64(writable)
    digests = np.zeros((2, 3), np.uint64)
    for row, data in zip(digests, (arrow, writable), strict=True):
        xxh3_64_blocks(data, 4096, row)
    assert digests[0].all()
    assert np.array_equal(digests[0], digests[1])

    bits = np.zeros(1, np.uint8)
    offsets = pa.array([0, 8192], pa.int64()).to_numpy(zero_copy_only=True)
    mark_ranges(bits, offsets, np.array([1, 1]), 4096)
    assert bits[0] == 0b101


CHECK_DIGESTS = """
import json, sys
import numpy as np
from vmbk.kernels.hash import xxh3_64
for size, digest in json.loads(sys.argv[1]).items():
    data = np.frombuffer(bytes(i % 251 for i in range(int(size))), np.uint8)
    assert f"{int(xxh3_64(data)):016x}" == digest, size
print("right")
"""


def start_check(cache: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a process that compares golden digests, with a cache folder of its own."""
    settings = {"PYTHONPATH": str(PACKAGE.parent), "NUMBA_CACHE_DIR": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", CHECK_DIGESTS, json.dumps(GOLDEN_XXH3_64)],
        env=os.environ | settings | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@compiled_only
@pytest.mark.slow
def test_digests_on_a_processor_without_wide_vectors(tmp_path: Path) -> None:
    process = start_check(tmp_path, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    assert process.communicate(timeout=120) == ("right\n", "")


@pytest.mark.slow
def test_digests_without_a_compiler(tmp_path: Path) -> None:
    ignore = {"PYTHONWARNINGS": "ignore::RuntimeWarning"}  # NumPy scalars warn as they wrap around
    process = start_check(tmp_path, NUMBA_DISABLE_JIT="1", **ignore)
    assert process.communicate(timeout=120) == ("right\n", "")


@compiled_only
@pytest.mark.slow
def test_processes_that_fill_the_cache_together_are_all_right(tmp_path: Path) -> None:
    for _ in range(2):  # an empty cache, then the one that they left
        processes = [start_check(tmp_path) for _ in range(4)]
        for process in processes:
            assert process.communicate(timeout=240) == ("right\n", "")
    assert list(tmp_path.rglob("hash.xxh3_64.o"))


# --- Machine code from the cache -----------------------------------------------------------------

WARM = """
import sys
import numpy as np
from vmbk.kernels.hash import xxh3_64
assert int(xxh3_64(np.zeros(0, np.uint8))) == 0x2D06800538D394C2
assert ("numba" in sys.modules) == (sys.argv[1] == "compiles")
if sys.argv[1] == "all":
    # One that calls nothing of Numba's came first; these make arrays and sort them.
    import vmbk
    trace = vmbk.read_trace(vmbk.dataset_path("ext4-sqlite"))
    assert vmbk.churn(trace).height > 0
    from vmbk.kernels import churn, log, requests, text, updates
    from vmbk.kernels.jit import Kernel
    for family in (churn, log, requests, text, updates):
        for kernel in vars(family).values():
            if isinstance(kernel, Kernel) and kernel.public:
                kernel.load()
print("right")
"""


def run_warm(what: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WARM, what], capture_output=True, text=True, timeout=240,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)} | environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


@compiled_only
def test_compiled_code_needs_no_compiler_to_run(tmp_path: Path) -> None:
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    run_warm("compiles", **cache)
    run_warm("warm", **cache)
    (code,) = tmp_path.rglob("hash.xxh3_64.o")
    whole = code.read_bytes()
    for damaged in (whole[:-1], whole[:100] + b"?" + whole[101:], b"", b"vmbk"):
        code.write_bytes(damaged)
        run_warm("compiles", **cache)
        assert code.read_bytes().partition(b"\n")[0].split()[0] == b"vmbk-kernel-2"
        run_warm("warm", **cache)


@compiled_only
def test_kernels_that_make_arrays_run_in_a_fresh_process() -> None:
    run_warm("all")  # compiles what is missing
    run_warm("all")


@compiled_only
def test_arguments_are_checked_before_machine_code_sees_them() -> None:
    from vmbk.kernels.bitmap import mark_range
    from vmbk.kernels.hash import xxh3_64, xxh3_64_blocks

    data, out = np.zeros(4096, np.uint8), np.zeros(1, np.uint64)
    read_only = out.copy()
    read_only.flags.writeable = False
    for wrong in (
        (data.astype(np.int8), 4096, out), (data[::2], 4096, out), (data.reshape(2, -1), 4096, out),
        (b"bytes", 4096, out), (data, 4096, read_only), (data, 4096, out.astype(np.int64)),
        (data, 4096), (data, 4096, out, out), (data, 1.5, out), (data, None, out),
        (data, 4096, np.zeros(9, np.uint8)[1:].view(np.uint64)),
    ):  # fmt: skip
        with pytest.raises((TypeError, AttributeError)):
            xxh3_64_blocks(*wrong)
    with pytest.raises(OverflowError, match="int64"):
        mark_range(data, 1 << 63, 1, 4096)
    assert f"{xxh3_64(data[:0]):016x}" == GOLDEN_XXH3_64[0]


@compiled_only
def test_a_job_compiles_before_it_is_timed(tmp_path: Path) -> None:
    code = (
        "import sys; from vmbk.detect.scan import KERNELS, load_kernels; load_kernels();"
        "print(*KERNELS, 'numba' in sys.modules)"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True,
            env=os.environ | {"PYTHONPATH": str(PACKAGE.parent), "NUMBA_CACHE_DIR": str(tmp_path)},
        ).stdout.split()
        for _ in range(2)
    ]  # fmt: skip
    assert [words[-1] for words in told] == ["True", "False"]
    assert {path.name.split(".")[0] for path in tmp_path.rglob("*.o")} == set(told[0][:-1])
