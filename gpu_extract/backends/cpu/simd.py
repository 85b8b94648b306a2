"""SIMD operations on many pixels at once, as LLVM intrinsics, because numba cannot express them in Python."""

import time
from typing import Any

import llvmlite.ir as ir
import numba
import numba.extending
from numba import types

__all__ = [
    "BLOCK",
    "LANES",
    "accumulate_taps",
    "adler_sums",
    "any_bits",
    "bits_of",
    "ctz",
    "eq_word",
    "float_of",
    "gt_word",
    "largest_of_columns",
    "lt_word",
    "nanoseconds",
    "ne_shifted_word",
    "store_lanes",
    "store_word",
]

# Pixels that are compared or copied at once.
LANES = 64
# Pixels of a row whose sums are kept in registers.
BLOCK = 32

# Numba has no or incomplete types for these.
intrinsic: Any = numba.extending.intrinsic
cgutils: Any = numba.core.cgutils
tuple_of: Any = types.UniTuple


def lanes_compared(context: Any, builder: Any, signature: Any, arguments: Any, operator: str) -> Any:
    """Return the comparison of 64 values of an array with a scalar as an integer; bit i is for value i."""
    array, start, scalar = arguments
    data = context.make_array(signature.args[0])(context, builder, array).data
    values = load_lanes(context, builder, data, start)
    compared = compare(builder, signature.args[0].dtype, operator, values, broadcast(builder, scalar, values.type))
    return builder.bitcast(compared, ir.IntType(LANES))


def load_lanes(context: Any, builder: Any, data: Any, start: Any) -> Any:
    """Return 64 values of an array's memory, from ``start`` on, as a vector."""
    element = data.type.pointee
    pointer = builder.bitcast(builder.gep(data, [start]), ir.VectorType(element, LANES).as_pointer())
    return builder.load(pointer, align=context.get_abi_sizeof(element))


def compare(builder: Any, kind: Any, operator: str, one: Any, other: Any) -> Any:
    """Return the comparison of values of numba's type ``kind``."""
    if kind in types.real_domain:
        return builder.fcmp_ordered(operator, one, other)
    return (builder.icmp_signed if kind.signed else builder.icmp_unsigned)(operator, one, other)


@intrinsic
def eq_word(typing: Any, array: Any, start: Any, value: Any) -> Any:
    """Return which of ``array[start : start + 64]`` equal ``value``; bit i of the uint64 is for value i.

    The array is one-dimensional and contiguous and contains all 64 values.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return lanes_compared(context, builder, signature, arguments, "==")

    return types.uint64(array, types.intp, array.dtype), generate


@intrinsic
def gt_word(typing: Any, array: Any, start: Any, value: Any) -> Any:
    """Return which of ``array[start : start + 64]`` are above ``value``; see `eq_word`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return lanes_compared(context, builder, signature, arguments, ">")

    return types.uint64(array, types.intp, array.dtype), generate


@intrinsic
def lt_word(typing: Any, array: Any, start: Any, value: Any) -> Any:
    """Return which of ``array[start : start + 64]`` are below ``value``; see `eq_word`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return lanes_compared(context, builder, signature, arguments, "<")

    return types.uint64(array, types.intp, array.dtype), generate


@intrinsic
def ne_shifted_word(typing: Any, words: Any, start: Any, before: Any, shift: Any) -> Any:
    """Return which of ``words[start : start + 64]`` do not repeat the last item of the previous word; see `eq_word`.

    Parameters
    ----------
    words : (...,) uint64
        Each contains items of 1, 2, 4 or 8 bytes, the first item in the lowest bits.
    before : uint64
        The word before the first one.
    shift : uint64
        64 minus the bits of an item.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, start, before, shift = arguments
        values = load_lanes(context, builder, context.make_array(words)(context, builder, array).data, start)
        last = builder.insert_element(ir.Constant(values.type, ir.Undefined), before, ir.Constant(ir.IntType(32), 63))
        order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(range(LANES - 1, 2 * LANES - 1)))
        shifts = broadcast(builder, shift, values.type)
        one, most = (ir.Constant(values.type, [n] * LANES) for n in (1, LANES - 1))
        # Shift in two steps: if the item is the whole word, a shift by 64 bits is undefined.
        shifted = builder.shl(builder.shl(values, builder.sub(most, shifts)), one)
        copies = builder.or_(shifted, builder.lshr(builder.shuffle_vector(last, values, order), shifts))
        return builder.bitcast(builder.icmp_unsigned("!=", values, copies), ir.IntType(LANES))

    return types.uint64(words, types.intp, types.uint64, types.uint64), generate


@intrinsic
def store_word(typing: Any, memory: Any, at: Any, word: Any) -> Any:
    """Store a uint64 in ``memory[at : at + 8]``.

    Parameters
    ----------
    memory : (...,) uint8
        Contiguous.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), arguments[2].type.as_pointer())
        builder.store(arguments[2], place, align=1)
        return context.get_dummy_value()

    return types.none(memory, types.uint64, types.uint64), generate


@intrinsic
def any_bits(typing: Any, words: Any, start: Any) -> Any:
    """Return the OR of ``words[start : start + 64]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, start = arguments
        values = load_lanes(context, builder, context.make_array(words)(context, builder, array).data, start)
        return reduced(builder, "or", values)

    return types.uint64(words, types.intp), generate


@intrinsic
def adler_sums(typing: Any, words: Any, start: Any) -> Any:
    """Return the sum of the 512 bytes of ``words[start : start + 64]``, and their sum weighted by 512 to 1.

    The bytes are 8 rows of 64 columns. Columns are summed in 16 bits: all rows, and all partial sums.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, start = arguments
        data = context.make_array(words)(context, builder, array).data
        column, row = ir.VectorType(ir.IntType(8), LANES), ir.VectorType(ir.IntType(16), LANES)
        first = builder.bitcast(builder.gep(data, [start]), column.as_pointer())
        sums = above = ir.Constant(row, [0] * LANES)
        for k in range(8):
            pointer = builder.gep(first, [ir.Constant(ir.IntType(32), k)])
            above = builder.add(above, sums)
            sums = builder.add(sums, builder.zext(builder.load(pointer, align=8), row))
        wide = ir.VectorType(ir.IntType(32), LANES)
        sums, above = builder.zext(sums, wide), builder.zext(above, wide)
        weighted = builder.mul(sums, ir.Constant(wide, list(range(LANES, 0, -1))))
        weighted = builder.add(weighted, builder.shl(above, ir.Constant(wide, [6] * LANES)))
        found = [builder.zext(reduced(builder, "add", values), ir.IntType(64)) for values in (sums, weighted)]
        return context.make_tuple(builder, signature.return_type, found)

    return tuple_of(types.uint64, 2)(words, types.intp), generate


def reduced(builder: Any, operator: str, values: Any) -> Any:
    """Return the reduction of a vector of integers by "add" or "or"."""
    kind = values.type
    name = f"llvm.vector.reduce.{operator}.v{kind.count}i{kind.element.width}"
    reduce = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind.element, [kind]), name)
    return builder.call(reduce, [values])


@intrinsic
def largest_of_columns(typing: Any, pixels: Any, start: Any, stride: Any, rows: Any, sign: Any, largest: Any) -> Any:
    """Write the maximum of ``sign`` times the pixels of each of 64 columns to ``largest[:64]``.

    Parameters
    ----------
    pixels : (...,), any pixel type
        Contiguous. Row y of the columns begins at ``start + y * stride``.
    rows : int
        At least 1.
    sign : float
        1 or -1.
    largest : (...,) float64
        Written. Contiguous.
    """
    kind: Any = pixels.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, start, stride, rows, sign, largest = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data
        target = context.make_array(signature.args[5])(context, builder, largest).data
        doubles = ir.VectorType(ir.DoubleType(), LANES)

        def write(operator: str, factor: float) -> None:
            best = cgutils.alloca_once_value(builder, load_lanes(context, builder, data, start))
            with cgutils.for_range(builder, rows, start=ir.Constant(rows.type, 1)) as loop:
                at = builder.add(start, builder.mul(loop.index, stride))
                values, before = load_lanes(context, builder, data, at), builder.load(best)
                better = compare(builder, kind, operator, values, before)
                builder.store(builder.select(better, values, before), best)
            found = as_doubles(builder, kind, builder.load(best))
            found = builder.fmul(found, ir.Constant(doubles, [factor] * LANES))
            builder.store(found, builder.bitcast(target, doubles.as_pointer()), align=8)

        positive = builder.fcmp_ordered(">", sign, ir.Constant(ir.DoubleType(), 0.0))
        with builder.if_else(positive) as (largest_wanted, smallest_wanted):
            with largest_wanted:
                write(">", 1.0)
            with smallest_wanted:
                write("<", -1.0)
        return context.get_dummy_value()

    return types.none(pixels, types.intp, types.intp, types.intp, types.float64, largest), generate


@intrinsic
def store_lanes(typing: Any, source: Any, at: Any, n: Any, beyond: Any, target: Any, to: Any) -> Any:
    """Write 64 values to ``target[to : to + 64]``: ``source[at : at + n]``, followed by ``beyond``.

    This copies rows of any length without a loop for the remainder: the next row overwrites what is written behind a
    row. Both arrays are contiguous and contain all 64 values.

    Parameters
    ----------
    source : (...,), any pixel type
    n : int
        Values above 64 are treated as 64.
    beyond : the target's type
    target : (...,)
        Written. The source's type, or float64.
    """
    kind: Any = source.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (context.make_array(signature.args[k])(context, builder, arguments[k]).data for k in (0, 4))
        _, at, n, beyond, _, to = arguments
        values = load_lanes(context, builder, source, at)
        wanted = ir.VectorType(target.type.pointee, LANES)
        if kind != signature.args[4].dtype:
            values = as_doubles(builder, kind, values)
        lane = ir.Constant(ir.VectorType(n.type, LANES), list(range(LANES)))
        inside = builder.icmp_signed("<", lane, broadcast(builder, n, lane.type))
        values = builder.select(inside, values, broadcast(builder, beyond, wanted))
        place = builder.bitcast(builder.gep(target, [to]), wanted.as_pointer())
        builder.store(values, place, align=context.get_abi_sizeof(wanted.element))
        return context.get_dummy_value()

    return types.none(source, types.intp, types.intp, target.dtype, target, types.intp), generate


def as_doubles(builder: Any, kind: Any, values: Any) -> Any:
    """Convert a vector of numba's type ``kind`` to float64."""
    doubles = ir.VectorType(ir.DoubleType(), LANES)
    if kind not in types.real_domain:
        return (builder.sitofp if kind.signed else builder.uitofp)(values, doubles)
    return values if kind == types.float64 else builder.fpext(values, doubles)


@intrinsic
def ctz(typing: Any, word: Any) -> Any:
    """Count the trailing zeros of a uint64: the position of its lowest set bit; 64 for 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], cgutils.false_bit)

    return types.intp(types.uint64), generate


@intrinsic
def bits_of(typing: Any, value: Any) -> Any:
    """Return the bits of a float64 as a uint64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.uint64(types.float64), generate


@intrinsic
def nanoseconds(typing: Any) -> Any:
    """Return the system's monotonic clock in nanoseconds, as `time.monotonic_ns`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(64)
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(32), number.as_pointer()])
        read_clock = cgutils.get_or_insert_function(builder.module, kind, "clock_gettime")
        time_spec = cgutils.alloca_once(builder, number, size=2)
        builder.call(read_clock, [ir.Constant(ir.IntType(32), time.CLOCK_MONOTONIC), time_spec])
        seconds, rest = (builder.load(builder.gep(time_spec, [ir.Constant(ir.IntType(32), index)])) for index in (0, 1))
        return builder.add(builder.mul(seconds, ir.Constant(number, 1_000_000_000)), rest)

    return types.int64(), generate


@intrinsic
def float_of(typing: Any, bits: Any) -> Any:
    """Return the float64 with the bits of a uint64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.uint64), generate


@intrinsic
def accumulate_taps(
    typing: Any, rows: Any, y: Any, x: Any, weights: Any, near: Any, far: Any, total: Any, at: Any
) -> Any:
    """Write a weighted sum of rows, for the columns ``x`` to ``x + BLOCK - 1``, to ``total[at : at + BLOCK]``.

    The sum starts with row ``y``, followed by the pairs of rows at the distances ``far`` down to ``near``. The first
    and the last row are replicated outside.

    Parameters
    ----------
    rows : (n, stride) float64
        C-contiguous.
    weights : (R + 1,) float64
        C-contiguous; by the distance of a row.
    total : (...,) float64
        C-contiguous.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, weights, total = (
            context.make_array(signature.args[k])(context, builder, arguments[k]) for k in (0, 3, 6)
        )
        _, y, x, _, near, far, _, at = arguments
        n_rows, stride = cgutils.unpack_tuple(builder, rows.shape, 2)
        vector, zero, one = ir.VectorType(ir.DoubleType(), BLOCK), ir.Constant(x.type, 0), ir.Constant(x.type, 1)
        last = builder.sub(n_rows, one)

        def place(array: Any, index: Any) -> Any:
            return builder.bitcast(builder.gep(array.data, [index]), vector.as_pointer())

        def row(index: Any) -> Any:
            index = builder.select(builder.icmp_signed("<", index, zero), zero, index)
            index = builder.select(builder.icmp_signed(">", index, last), last, index)
            return builder.load(place(rows, builder.add(builder.mul(index, stride), x)), align=8)

        def weighted(values: Any, tap: Any) -> Any:
            weight = builder.load(builder.gep(weights.data, [tap]))
            return builder.fmul(values, broadcast(builder, weight, vector))

        sums = cgutils.alloca_once_value(builder, weighted(row(y), zero))
        with cgutils.for_range(builder, builder.add(builder.sub(far, near), one)) as loop:
            tap = builder.sub(far, loop.index)
            pair = builder.fadd(row(builder.sub(y, tap)), row(builder.add(y, tap)))
            builder.store(builder.fadd(builder.load(sums), weighted(pair, tap)), sums)
        builder.store(builder.load(sums), place(total, at), align=8)
        return context.get_dummy_value()

    index = types.intp
    return types.none(rows, index, index, weights, index, index, total, index), generate


def broadcast(builder: Any, scalar: Any, vector: Any) -> Any:
    """Return a vector with all lanes equal to a scalar."""
    nothing = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(nothing, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        one, nothing, ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    )
