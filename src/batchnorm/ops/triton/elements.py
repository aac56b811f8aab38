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
def inverse_std(var, EPS: tl.constexpr):
    """1 / √(var + eps), rounded as root and division round: the reciprocal root of GPUs is off by a step or two."""
    if var.dtype == tl.float64:
        return 1.0 / tl.sqrt(var + EPS)
    else:
        return tl.div_rn(1.0, tl.sqrt_rn(var + EPS))


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
    t = tanh(0.5 * z)
    return 2.0 * t / (1.0 - t)


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
        return 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        return 0.5 * z * (1.0 + tanh(0.7978845608028654 * (z + 0.044715 * z * z * z)))
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
        density = tl.exp(-0.5 * z * z) * 0.3989422804014327
        # Where z² overflows the density is 0, and z · 0 is NaN for an infinite z.
        return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + tl.where(density == 0.0, 0.0, z * density)
    elif ACT == "gelu_tanh":
        t = tanh(0.7978845608028654 * (z + 0.044715 * z * z * z))
        sech2 = 1.0 - t * t
        slope = 0.3989422804014327 * z * sech2 * (1.0 + 0.134145 * z * z)
        return 0.5 * (1.0 + t) + tl.where(sech2 == 0.0, 0.0, slope)
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
