"""LLVM text to objects, assembly and linked code."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from llvmlite import binding  # pyright: ignore[reportMissingTypeStubs]

from codegen import jit
from symgrad.errors import CompileError
from symgrad.record import replace

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WIDTHS = [width for width in (16, 32, 64) if width <= jit.host_target().vector_bytes]
DOUBLE = "define double @twice(double %x) nounwind {\n  %y = fadd double %x, %x\n  ret double %y\n}\n"
FMA = """
declare <8 x float> @llvm.fma.v8f32(<8 x float>, <8 x float>, <8 x float>)
declare double @llvm.fma.f64(double, double, double)
@table = private constant [8 x float] [float 1.0, float 2.0, float 3.0, float 4.0,
                                       float 5.0, float 6.0, float 7.0, float 8.0]
define void @vector(ptr %a) nounwind {
  %x = load <8 x float>, ptr %a, align 4
  %t = load <8 x float>, ptr @table, align 4
  %y = call <8 x float> @llvm.fma.v8f32(<8 x float> %x, <8 x float> %x, <8 x float> %t)
  store <8 x float> %y, ptr %a, align 4
  ret void
}
define double @scalar(double %a, double %b) nounwind {
  %y = call double @llvm.fma.f64(double %a, double %a, double %b)
  ret double %y
}
"""


def function(library: jit.Library, symbol: str, arguments: int = 1):
    return ctypes.CFUNCTYPE(ctypes.c_double, *(ctypes.c_double,) * arguments)(library.address(symbol))


def test_host_target_describes_this_machine() -> None:
    target = jit.host_target()
    assert target is jit.host_target()
    assert target == replace(jit.host_target(target.vector_bytes), name=target.name)
    assert target.l2 >= target.l1 >= 8 << 10
    assert target.triple


@pytest.mark.parametrize("width", WIDTHS)
def test_host_target_of_each_width(width: int) -> None:
    target = jit.host_target(width)
    assert target.vector_bytes == width
    assert target.masked == (width == 64)
    if target.triple.startswith("x86_64"):
        assert target.registers == (32 if width == 64 else 16)
        assert target.fma == (width > 16)
        wide = "define void @f(ptr %p) nounwind {\n  %x = load <16 x float>, ptr %p, align 4\n"
        wide += "  %y = fadd <16 x float> %x, %x\n  store <16 x float> %y, ptr %p, align 4\n  ret void\n}\n"
        text = jit.assembly(wide, target)
        widest = max((name for name in ("zmm", "ymm", "xmm") if name in text), key=("xmm", "ymm", "zmm").index)
        assert widest == {16: "xmm", 32: "ymm", 64: "zmm"}[width]
        assert ("vadd" in text) == (width > 16)


@pytest.mark.parametrize("width", [0, 8, 128, 24])
def test_width_the_machine_lacks(width: int) -> None:
    with pytest.raises(CompileError, match=f"{width} bytes"):
        jit.host_target(width)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("passes", [False, True])
@pytest.mark.parametrize("level", [0, 2])
def test_fused_multiply_add_rounds_once(width: int, passes: bool, level: int) -> None:
    """Through the instruction, or through the math library where the target has none: the same bits."""
    library = jit.link(
        [jit.compile_object(FMA, jit.host_target(width), passes=passes, level=level)], ["vector", "scalar"]
    )
    x = 1 + 2.0**-52
    assert function(library, "scalar", 2)(x, -x * x) == 2.0**-104
    a = np.arange(8, dtype=np.float32)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(library.address("vector"))(a.ctypes.data)
    assert np.array_equal(a, np.arange(8) ** 2 + np.arange(1, 9))


def test_objects_refer_to_each_other_and_to_the_process() -> None:
    caller = """
    declare double @twice(double)
    declare double @cbrt(double)
    define double @f(double %x) nounwind {
      %y = call double @twice(double %x)
      %z = call double @cbrt(double %y)
      ret double %z
    }
    """
    target = jit.host_target()
    library = jit.link([jit.compile_object(text, target) for text in (caller, DOUBLE)], ["f", "twice"])
    assert function(library, "f")(4.0) == 2.0
    assert function(library, "twice")(4.0) == 8.0
    with pytest.raises(KeyError):
        library.address("cbrt")


def test_libraries_with_equal_symbols_live_side_by_side() -> None:
    target = jit.host_target()
    thrice = DOUBLE.replace("fadd double %x, %x", "fmul double %x, 3.0")
    first, second = (jit.link([jit.compile_object(text, target)], ["twice"]) for text in (DOUBLE, thrice))
    assert (function(first, "twice")(2.0), function(second, "twice")(2.0)) == (4.0, 6.0)
    del first
    gc.collect()
    assert function(second, "twice")(2.0) == 6.0


def test_text_that_does_not_parse_names_the_line() -> None:
    with pytest.raises(CompileError, match=r"line 2, column 19: .*'%x = add i32 1, 1.0'"):
        jit.compile_object("define void @f() {\n  %x = add i32 1, 1.0\n  ret void\n}", jit.host_target())


def test_invalid_text_names_the_instruction() -> None:
    text = "define i32 @f(i1 %c) {\ne:\n  br i1 %c, label %a, label %b\na:\n  %x = add i32 1, 2\n  br label %b\n"
    with pytest.raises(CompileError, match=r"dominate[^$]*%x = add i32 1, 2"):
        jit.assembly(text + "b:\n  ret i32 %x\n}", jit.host_target())


def test_missing_symbols() -> None:
    target = jit.host_target()
    with pytest.raises(CompileError, match="absent_function"):
        jit.link([jit.compile_object(DOUBLE, target)], ["absent_function"])
    text = "declare void @absent_function()\ndefine void @f() {\n  call void @absent_function()\n  ret void\n}"
    with pytest.raises(CompileError, match="neither in the objects nor in this process"):
        jit.link([jit.compile_object(text, target)], ["f"])


def test_unknown_machine() -> None:
    with pytest.raises(CompileError, match="nothing-at-all"):
        jit.assembly(DOUBLE, replace(jit.host_target(), triple="nothing-at-all"))


def test_assembly_for_cuda() -> None:
    target = replace(jit.host_target(), triple="nvptx64-nvidia-cuda", cpu="sm_80", features="+ptx70")
    text = "define ptx_kernel void @k(ptr addrspace(1) %a) {\n  store float 1.0, ptr addrspace(1) %a\n  ret void\n}"
    ptx = jit.assembly(text, target)
    for part in (".entry k", "st.global", ".target sm_80"):
        assert part in ptx


def test_compiling_is_deterministic() -> None:
    assert jit.compile_object(FMA, jit.host_target()) == jit.compile_object(FMA, jit.host_target())


def test_threads_compile_at_once() -> None:
    results: list[float] = []

    def work() -> None:
        for _ in range(5):
            library = jit.link([jit.compile_object(DOUBLE, jit.host_target())], ["twice"])
            results.append(function(library, "twice")(2.0))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [4.0] * 20


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
@pytest.mark.parametrize("passes", [False, True])
def test_nothing_is_kept(passes: bool) -> None:
    """A pass manager that is not freed keeps 65 KiB per use."""

    def resident() -> int:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def work() -> None:
        for _ in range(60):
            jit.link([jit.compile_object(FMA, jit.host_target(), passes=passes)], ["vector"])

    work()
    before = resident()
    work()
    assert resident() - before < 60 * (16 << 10)


@pytest.mark.parametrize(
    "code",
    [
        "import codegen.jit, codegen.threads; assert 'llvmlite' not in sys.modules",
        "from codegen import jit; kept = jit.link([jit.compile_object(text, jit.host_target())], ['twice'])",
        "from codegen import jit; sys.kept = jit.link([jit.compile_object(text, jit.host_target())], ['twice'])",
    ],
)
def test_import_does_nothing_and_exit_is_clean(code: str) -> None:
    source = f"import sys; sys.path.insert(0, {ROOT!r}); text = {DOUBLE!r}; {code}"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("helpers", [0, 1, 3])
def test_a_batch_makes_the_objects_of_its_modules(helpers: int) -> None:
    target = jit.host_target()
    texts = [DOUBLE.replace("twice", f"twice{k}") for k in range(12)]
    with jit.Batch(target, helpers) as batch:
        numbers = [batch.add(text) for text in texts]
        made = [batch.object(number) for number in reversed(numbers)][::-1]
    assert made == [jit.compile_object(text, target) for text in texts]
    assert not [t for t in threading.enumerate() if t.name.startswith("symgrad compiler")]


@pytest.mark.parametrize("helpers", [0, 2])
def test_a_batch_that_is_left_early(helpers: int) -> None:
    """Modules nobody asked for, a wrong one, an error of the caller: the next batch finds all in order."""
    target = jit.host_target()

    def wrong() -> None:
        with jit.Batch(target, helpers) as batch:
            for _ in range(5):
                batch.add(DOUBLE)
            batch.object(batch.add("nonsense"))

    with pytest.raises(CompileError, match="does not parse"):
        wrong()
    assert not [t for t in threading.enumerate() if t.name.startswith("symgrad compiler")]
    with jit.Batch(target, helpers) as batch:
        assert batch.object(batch.add(DOUBLE)) == jit.compile_object(DOUBLE, target)


def test_libraries_dropped_while_another_thread_compiles_are_closed_later() -> None:
    """The collector may drop one in a thread that a batch waits for."""
    target = jit.host_target()
    libraries = [jit.link([jit.compile_object(DOUBLE, target)], ["twice"]) for _ in range(3)]
    with jit.Batch(target, 1):
        thread = threading.Thread(target=libraries.clear)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
        assert len(jit._dropped) == 3
    assert not jit._dropped


LOOP = """\
define void @sum(ptr %to, i64 %count) {
start:
  br label %next
next:
  %k = phi i64 [ 0, %start ], [ %more, %next ]
  %far = mul i64 %k, 136
  %one = getelementptr i8, ptr %to, i64 %far
  %two = getelementptr i8, ptr %one, i64 72
  store i64 %k, ptr %one, align 8
  store i64 %k, ptr %two, align 8
  %more = add i64 %k, 1
  %goes = icmp slt i64 %more, %count
  br i1 %goes, label %next, label %end
end:
  ret void
}
"""


needs_the_option = pytest.mark.skipif(
    jit._llvm().llvm_version_info[0] not in jit.LOOPS_LEFT_ALONE, reason="for versions of LLVM known to have the option"
)


@needs_the_option
def test_loops_are_left_alone_here_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others compile before, between and after ours is what it would be without us, whatever fails meanwhile."""
    target = jit.host_target()

    text = f'target triple = "{target.triple}"\n{LOOP}'

    def by_others() -> str:
        return jit._machine(target, 2).emit_assembly(binding.parse_assembly(text))

    before = by_others()
    ours = jit.assembly(LOOP, target)
    assert by_others() == before
    assert ours != before
    with jit.Batch(target, 0) as batch:
        batch.add(LOOP)
        assert jit.assembly(LOOP, target) == ours
        batch.add(LOOP)
    assert by_others() == before

    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("no more threads")

    def without_threads() -> None:
        with monkeypatch.context() as patch, jit.Batch(target, 1) as batch:
            patch.setattr(threading.Thread, "start", no_more)
            batch.add(LOOP)

    with pytest.raises(RuntimeError, match="no more threads"):
        without_threads()
    assert by_others() == before
    with pytest.raises(ZeroDivisionError), jit._compiling(), jit._compiling():
        _ = 1 / 0
    assert by_others() == before
    assert jit.assembly(LOOP, target) == ours
