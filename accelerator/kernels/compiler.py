"""The kernels as machine code: compiled by numba once for a processor, kept in the cache, loaded without numba.

numba needs seconds to compile and a second to be imported. So what it makes is put into one object file, and LLVM's
linker (llvmlite) puts that into the process.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..cache import ContentCache, default_root, make_key, untrusted
from ..errors import CacheError, SessionError
from ..export import sources
from ..export.component import ProgressEvent, tell
from . import job
from .features import available, wanted
from .opcodes import PARTS

__all__ = ["Function", "function"]

logger = logging.getLogger(__name__)

_NAME, _REGION, _FILE = "accelerator_native", "accelerator_region", "kernels.o"
_ARGUMENTS = 7
_AVX2 = "haswell"  # LLVM's name of the oldest processor with what is needed
# What numba's code for exceptions and reference counts refers to, and never calls here.
_UNUSED = (
    "NRT_MemInfo_call_dtor",
    "NRT_Free",
    "numba_do_raise",
    "numba_unpickle",
    "numba_runtime_build_excinfo_struct",
)


class Function:
    """The C function int64(what, a, b, c, d, e, f); it lets go of the interpreter's lock.

    address: of the machine code. region: the address of a C function that runs `PARTS` of a job: see `parts`.
    """

    def __init__(self, engine: Any) -> None:
        """engine: of LLVM; the code lives in it."""
        self._engine = engine
        self.address, self.region = (engine.get_function_address(name) for name in (_NAME, _REGION))
        numbers = [ctypes.c_int64] * _ARGUMENTS
        self._raw = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *numbers)(self.address)

    def __call__(self, what: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, e: int = 0, f: int = 0) -> int:
        """Raises SessionError."""
        answer = ctypes.c_int64()
        failed = ctypes.c_void_p()
        if self._raw(ctypes.addressof(answer), ctypes.addressof(failed), what, a, b, c, d, e, f):
            raise SessionError("a compiled kernel failed")
        return answer.value


def function() -> Function:
    """The kernels.

    Raises SessionError, and then always: what took half a minute to fail is not tried again.
    """
    if not available():
        raise SessionError("the compiled kernels need AVX2, Linux, numba and llvmlite")
    found = _made()
    if isinstance(found, SessionError):
        raise found
    return found


@functools.cache
def _made() -> Function | SessionError:
    try:
        return _load(_object())
    except (CacheError, OSError) as error:
        failure = SessionError(f"there is no place for the compiled kernels: {error}")
    except Exception as error:  # whatever numba's and LLVM's many layers raise
        failure = SessionError(f"the kernels cannot be compiled or loaded: {error}")
    logger.warning("%s", failure)
    return failure


def _object() -> bytes:
    """The object file, from the cache if nobody else can have put it there."""
    cache = ContentCache(default_root())
    existing = next(each for each in (cache.root, *cache.root.parents) if each.exists())
    if (reason := untrusted(existing)) is not None:
        return _compiled_apart(reason)
    path = _kept(cache)
    reason = untrusted(path)
    return path.read_bytes() if reason is None else _compiled_apart(reason)


def _compiled_apart(reason: str) -> bytes:
    logger.warning("the kernels are compiled for this process alone: %s", reason)
    return _compile()


def _kept(cache: ContentCache) -> Path:
    fields = {
        "component": "kernels",
        "sources": sources.digest(__name__),
        "processor": list(_processor()),
        "versions": {name: version(name) for name in ("numba", "llvmlite")},
        "platform": [platform.system(), platform.machine()],
    }

    def build(directory: Path) -> dict[str, Any]:
        logger.info("compiling kernels for this processor")
        tell(ProgressEvent("kernels", "compile"))
        (directory / _FILE).write_bytes(_compile())
        return {"precision": "compiled"}

    entry = cache.get_or_create(make_key(**fields), build, name="kernels", fields={})
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


def _compile() -> bytes:
    """All kernels behind one function, as an object file."""
    import llvmlite.binding as llvm
    import numba
    from numba.core import config as numbas

    from .llm import step

    config: Any = numbas
    signature, level = f"int64({', '.join(['int64'] * _ARGUMENTS)})", config.OPT
    config.OPT = type(level)(0)  # numba would optimise what each function calls anew with each of its callers
    try:
        made = numba.njit(signature, nogil=True, error_model="numpy")(step.call)
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


def _load(code: bytes) -> Function:
    import llvmlite.binding as llvm

    machine = _machine()
    for name in _UNUSED:
        if not llvm.address_of_symbol(name):
            llvm.add_symbol(name, ctypes.cast(ctypes.pythonapi.Py_GetVersion, ctypes.c_void_p).value)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(_region()), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return Function(engine)


def _region() -> str:
    """void(job): the function whose address the job holds, asked for `PARTS`; what it answers is added to `FAILED`."""
    from llvmlite import ir

    number, size = ir.IntType(64), ir.IntType(32)
    region = ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), [number]), _REGION)
    b = ir.IRBuilder(region.append_basic_block())
    where = region.args[0]

    def place(index: int) -> Any:
        return b.inttoptr(b.add(where, number(8 * index)), number.as_pointer())

    kind = ir.FunctionType(size, [number] * (2 + _ARGUMENTS))  # addresses are passed as numbers are
    kernel = b.inttoptr(b.load(place(job.FUNCTION)), kind.as_pointer())
    answer, failure = (b.ptrtoint(b.alloca(number), number) for _ in range(2))
    given = [number(PARTS), where, *[number(0)] * (_ARGUMENTS - 2)]
    b.atomic_rmw("add", place(job.FAILED), b.zext(b.call(kernel, [answer, failure, *given]), number), "seq_cst")
    b.ret_void()
    return str(region.module)
