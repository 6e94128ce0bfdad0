"""GAE and V-trace in one pass over memory, on a CPU by numba (the extra `fast`): the arithmetic of `estimators`, fused.

Each row is walked from its end, WIDTH steps at a time in vector registers: load, compute, scan (each step composed with
the one 1, 2, 4, 8 places on; Hillis and Steele 1986), store. numba has no vectors, so that what happens to one block is
written as LLVM instructions, by `Lanes`, which reads like arithmetic. T must be a multiple of WIDTH. Each kernel says
whether all its intermediate results are finite; if not, who calls takes the slower way, in which a NaN reaches exactly
what it should. Compiled anew in each process that wants it: numba keeps compiled code as pickles, which we do not read.
"""

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

WIDTH = 16
FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
INTS = ir.VectorType(ir.IntType(32), WIDTH)
BYTES = ir.VectorType(ir.IntType(8), WIDTH)
MOST = 87.0
ROUND = 1.5 * 2.0**23
"""Added and taken away again it leaves the nearest whole number of a small float."""
LOG2_E, LN2_HIGH, LN2_LOW = 1.44269504, 0.693359375, -2.12194440e-4
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0)
"""Cephes' expf: e^r for |r| <= ln 2 / 2, highest power first."""


class Lanes:
    """WIDTH floats of one block, and what is done to them."""

    def __init__(self, builder, value):
        self.builder, self.value = builder, value

    @classmethod
    def load(cls, builder, base, index, kind=FLOATS):
        """From base + index elements; flags as whether they are set."""
        value = builder.load(_place(builder, base, index, kind), align=1)
        return cls(
            builder, builder.icmp_unsigned("!=", value, ir.Constant(BYTES, [0] * WIDTH)) if kind is BYTES else value
        )

    @classmethod
    def all(cls, builder, number):
        """One number, known now or then, in every lane."""
        if isinstance(number, float):
            return cls(builder, ir.Constant(FLOATS, [number] * WIDTH))
        one = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
        return cls(builder, builder.shuffle_vector(one, one, ir.Constant(INTS, [0] * WIDTH)))

    def store(self, base, index):
        """To base + index floats."""
        self.builder.store(self.value, _place(self.builder, base, index, FLOATS), align=4)

    def __add__(self, other):
        return Lanes(self.builder, self.builder.fadd(self.value, other.value, flags=("contract",)))

    def __sub__(self, other):
        return Lanes(self.builder, self.builder.fsub(self.value, other.value, flags=("contract",)))

    def __mul__(self, other):
        return Lanes(self.builder, self.builder.fmul(self.value, other.value, flags=("contract",)))

    def at_most(self, other):
        """The smaller of the two."""
        smaller = self.builder.fcmp_ordered("<", other.value, self.value)
        return Lanes(self.builder, self.builder.select(smaller, other.value, self.value))

    def unless(self, flags):
        """0 where a flag is set."""
        return Lanes(self.builder, self.builder.select(flags.value, ir.Constant(FLOATS, [0.0] * WIDTH), self.value))

    def ahead(self, by, beyond):
        """x_{t + by}, with `beyond` in the places behind the last."""
        lanes = ir.Constant(INTS, [lane + by for lane in range(WIDTH)])
        return Lanes(self.builder, self.builder.shuffle_vector(self.value, beyond.value, lanes))

    def first(self):
        """The float of the first step."""
        return self.builder.extract_element(self.value, ir.Constant(ir.IntType(32), 0))

    def exp(self):
        """e^x for x within +-87, where it is finite, to 2 ulp: 2^k e^r, k = round(x / ln 2)."""
        b = self.builder
        zero, most, round_ = Lanes.all(b, 0.0), Lanes.all(b, MOST), Lanes.all(b, ROUND)
        x = zero - (zero - self.at_most(most)).at_most(most)
        k = x * Lanes.all(b, LOG2_E) + round_ - round_
        r = x - k * Lanes.all(b, LN2_HIGH) - k * Lanes.all(b, LN2_LOW)
        power = Lanes.all(b, EXP[0])
        for coefficient in EXP[1:]:
            power = power * r + Lanes.all(b, coefficient)
        whole = b.add(b.fptosi(k.value, INTS), ir.Constant(INTS, [127] * WIDTH))
        return power * Lanes(b, b.bitcast(b.shl(whole, ir.Constant(INTS, [23] * WIDTH)), FLOATS))


def _place(builder, base, index, kind):
    """Address of an element, as that of a whole block."""
    element = builder.bitcast(base, kind.element.as_pointer())
    return builder.bitcast(builder.gep(element, [index]), kind.as_pointer())


def _scan(a, b, y):
    """y_t = b_t + a_t y_{t+1} within a block, `y` in every lane being what follows it."""
    zero, one = Lanes.all(a.builder, 0.0), Lanes.all(a.builder, 1.0)
    for by in (1, 2, 4, 8):
        b, a = b + a * b.ahead(by, zero), a * a.ahead(by, one)
    return b + a * y


def _watch(context, total, kind, odd):
    """Add to the array `odd` what is 0 unless a lane is not finite."""
    place, start = context.make_array(kind)(context, total.builder, odd).data, ir.Constant(ir.IntType(64), 0)
    (Lanes.load(total.builder, place, start) + total * Lanes.all(total.builder, 0.0)).store(place, start)


@intrinsic
def _gae_block(_typing, r, v, after, over, cut, i, gamma, trace, y, advantages, returns, odd):
    """A block of `_gae` at element i, from the advantage behind it; -> its first advantage."""

    def emit(context, builder, signature, args):
        r, v, after, over, cut, i, gamma, trace, y, advantages, returns, odd = args
        reward, value, next_value = (Lanes.load(builder, base, i) for base in (r, v, after))
        ended, stop = (Lanes.load(builder, base, i, BYTES) for base in (over, cut))
        gamma, trace, y = (Lanes.all(builder, number) for number in (gamma, trace, y))
        total = _scan(trace.unless(stop), reward - value + gamma * next_value.unless(ended), y)
        total.store(advantages, i)
        (total + value).store(returns, i)
        _watch(context, total, signature.args[-1], odd)
        return total.first()

    return types.float32(r, v, after, over, cut, i, gamma, trace, y, advantages, returns, odd), emit


@intrinsic
def _vtrace_block(_typing, r, v, after, over, cut, x, i, gamma, trace, rho_bar, c_bar, pg_bar, y, advantages, vs, odd):
    """A block of `_vtrace` at element i, from vs - V behind it; -> its first vs - V."""

    def emit(context, builder, signature, args):
        r, v, after, over, cut, x, i, gamma, trace, rho_bar, c_bar, pg_bar, y, advantages, vs, odd = args
        reward, value, next_value, log_ratio = (Lanes.load(builder, base, i) for base in (r, v, after, x))
        ended, stop = (Lanes.load(builder, base, i, BYTES) for base in (over, cut))
        gamma, trace, y = (Lanes.all(builder, number) for number in (gamma, trace, y))
        rho_bar, c_bar, pg_bar = (Lanes.all(builder, number) for number in (rho_bar, c_bar, pg_bar))
        rho = log_ratio.exp()
        delta = reward - value + gamma * next_value.unless(ended)
        total = _scan((trace * rho.at_most(c_bar)).unless(stop), rho.at_most(rho_bar) * delta, y)
        (rho.at_most(pg_bar) * (delta + gamma.unless(stop) * total.ahead(1, y))).store(advantages, i)
        (total + value).store(vs, i)
        _watch(context, total, signature.args[-1], odd)
        return total.first()

    kinds = (r, v, after, over, cut, x, i, gamma, trace, rho_bar, c_bar, pg_bar, y, advantages, vs, odd)
    return types.float32(*kinds), emit


_AT, _NUMBER, _COUNT = types.voidptr, types.float32, types.int64


@njit(error_model="numpy")
def _walk_gae(r, v, after, over, cut, rows, length, gamma, trace, advantages, returns):
    odd = np.zeros(WIDTH, np.float32)
    for row in range(rows):
        y = types.float32(0.0)
        for t in range(length - WIDTH, -1, -WIDTH):
            i = row * length + t
            y = _gae_block(r, v, after, over, cut, i, gamma, trace, y, advantages, returns, odd)
    return odd.sum() == 0.0


@cfunc(types.uint8(*[_AT] * 5, _COUNT, _COUNT, _NUMBER, _NUMBER, _AT, _AT))
def _gae(r, v, after, over, cut, rows, length, gamma, trace, advantages, returns):
    """A = delta + trace A', returns A + V; trace is gamma lambda. `after` is V(s'), `over` a termination."""
    return _walk_gae(r, v, after, over, cut, rows, length, gamma, trace, advantages, returns)


@njit(error_model="numpy")
def _walk_vtrace(r, v, after, over, cut, x, rows, length, gamma, trace, rho_bar, c_bar, pg_bar, advantages, vs):
    odd = np.zeros(WIDTH, np.float32)
    for row in range(rows):
        y = types.float32(0.0)
        for t in range(length - WIDTH, -1, -WIDTH):
            i = row * length + t
            y = _vtrace_block(
                r, v, after, over, cut, x, i, gamma, trace, rho_bar, c_bar, pg_bar, y, advantages, vs, odd
            )
    return odd.sum() == 0.0


@cfunc(types.uint8(*[_AT] * 6, _COUNT, _COUNT, *[_NUMBER] * 5, _AT, _AT))
def _vtrace(r, v, after, over, cut, x, rows, length, gamma, trace, rho_bar, c_bar, pg_bar, advantages, vs):
    """y = min(rho_bar, rho) delta + trace min(c_bar, rho) y', vs = V + y, A = min(pg_bar, rho) (delta + gamma y')."""
    return _walk_vtrace(r, v, after, over, cut, x, rows, length, gamma, trace, rho_bar, c_bar, pg_bar, advantages, vs)


GAE, VTRACE = _gae.ctypes, _vtrace.ctypes
"""To be called with addresses, which costs a small call less than arrays do."""
