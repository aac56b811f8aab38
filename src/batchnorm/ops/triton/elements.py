"""What happens to single values: the preactivation, the activations and their derivatives, and bits.

Formulas are those of :mod:`batchnorm.activation`. z is one subtraction and one fused multiply-add, spelled out, so that
the backward pass computes it again to the last bit whatever the compiler contracts elsewhere.

A tile is (positions,) of one channel, or with ``ROWS`` (positions, channels); what belongs to a channel is then a
number, or (1, channels).
"""

# Arguments of kernels are the compiler's tensors, for which there are no types.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "activated",
    "coefficients",
    "derivative",
    "inverse_std",
    "is_on",
    "number_of",
    "packed",
    "passed",
    "preactivation",
    "total",
    "unpacked",
]


@triton.jit
def total(tile, ROWS: tl.constexpr):
    """The sum over a tile's positions."""
    if ROWS:
        return tl.sum(tile, 0, keep_dims=True)
    else:
        return tl.sum(tile, 0)


@triton.jit
def number_of(valid, ROWS: tl.constexpr):
    """How many positions of a tile, (positions,) or (positions, 1), are valid."""
    if ROWS:
        return tl.sum(tl.sum(valid.to(tl.int32), 0), 0)
    else:
        return tl.sum(valid.to(tl.int32), 0)


@triton.jit
def inverse_std(var, EPS: tl.constexpr):
    """1 / √(var + eps).

    The reciprocal root of GPUs is off by a step or two. One of Newton's takes that out, to what an exactly rounded root
    and division would leave, without their branches: of eight channels a thread has all at once, not one by one.
    """
    if var.dtype == tl.float64:
        return 1.0 / tl.sqrt(var + EPS)
    else:
        v = var + EPS
        tiny = v < 1e-30  # down to where GPUs take numbers for 0
        v = tl.where(tiny, v * 18446744073709551616.0, v)  # 2⁶⁴
        first = tl.rsqrt(v)
        better = tl.fma(0.5 * first, tl.fma(-v * first, first, 1.0), first)
        found = tl.where((v > 0.0) & (v < float("inf")), better, first)
        return tl.where(tiny, found * 4294967296.0, found)


@triton.jit
def coefficients(mean, var, weight, bias, c, within, EPS: tl.constexpr, ACC: tl.constexpr):
    """Of the channels ``c``: mean, 1/√(var + eps), scale and shift, with z = (x − mean)·scale + shift."""
    m = tl.load(mean + c, mask=within, other=0.0).to(ACC)
    invstd = inverse_std(tl.load(var + c, mask=within, other=1.0).to(ACC), EPS)
    scale = invstd
    if weight is not None:
        scale = invstd * tl.load(weight + c, mask=within, other=0.0).to(ACC)
    if bias is not None:
        shift = tl.load(bias + c, mask=within, other=0.0).to(ACC)
    else:
        shift = tl.where(within, 0.0, 0.0).to(ACC)
    return m, invstd, scale, shift


@triton.jit
def preactivation(x, mean, scale, shift):
    """z, without the residual."""
    return tl.fma(x - mean, scale, shift)


@triton.jit
def sigmoid(z):
    """1 / (1 + e⁻ᶻ)."""
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def tanh(z):
    """The hyperbolic tangent to a few steps of z's dtype, near 0 too, where 1 − e⁻²ᶻ would cancel."""
    w = z * z
    if z.dtype == tl.float64:
        # Lambert's continued fraction: for |z| < 0.55 what is left out is below 1e-18 of the whole.
        rest = 13.0 + w / 15.0
        for k in tl.static_range(6):
            rest = (11.0 - 2.0 * k) + w / rest
        near = z / rest
    else:
        # The odd polynomial of this degree that fits best to |z| < 0.55, relative to tanh(z): off by 1.1e-9.
        p = 0.021071678 + w * -0.0062742392
        p = -0.053852309 + w * p
        p = 0.13332586 + w * p
        p = -0.33333316 + w * p
        near = z + z * (w * p)
    e = tl.exp(-2.0 * tl.abs(z))
    far = (1.0 - e) / (1.0 + e)
    far = tl.where(z < 0.0, -far, far)
    return tl.where(w < 0.3025, near, far)


@triton.jit
def expm1(z):
    """The exponential less 1, for z ≤ 0; near 0 too."""
    if z.dtype == tl.float64:
        t = tanh(0.5 * z)
        return 2.0 * t / (1.0 - t)
    else:
        # The series: for z > −0.35 what is left out is below 2e-8 of the whole.
        p = tl.fma(z, 1.0 / 5040.0, 1.0 / 720.0)
        p = tl.fma(p, z, 1.0 / 120.0)
        p = tl.fma(p, z, 1.0 / 24.0)
        p = tl.fma(p, z, 1.0 / 6.0)
        p = tl.fma(p, z, 0.5)
        return tl.where(z > -0.35, tl.fma(z * z, p, z), tl.exp(z) - 1.0)


@triton.jit
def normal(z):
    """Φ(z), the normal distribution's, and exp(−z²/2)."""
    gaussian = tl.exp(-0.5 * z * z)
    if z.dtype == tl.float64:
        return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)), gaussian
    else:
        # erfc(x) = exp(−x²)·t·P(t) for x ≥ 0, with t = 1/(1 + x/2): to a few steps of itself, and the exponential is
        # there anyway. The compiler's erf takes twice the instructions.
        t = 1.0 / tl.fma(tl.abs(z), 0.3535533905932738, 1.0)
        p = tl.fma(t, -5.936140939593315e-2, 0.2860037386417389)
        p = tl.fma(p, t, -0.4901667833328247)
        p = tl.fma(p, t, 0.2814757823944092)
        p = tl.fma(p, t, -2.8986340388655663e-2)
        p = tl.fma(p, t, 0.20369161665439606)
        p = tl.fma(p, t, 0.24284833669662476)
        p = tl.fma(p, t, 0.282410591840744)
        p = tl.fma(p, t, 0.2820844054222107)
        tail = 0.5 * (p * t) * gaussian
        return tl.where(z < 0.0, tail, 1.0 - tail), gaussian


@triton.jit
def gelu_gate(z):
    """2u, of 0.5·z·(1 + tanh(u)) = z·sigmoid(2u), and its derivative."""
    square = z * z
    gate = z * (square * 0.07135481627260025 + 1.5957691216057308)
    return gate, square * 0.21406444881780076 + 1.5957691216057308


@triton.jit
def activated(z, ACT: tl.constexpr, P0: tl.constexpr, P1: tl.constexpr):
    """The activation."""
    if ACT == "relu":
        return tl.where(z <= 0.0, 0.0, z)
    elif ACT == "leaky_relu":
        return tl.where(z > 0.0, z, z * P0)
    elif ACT == "relu6":
        return tl.where(z <= 0.0, 0.0, tl.where(z >= 6.0, 6.0, z))
    elif ACT == "hardtanh":
        return tl.where(z <= P0, P0, tl.where(z >= P1, P1, z))
    elif ACT == "silu":
        return z / (1.0 + tl.exp(-z))
    elif ACT == "hardswish":
        return z * tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, 6.0, z + 3.0)) * (1.0 / 6.0)
    elif ACT == "gelu":
        cumulative, _ = normal(z)
        return z * cumulative
    elif ACT == "gelu_tanh":
        gate, _ = gelu_gate(z)
        return z * sigmoid(gate)
    elif ACT == "sigmoid":
        return sigmoid(z)
    elif ACT == "tanh":
        return tanh(z)
    elif ACT == "elu":
        return tl.where(z <= 0.0, P0 * expm1(tl.minimum(z, 0.0)), z)
    else:
        tl.static_assert(ACT == "identity", "an activation that no kernel knows")
        return z


@triton.jit
def is_on(z, ACT: tl.constexpr, P0: tl.constexpr, P1: tl.constexpr):
    """Whether the derivative is 1, of the piecewise linear activations. At a NaN as torch decides."""
    if ACT == "relu":
        return ~(z <= 0.0)
    elif ACT == "leaky_relu":
        return z > 0.0
    elif ACT == "relu6":
        return ~((z <= 0.0) | (z >= 6.0))
    else:
        tl.static_assert(ACT == "hardtanh", "an activation that one bit does not tell")
        return ~((z <= P0) | (z >= P1))


@triton.jit
def passed(gradient, on, ACT: tl.constexpr, P0: tl.constexpr):
    """``gradient`` times the derivative that the bits tell; 0 where that is 0, even for an infinite gradient."""
    if ACT == "leaky_relu":
        return tl.where(on, gradient, gradient * P0)
    else:
        return tl.where(on, gradient, 0.0)


@triton.jit
def derivative(z, ACT: tl.constexpr, P0: tl.constexpr):
    """The derivative of the smooth activations, with torch's choice where two pieces meet."""
    if ACT == "silu":
        s = sigmoid(z)
        return s * (1.0 + z * (1.0 - s))
    elif ACT == "hardswish":
        return tl.where(z <= -3.0, 0.0, tl.where(z < 3.0, z * (1.0 / 3.0) + 0.5, 1.0))
    elif ACT == "gelu":
        cumulative, gaussian = normal(z)
        # Where z² overflows the density is 0, and z · 0 is NaN for an infinite z.
        return cumulative + tl.where(gaussian == 0.0, 0.0, z * (gaussian * 0.3989422804014327))
    elif ACT == "gelu_tanh":
        gate, slope = gelu_gate(z)
        s = sigmoid(gate)
        rest = s * (1.0 - s)
        return s + tl.where(rest == 0.0, 0.0, z * rest * slope)
    elif ACT == "sigmoid":
        s = sigmoid(z)
        return s * (1.0 - s)
    elif ACT == "tanh":
        t = tanh(z)
        return 1.0 - t * t
    else:
        tl.static_assert(ACT == "elu", "an activation whose derivative is not here")
        return tl.where(z <= 0.0, P0 * tl.exp(tl.minimum(z, 0.0)), 1.0)


@triton.jit
def packed(on, BLOCK: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    """Eight positions, one after the other, as a byte: (positions / 8,) or (positions / 8, channels)."""
    GROUPS: tl.constexpr = BLOCK // 8
    ones = on.to(tl.int32)
    if ROWS:
        return tl.sum(tl.reshape(ones, (GROUPS, 8, CHANNELS)) << tl.arange(0, 8)[None, :, None], 1).to(tl.uint8)
    else:
        return tl.sum(tl.reshape(ones, (GROUPS, 8)) << tl.arange(0, 8)[None, :], 1).to(tl.uint8)


@triton.jit
def unpacked(bytes, BLOCK: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    """The inverse of :func:`packed`."""
    wide = bytes.to(tl.int32)
    if ROWS:
        return tl.reshape((wide[:, None, :] >> tl.arange(0, 8)[None, :, None]) & 1, (BLOCK, CHANNELS)) != 0
    else:
        return tl.reshape((wide[:, None] >> tl.arange(0, 8)[None, :]) & 1, (BLOCK,)) != 0
