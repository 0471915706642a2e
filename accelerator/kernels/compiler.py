"""The kernels as machine code: compiled by numba once for a processor, kept in the cache, loaded without numba.

numba needs seconds to compile and a second to be imported. So what it makes of a unit is put into an object file, and
LLVM's linker (llvmlite) puts that into the process.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..cache import ContentCache, default_root, make_key, untrusted
from ..errors import CacheError, SessionError
from ..export import sources
from ..export.component import ProgressEvent, tell
from . import job
from .features import available, wanted

__all__ = ["Function", "Unit", "function", "region", "require"]

logger = logging.getLogger(__name__)

_NAME, _REGION, _FILE = "accelerator_native", "accelerator_region", "kernels.o"
_AVX2 = "haswell"  # LLVM's name of the oldest processor with what is needed
# What numba's code for exceptions and reference counts refers to, and never calls here.
_UNUSED = (
    "NRT_MemInfo_call_dtor",
    "NRT_Free",
    "numba_do_raise",
    "numba_unpickle",
    "numba_runtime_build_excinfo_struct",
)


@dataclass(frozen=True)
class Unit:
    """What is compiled together behind one C function, and loaded when it is first needed: see `units`.

    module: where it is named. What that imports is what the machine code comes from. entry: gives the Python function
    of int64 to compile. arguments: how many it takes; a unit that does parts of a job has one, its address.
    """

    name: str
    module: str
    entry: Callable[[], Any]
    arguments: int = 1


class Function:
    """A unit's C function int64(numbers ...); it lets go of the interpreter's lock. address: of the machine code."""

    def __init__(self, engine: Any, arguments: int) -> None:
        """engine: of LLVM; the code lives in it."""
        self._engine = engine
        self.address = engine.get_function_address(_NAME)
        numbers = [ctypes.c_int64] * arguments
        self._raw = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *numbers)(self.address)

    def __call__(self, *numbers: int) -> int:
        """Raises SessionError."""
        answer = ctypes.c_int64()
        failed = ctypes.c_void_p()
        if self._raw(ctypes.addressof(answer), ctypes.addressof(failed), *numbers):
            raise SessionError("a compiled kernel failed")
        return answer.value


def function(unit: Unit) -> Function:
    """A unit's kernels, compiled if they are not in the cache.

    Raises SessionError, and then always: what took ten seconds to fail is not tried again.
    """
    if not available():
        raise SessionError("the compiled kernels need AVX2, Linux, numba and llvmlite")
    found = _made(unit)
    if isinstance(found, SessionError):
        raise found
    return found


def require(*units: Unit) -> None:
    """Find out now whether there are these kernels, rather than in the middle of a layer. Raises SessionError."""
    for unit in units:
        function(unit)


@functools.cache
def _made(unit: Unit) -> Function | SessionError:
    try:
        return Function(_loaded(_object(unit)), unit.arguments)
    except (CacheError, OSError) as error:
        failure = SessionError(f"there is no place for the compiled kernels: {error}")
    except Exception as error:  # whatever numba's and LLVM's many layers raise
        failure = SessionError(f"the kernels of {unit.name!r} cannot be compiled or loaded: {error}")
    logger.warning("%s", failure)
    return failure


def _object(unit: Unit) -> bytes:
    """The object file, from the cache if nobody else can have put it there."""
    cache = ContentCache(default_root())
    existing = next(each for each in (cache.root, *cache.root.parents) if each.exists())
    if (reason := untrusted(existing)) is not None:
        return _compiled_apart(unit, reason)
    path = _kept(unit, cache)
    reason = untrusted(path)
    return path.read_bytes() if reason is None else _compiled_apart(unit, reason)


def _compiled_apart(unit: Unit, reason: str) -> bytes:
    logger.warning("the kernels of %r are compiled for this process alone: %s", unit.name, reason)
    return _compile(unit)


def _kept(unit: Unit, cache: ContentCache) -> Path:
    fields = {
        "component": "kernels",
        "unit": unit.name,
        "sources": sources.digest(unit.module, __name__),
        "processor": list(_processor()),
        "versions": {name: version(name) for name in ("numba", "llvmlite")},
        "platform": [platform.system(), platform.machine()],
    }

    def build(directory: Path) -> dict[str, Any]:
        logger.info("compiling the kernels of %r for this processor", unit.name)
        tell(ProgressEvent(f"{unit.name} kernels", "compile"))
        (directory / _FILE).write_bytes(_compile(unit))
        return {"precision": "compiled"}

    entry = cache.get_or_create(make_key(**fields), build, name=f"{unit.name} kernels", fields={})
    return entry.path / _FILE


def _machine() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu, features = _processor()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="pic", codemodel="jitdefault", jit=True
    )


def _processor() -> tuple[str, str]:
    """LLVM's name of what is compiled for, and its features."""
    import llvmlite.binding as llvm

    if wanted() == "avx2":
        return _AVX2, ""
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


def _compile(unit: Unit) -> bytes:
    """A unit's object file."""
    import llvmlite.binding as llvm
    import numba
    from numba.core import config as numbas

    config: Any = numbas
    signature, level = f"int64({', '.join(['int64'] * unit.arguments)})", config.OPT
    config.OPT = type(level)(0)  # numba would optimise what each function calls anew with each of its callers
    try:
        made = numba.njit(signature, nogil=True, error_model="numpy")(unit.entry())
    finally:
        config.OPT = level
    overload: Any
    (overload,) = made.overloads.values()
    module = llvm.parse_assembly(_uncounted(overload.library.get_llvm_str()))
    wanted = overload.fndesc.llvm_func_name
    for each in (*module.functions, *module.global_variables):
        if each.name == wanted:
            each.name = _NAME
        elif not each.is_declaration:
            each.linkage = "internal"
    machine = _machine()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    return bytes(machine.emit_object(module))


def _uncounted(code: str) -> str:
    """Without numba's reference counts, whose calls LLVM moves nothing across: the kernels allocate nothing."""
    if "@NRT_MemInfo_alloc" in code or "@NRT_Allocate" in code:
        raise SessionError("a kernel allocates memory")
    return re.sub(r"^\s*(?:tail )?call void @NRT_(?:in|de)cref\(.*\)$", "", code, flags=re.MULTILINE)


def _loaded(code: bytes) -> Any:
    """An engine of LLVM with this object file."""
    import llvmlite.binding as llvm

    for name in _UNUSED:
        if not llvm.address_of_symbol(name):
            llvm.add_symbol(name, ctypes.cast(ctypes.pythonapi.Py_GetVersion, ctypes.c_void_p).value)
    machine = _machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine


def region() -> int:
    """The address of the C function void(job): calls the function whose address the job holds, of a unit that does
    parts of jobs; what it answers is added to `FAILED`."""
    return _region()[1]


@functools.cache
def _region() -> tuple[Any, int]:
    """The engine in which it lives, and its address. llvmlite is asked once: it has one lock for all that it is asked,
    which a child would find taken, for ever, where another thread asked as the process forked."""
    import llvmlite.binding as llvm
    from llvmlite import ir

    number, size = ir.IntType(64), ir.IntType(32)
    region = ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), [number]), _REGION)
    b = ir.IRBuilder(region.append_basic_block())
    where = region.args[0]

    def place(index: int) -> Any:
        return b.inttoptr(b.add(where, number(8 * index)), number.as_pointer())

    kind = ir.FunctionType(size, [number] * 3)  # addresses are passed as numbers are
    kernel = b.inttoptr(b.load(place(job.FUNCTION)), kind.as_pointer())
    answer, failure = (b.ptrtoint(b.alloca(number), number) for _ in range(2))
    failed = b.zext(b.call(kernel, [answer, failure, where]), number)
    b.atomic_rmw("add", place(job.FAILED), failed, "seq_cst")
    b.ret_void()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(region.module)), _machine())
    engine.finalize_object()
    return engine, int(engine.get_function_address(_REGION))
