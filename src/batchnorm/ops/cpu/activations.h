// The activations that fuse, on sixteen values: what each makes of z, and of a gradient. Formulas and the choice at
// each kink are those of activation.py.
//
// A piecewise linear activation says by on(z) where its derivative is 1. One bit a value then stands for z in the
// backward pass, whose activation is Bits.
#pragma once

#include "functions.h"

namespace batchnorm::INSTRUCTION_SET {

template <class A>
struct Identity {
  static constexpr bool needs_z = false, has_bits = false, reads_bits = false;
  explicit Identity(const Activation&) {}
  INLINE Pack<A> apply(Pack<A> z) const { return z; }
  INLINE Pack<A> gradient(Pack<A> dy, Pack<A>) const { return dy; }
};

// What a piecewise linear activation does to a gradient: 0 where it is flat, even if the gradient is infinite.
template <class A>
INLINE Pack<A> where_on(Mask<A> on, Pack<A> dy, A slope) {
  const Pack<A> off = slope == 0 ? Pack<A>{} : dy * splat(slope);
  return select(on, dy, off);
}

template <class A>
struct Relu {
  static constexpr bool needs_z = true, has_bits = true, reads_bits = false;
  explicit Relu(const Activation&) {}
  INLINE Mask<A> on(Pack<A> z) const { return ~(z <= Pack<A>{}); }
  INLINE Pack<A> apply(Pack<A> z) const { return select(z <= Pack<A>{}, Pack<A>{}, z); }
  INLINE Pack<A> gradient(Pack<A> dy, Pack<A> z) const { return select(z <= Pack<A>{}, Pack<A>{}, dy); }
};

template <class A>
struct LeakyRelu {
  static constexpr bool needs_z = true, has_bits = true, reads_bits = false;
  A slope;
  explicit LeakyRelu(const Activation& a) : slope(static_cast<A>(a.first)) {}
  INLINE Mask<A> on(Pack<A> z) const { return z > Pack<A>{}; }
  INLINE Pack<A> apply(Pack<A> z) const { return select(on(z), z, z * splat(slope)); }
  INLINE Pack<A> gradient(Pack<A> dy, Pack<A> z) const { return where_on(on(z), dy, slope); }
};

template <class A>
struct Hardtanh {
  static constexpr bool needs_z = true, has_bits = true, reads_bits = false;
  Pack<A> low, high;
  explicit Hardtanh(const Activation& a) : low(splat(static_cast<A>(a.first))), high(splat(static_cast<A>(a.second))) {}
  INLINE Mask<A> on(Pack<A> z) const { return ~((z <= low) | (z >= high)); }
  INLINE Pack<A> apply(Pack<A> z) const { return select(z <= low, low, select(z >= high, high, z)); }
  INLINE Pack<A> gradient(Pack<A> dy, Pack<A> z) const { return select(on(z), dy, Pack<A>{}); }
};

// Any of the three above, in a backward pass that has their bits.
template <class A>
struct Bits {
  static constexpr bool needs_z = false, has_bits = false, reads_bits = true;
  A slope;
  explicit Bits(const Activation& a) : slope(static_cast<A>(a.first)) {}
  INLINE Pack<A> gradient(Pack<A> dy, uint32_t bits) const { return where_on(from_bits<A>(bits), dy, slope); }
};

template <class A>
INLINE Pack<A> sigmoid(Pack<A> z) {
  const Pack<A> one = splat(A(1));
  return one / (one + exp(Pack<A>{} - z));
}

template <class A>
struct Smooth {
  static constexpr bool needs_z = true, has_bits = false, reads_bits = false;
  explicit Smooth(const Activation&) {}
};

template <class A>
struct Silu : Smooth<A> {
  using Smooth<A>::Smooth;
  INLINE Pack<A> apply(Pack<A> z) const { return z * sigmoid(z); }
  INLINE Pack<A> gradient(Pack<A> dy, Pack<A> z) const {
    const Pack<A> s = sigmoid(z), one = splat(A(1));
    return dy * (s * fma(z, one - s, one));
  }
};

template <class A>
struct Hardswish : Smooth<A> {
  using Smooth<A>::Smooth;
  INLINE Pack<A> apply(Pack<A> z) const {
    const Pack<A> zero{}, three = splat(A(3)), six = splat(A(6));
    Pack<A> gate = z + three;
    gate = select(gate < zero, zero, select(gate > six, six, gate));
    return z * gate / six;
  }
  INLINE Pack<A> gradient(Pack<A> dy, Pack<A> z) const {
    const Pack<A> three = splat(A(3));
    const Pack<A> inside = dy * (z / three + splat(A(0.5)));
    return select(z <= Pack<A>{} - three, Pack<A>{}, select(z < three, inside, dy));
  }
};

// Φ(z), the normal distribution's, and exp(−z²/2).
template <class A>
struct Normal {
  Pack<A> cumulative, gaussian;
  INLINE explicit Normal(Pack<A> z) {
    const Pack<A> zero{};
    gaussian = exp(z * z * splat(A(-0.5)));
    const Pack<A> size = select(z < zero, zero - z, z);
    // Of |z|: where z is negative, 1 + erf(z/√2) would cancel.
    const Pack<A> tail = splat(A(0.5)) * erfc(size * splat(A(0.70710678118654752440)), gaussian);
    cumulative = select(z < zero, tail, splat(A(1)) - tail);
  }
};

template <class A>
struct Gelu : Smooth<A> {
  using Smooth<A>::Smooth;
  INLINE Pack<A> apply(Pack<A> z) const { return z * Normal<A>(z).cumulative; }
  INLINE Pack<A> gradient(Pack<A> dy, Pack<A> z) const {
    const Normal<A> normal(z);
    const Pack<A> density = normal.gaussian * splat(A(0.39894228040143267794));
    // z² is infinite long before z is: the density is 0 there, and 0·∞ would be NaN.
    const Pack<A> slope = select((density > Pack<A>{}), z * density, density);
    return dy * (normal.cumulative + slope);
  }
};

// 0.5·z·(1 + tanh(u)) = z·sigmoid(2u), with 2u = z·(linear + cubic·z²).
template <class A>
struct GeluTanh : Smooth<A> {
  using Smooth<A>::Smooth;
  static constexpr double linear = 1.59576912160573071176, cubic = linear * 0.044715;
  INLINE Pack<A> gate(Pack<A> z) const { return sigmoid(z * fma(z * z, splat(A(cubic)), splat(A(linear)))); }
  INLINE Pack<A> apply(Pack<A> z) const { return z * gate(z); }
  INLINE Pack<A> gradient(Pack<A> dy, Pack<A> z) const {
    const Pack<A> s = gate(z), one = splat(A(1));
    const Pack<A> steepness = s * (one - s);
    const Pack<A> slope = z * steepness * fma(z * z, splat(A(3 * cubic)), splat(A(linear)));
    return dy * (s + select(steepness > Pack<A>{}, slope, steepness));
  }
};

template <class A>
struct Sigmoid : Smooth<A> {
  using Smooth<A>::Smooth;
  INLINE Pack<A> apply(Pack<A> z) const { return sigmoid(z); }
  INLINE Pack<A> gradient(Pack<A> dy, Pack<A> z) const {
    const Pack<A> s = sigmoid(z);
    return dy * (s * (splat(A(1)) - s));
  }
};

template <class A>
struct Tanh : Smooth<A> {
  using Smooth<A>::Smooth;
  INLINE Pack<A> apply(Pack<A> z) const {
    // (e − 1)/(e + 1) by expm1, which keeps small z; beyond 40 the quotient is 1, and e would overflow.
    const Pack<A> bound = splat(A(40));
    Pack<A> doubled = z + z;
    doubled = select(doubled > bound + bound, bound + bound, doubled);
    const Pack<A> e = expm1(doubled);
    return e / (e + splat(A(2)));
  }
  INLINE Pack<A> gradient(Pack<A> dy, Pack<A> z) const {
    const Pack<A> t = apply(z);
    return dy * (splat(A(1)) - t * t);
  }
};

template <class A>
struct Elu : Smooth<A> {
  Pack<A> alpha;
  explicit Elu(const Activation& a) : Smooth<A>(a), alpha(splat(static_cast<A>(a.first))) {}
  INLINE Pack<A> apply(Pack<A> z) const { return select(z <= Pack<A>{}, alpha * expm1(z), z); }
  INLINE Pack<A> gradient(Pack<A> dy, Pack<A> z) const {
    const Pack<A> flat = select(z > Pack<A>{}, Pack<A>{}, z);
    return select(z <= Pack<A>{}, dy * (alpha * exp(flat)), dy);
  }
};

}  // namespace batchnorm::INSTRUCTION_SET
