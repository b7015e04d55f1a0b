"""The stubs of NVIDIA's libraries: that none is missing, that they write where the real ones would, and that torch
gets along with them. Where a rule needs NVIDIA's headers or torch, it is checked against the installed ones.
"""

from __future__ import annotations

import ast
import ctypes
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fork_server import ForkServer
from hypothesis import given, settings
from hypothesis import strategies as st

from poolalloc import sim

ROOT = Path(__file__).resolve().parents[2]
STUBS = ROOT / "csrc/simgpu/stubs"


def listed_symbols() -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for line in (STUBS / "library_symbols.txt").read_text().splitlines():
        if line.startswith("["):
            group = groups.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            group.append(line)
    return groups


def all_listed() -> set[str]:
    return {symbol for group in listed_symbols().values() for symbol in group}


def handwritten_symbols() -> list[str]:
    """Every function that has behaviour of its own, from the sources' macros."""
    names: list[str] = []
    for file in [*STUBS.glob("*.cpp"), STUBS / "outputs.def"]:
        text = re.sub(r"(?m)^#define(?:.*\\\n)*.*", "", file.read_text())
        names += re.findall(r"SIMGPU_STUB\s[^;{(]*?\b(\w+)\(", text)
        names += re.findall(r"(?m)^(?:OUTPUT2?|BLAS_\w+|CHOOSE|FIND|REFUSE)\((\w+)", text)
    return names


# --- the list --------------------------------------------------------------------------------------------------------


def test_the_list_is_sorted_and_without_repeats() -> None:
    groups = listed_symbols()
    assert list(groups) == sorted(groups)
    for symbols in groups.values():
        assert symbols == sorted(set(symbols))


def test_every_function_with_behaviour_is_one_that_torch_calls() -> None:
    names = handwritten_symbols()
    assert len(names) == len(set(names))
    assert len(names) > 100, "the sources are no longer understood by this test"
    driver = set(re.findall(r"FUNCTION\(\w+, \d+, (\w+)\)", (STUBS.parent / "driver.def").read_text()))
    assert set(names) <= all_listed() | driver


def torch_libraries() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        pytest.skip("torch is not installed")
    return Path(spec.origin).parent / "lib"


def test_the_list_covers_the_installed_torch() -> None:
    command = [sys.executable, str(ROOT / "tools/list_cuda_symbols.py"), str(torch_libraries())]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    imported = set(re.findall(r"(?m)^\w+$", output))
    assert len(imported) > 400
    assert imported <= all_listed()


def test_the_library_exports_every_listed_function() -> None:
    command = ["nm", "-D", "--defined-only", str(sim.library_folder() / "libsimgpu.so")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert all_listed() <= {line.split()[-1] for line in output.splitlines()}


# --- the table of outputs, against the libraries' own headers --------------------------------------------------------


def output_rows() -> list[tuple[str, int, str]]:
    text = (STUBS / "outputs.def").read_text()
    rows = []
    for function, arguments in re.findall(r"(?m)^OUTPUT2?\((\w+), *(.+)\)$", text):
        parts = [part.strip() for part in arguments.split(",")]
        rows += [(function, int(parts[at]), parts[at + 1]) for at in range(0, len(parts), 3)]
    return rows


def header_text() -> str:
    found: list[Path] = []
    for folder in (torch_libraries().parents[1] / "nvidia").glob("*/include"):
        patterns = ["cublas*.h", "cusparse*.h", "cusolver*.h", "cufft*.h", "cudnn*.h", "nvrtc.h", "cupti*.h", "nccl.h"]
        found += [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    if not found:
        pytest.skip("NVIDIA's headers are not installed")
    text = "\n".join(file.read_text(errors="replace") for file in found)
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL)
    return re.sub(r"(?m)^\s*#(?:.*\\\n)*.*$", "", text)


# How the headers spell what outputs.def calls by its size; an enumeration or a handle goes by its last letters.
SPELLINGS = {
    "int": r"(int|int32_t|cusolver_int_t)\s*\*",
    "std::size_t": r"size_t\s*\*",
    "std::uint32_t": r"uint32_t\s*\*",
    "std::uint64_t": r"uint64_t\s*\*",
    "char": r"char\s*\*",
    "void*": r"(\w+_t|\w+Info_t|cusparseSp\w+|csr\w+|bsr\w+|nvrtcProgram|syevjInfo_t|CUpti_SubscriberHandle)\s*\*",
}


def parameters(text: str) -> list[str]:
    return [] if text.strip() in ("", "void") else [" ".join(parameter.split()) for parameter in text.split(",")]


def declared(function: str, headers: str) -> list[str] | None:
    """The parameters of a function as the headers have them; None for a library whose headers are not installed."""
    declaration = re.search(rf"\b{function}\s*\(([^()]*)\)\s*(?:CU\w+_DEPRECATED\w*)?\s*;", headers)
    return None if declaration is None else parameters(declaration[1])


def test_outputs_are_written_where_the_headers_have_them() -> None:
    headers = header_text()
    checked = 0
    for function, argument, kind in output_rows():
        real = declared(function, headers)
        if real is None:
            continue
        parameter = real[argument]
        assert re.match(rf"(const )?{SPELLINGS[kind]}", parameter), f"{function}, argument {argument}: {parameter}"
        assert not parameter.startswith("const"), f"{function}, argument {argument} is an input: {parameter}"
        checked += 1
    assert checked > 0.9 * len(output_rows())


def test_functions_written_out_take_the_parameters_that_the_headers_have() -> None:
    headers = header_text()
    checked = 0
    for file in STUBS.glob("*.cpp"):
        text = re.sub(r"//[^\n]*", "", file.read_text())
        text = re.sub(r"(?m)^#define(?:.*\\\n)*.*", "", text)
        for function, ours in re.findall(r"SIMGPU_STUB\s[^;{(]*?\b(\w+)\(([^)]*)\)", text):
            real = declared(function, headers)
            if real is None:
                continue
            assert len(parameters(ours)) == len(real), f"{function}: {real}"
            for mine, theirs in zip(parameters(ours), real, strict=True):
                # Handles and descriptors are pointers behind a name there and plain pointers here.
                hidden = not re.match(r"(const )?(int|unsigned|size_t|void|float|char|u?int\d+_t)\b", theirs)
                difference = mine.count("*") - theirs.count("*") - theirs.count("[")
                assert difference == 0 or (hidden and difference == 1), f"{function}: {mine} for {theirs}"
            checked += 1
    assert checked > 50


# --- behaviour -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(sim.library_folder() / "libsimgpu.so"))


@pytest.mark.parametrize("creator", ["cublasCreate_v2", "cusolverDnCreate", "cusparseCreate", "cudnnCreate"])
def test_handles_are_distinct_and_not_null(library: ctypes.CDLL, creator: str) -> None:
    handles = [ctypes.c_void_p() for _ in range(3)]
    for handle in handles:
        assert library[creator](ctypes.byref(handle)) == 0
    assert len({handle.value for handle in handles} - {None, 0}) == 3


def test_a_cublas_handle_remembers_its_modes(library: ctypes.CDLL) -> None:
    handle, mode = ctypes.c_void_p(), ctypes.c_int(-1)
    library.cublasCreate_v2(ctypes.byref(handle))
    for setter, getter in (("SetPointerMode_v2", "GetPointerMode_v2"), ("SetMathMode", "GetMathMode")):
        library["cublas" + setter](handle, 1)
        library["cublas" + getter](handle, ctypes.byref(mode))
        assert mode.value == 1
    result = ctypes.c_float(7)
    library.cublasSnrm2_v2(handle, 1, None, 1, ctypes.byref(result))
    assert result.value == 7, "with the pointer mode on the device the result is not the host's to see"
    library.cublasSetPointerMode_v2(handle, 0)
    library.cublasSnrm2_v2(handle, 1, None, 1, ctypes.byref(result))
    assert result.value == 0
    library.cublasDestroy_v2(handle)


@given(
    kind=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 1)),
    sizes=st.tuples(st.integers(1, 9), st.integers(2, 9), st.integers(1, 9), st.integers(1, 3)),
    type_=st.sampled_from([(0, 4), (1, 8), (2, 2), (9, 2)]),
)
@settings(deadline=None)
def test_the_weights_of_a_recurrent_network_fill_their_space_without_overlap(
    library: ctypes.CDLL, kind: tuple[int, int, int], sizes: tuple[int, int, int, int], type_: tuple[int, int]
) -> None:
    cell, bias, bidirectional = kind
    input_size, hidden, projection, layers = sizes
    lstm = 2
    projection = projection if cell == lstm and projection < hidden else hidden
    rnn, matrix, vector = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    library.cudnnCreateRNNDescriptor(ctypes.byref(rnn))
    library.cudnnCreateTensorDescriptor(ctypes.byref(matrix))
    library.cudnnCreateTensorDescriptor(ctypes.byref(vector))
    shape = (0, cell, bias, bidirectional, 0, type_[0], 0, 0, input_size, hidden, projection, layers, None, 0)
    library.cudnnSetRNNDescriptor_v8(rnn, *shape)
    size = ctypes.c_size_t()
    library.cudnnGetRNNWeightSpaceSize(None, rnn, ctypes.byref(size))

    def extent(descriptor: ctypes.c_void_p) -> int:
        element, count = ctypes.c_int(), ctypes.c_int()
        dimensions, strides = (ctypes.c_int * 3)(), (ctypes.c_int * 3)()
        library.cudnnGetTensorNdDescriptor(
            descriptor, 3, ctypes.byref(element), ctypes.byref(count), dimensions, strides
        )
        assert (element.value, count.value) == (type_[0], 3)
        return dimensions[0] * dimensions[1] * dimensions[2] * type_[1]

    base = 1 << 20
    pieces: list[tuple[int, int]] = []
    gates = {lstm: 4, 3: 3}.get(cell, 1)
    for layer in range(layers * (1 + bidirectional)):
        for part in range(2 * gates + (projection != hidden)):
            at, bias_at = ctypes.c_void_p(), ctypes.c_void_p()
            library.cudnnGetRNNWeightParams(
                None,
                rnn,
                layer,
                size,
                ctypes.c_void_p(base),
                part,
                matrix,
                ctypes.byref(at),
                vector,
                ctypes.byref(bias_at),
            )
            pieces.append((at.value or 0, extent(matrix)))
            if bias_at.value:
                pieces.append((bias_at.value, extent(vector)))
    end = base
    for start, length in sorted(pieces):
        assert start == end
        end = start + length
    assert end == base + size.value
    library.cudnnDestroyRNNDescriptor(rnn)
    library.cudnnDestroyTensorDescriptor(matrix)
    library.cudnnDestroyTensorDescriptor(vector)


# --- torch -----------------------------------------------------------------------------------------------------------

PROGRAM = Path(__file__).with_name("library_calls.py")


def program_parts() -> list[str]:
    """The functions of library_calls.py that take nothing: each drives one library or kind of network."""
    functions = [node for node in ast.parse(PROGRAM.read_text()).body if isinstance(node, ast.FunctionDef)]
    return [function.name for function in functions if not function.args.args and not function.args.vararg]


@pytest.fixture(scope="module")
def torch_run(fork_server: ForkServer) -> sim.SimulatedRun:
    torch_libraries()
    return fork_server.simulated([str(PROGRAM), *program_parts()], base=os.environ, timeout=500)


@pytest.mark.parametrize("part", program_parts())
def test_torch_gets_along_with_the_stubs(torch_run: sim.SimulatedRun, part: str) -> None:
    assert f"ok {part}\n" in (torch_run.stdout or ""), (
        f"exit code {torch_run.returncode}\n{torch_run.stdout}{torch_run.stderr}"
    )


def test_torch_breaks_no_rule_of_the_device(torch_run: sim.SimulatedRun) -> None:
    assert torch_run.report is not None
    assert torch_run.report["violations"] == {}
    assert torch_run.report["devices"][0]["peak_used_bytes"] > 0
