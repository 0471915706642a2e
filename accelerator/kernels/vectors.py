"""Vectors in LLVM's language, which numba has none of: their types, and a builder of instructions on them.

Addresses are int64. A vector of `LANES` float32 fills a register of AVX-512, and two of AVX2; what should stay in
registers is written in `WIDTH`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .features import multiplies_bf16, uses_avx512
from .tiles import LANES

__all__ = [
    "AVX512",
    "BF16",
    "FLOAT",
    "FLOATS",
    "HALF",
    "I8",
    "I16",
    "I32",
    "I64",
    "INTS",
    "INT_REGISTER",
    "LANES",
    "REGISTER",
    "WIDTH",
    "Code",
    "bfloats",
    "function",
    "switch",
    "zeros",
]

AVX512, BF16 = uses_avx512(), multiplies_bf16()
WIDTH = LANES if AVX512 else LANES // 2  # float32 in a register
I8, I16, I32, I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
FLOAT, HALF = ir.FloatType(), ir.HalfType()
INTS, FLOATS = (ir.VectorType(t, LANES) for t in (I32, FLOAT))
REGISTER, INT_REGISTER = (ir.VectorType(t, WIDTH) for t in (FLOAT, I32))


class _BFloat(ir.Type):
    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    __hash__ = ir.Type.__hash__


def bfloats(count: int) -> Any:
    """A vector of so many bfloat16."""
    return ir.VectorType(_BFloat(), count)


class Code:
    """What the generators share: an instruction builder and shorthands for it."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        known = self.b.module.globals.get(name)
        kind = ir.FunctionType(result, [a.type for a in arguments])
        return self.b.call(known or ir.Function(self.b.module, kind, name), arguments)

    def at(self, address: Any, kind: Any, align: int = 1) -> Any:
        value = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        value.align = align
        return value

    def put(self, value: Any, address: Any, align: int = 4) -> None:
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer())).align = align

    def number(self, value: int) -> Any:
        return ir.Constant(I64, value)

    def plus(self, address: Any, count: Any, size: int = 1) -> Any:
        """address + count * size; count: a value or an int."""
        if isinstance(count, int):
            return self.b.add(address, self.number(count * size)) if count * size else address
        return self.b.add(address, self.b.mul(count, self.number(size)) if size != 1 else count)

    def all(self, value: Any, kind: Any) -> Any:
        """A vector of one value."""
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
        return self.b.shuffle_vector(
            one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count)
        )

    def again(self, address: Any) -> Any:
        """The same address, which the compiler takes for another one: what is read there a second time is not kept, as
        it would have to be in memory where registers are few."""
        kind = ir.FunctionType(I64, [I64])
        return self.b.call(ir.InlineAsm(kind, "", "=r,0", side_effect=False), [address])

    def kept(self, value: Any) -> Any:
        """The same vector, whose sum with others the compiler does not rearrange: it would need more registers."""
        kind = ir.FunctionType(value.type, [value.type])
        return self.b.call(ir.InlineAsm(kind, "", "=x,0", side_effect=False), [value])

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        return self.call(f"llvm.fma.v{x.type.count}f32", x.type, x, y, z)

    def dot_bf16(self, x: Any, y: Any, z: Any) -> Any:
        """z + the products of bfloat16, two beside each other in a lane of integers."""
        x, y = (self.b.bitcast(v, bfloats(2 * LANES)) for v in (x, y))
        return self.call("llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, z, x, y)

    def dot_int16(self, x: Any, y: Any, z: Any) -> Any:
        """z + the products of int16, two beside each other in a lane of a register."""
        if AVX512:
            return self.call("llvm.x86.avx512.vpdpwssd.512", INTS, z, x, y)
        x, y = (self.b.bitcast(v, ir.VectorType(I16, 2 * WIDTH)) for v in (x, y))
        return self.b.add(z, self.call("llvm.x86.avx2.pmadd.wd", INT_REGISTER, x, y))

    def reduced(self, name: str, x: Any) -> Any:
        """The sum ("fadd") or the largest ("fmax") of a vector of floats."""
        full = f"llvm.vector.reduce.{name}.v{x.type.count}f32"
        given = [ir.Constant(FLOAT, 0.0), x] if name == "fadd" else [x]
        known = self.b.module.globals.get(full)
        known = known or ir.Function(self.b.module, ir.FunctionType(FLOAT, [v.type for v in given]), full)
        return self.b.call(known, given, fastmath=("reassoc",))

    def floats(self, address: Any, is_int8: bool, kind: Any = FLOATS) -> Any:
        """Values of a key-value cache, as many as `kind` holds."""
        if not is_int8:
            return self.at(address, kind, 4)
        quantized = self.at(address, ir.VectorType(I8, kind.count))
        return self.b.sitofp(self.b.sext(quantized, ir.VectorType(I32, kind.count)), kind)

    def loop(self, count: Any, values: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """`count` times (at least once) body(index, values) -> the next values; answers the last."""
        before, inside = self.b.block, self.b.append_basic_block("loop")
        self.b.branch(inside)
        self.b.position_at_end(inside)
        index = self.b.phi(I64)
        index.add_incoming(self.number(0), before)
        carried = [self.b.phi(value.type) for value in values]
        for phi, value in zip(carried, values, strict=True):
            phi.add_incoming(value, before)
        after = body(index, carried)
        following = self.plus(index, 1)
        index.add_incoming(following, self.b.block)
        for phi, value in zip(carried, after, strict=True):
            phi.add_incoming(value, self.b.block)
        more, end = self.b.icmp_signed("<", following, count), self.b.append_basic_block("end")
        self.b.cbranch(more, inside, end)
        self.b.position_at_end(end)
        return after


def zeros(kind: Any, count: int) -> list[Any]:
    return [ir.Constant(kind, [0] * kind.count)] * count


def switch(cases: Mapping[int, Callable[..., None]]) -> Callable[..., None]:
    """What writes the code of all cases, and a jump to the one whose number is the first argument; to the last one if
    none is. Cases of the same generator share its code. A case may be a switch again, over the next argument."""

    def generate(c: Code, chosen: Any, *arguments: Any) -> None:
        blocks = {each: c.b.append_basic_block("case") for each in dict.fromkeys(cases.values())}
        jump, end = c.b.switch(chosen, list(blocks.values())[-1]), c.b.append_basic_block("end")
        for number, each in cases.items():
            jump.add_case(c.number(number), blocks[each])
        for each, block in blocks.items():
            c.b.position_at_end(block)
            each(c, *arguments)
            c.b.branch(end)
        c.b.position_at_end(end)

    return generate


def function(count: int, generate: Callable[..., None]) -> Any:
    """An intrinsic of `count` int64 that answers nothing; generate: writes it, given a `Code` and the values."""
    names = ", ".join(f"a{i}" for i in range(count))

    def typed(context: Any, *arguments: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            generate(Code(builder), *values)
            return context.get_dummy_value()

        return types.void(*(types.int64,) * count), code

    namespace = {"typed": typed}
    exec(f"def function(context, {names}): return typed(context, {names})", namespace)  # numba reads the signature
    return intrinsic(namespace["function"])
