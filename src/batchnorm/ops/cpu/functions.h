// exp, expm1 and erfc on sixteen values. In double they are the C library's, value by value.
#pragma once

#include <cmath>

#include "memory.h"

namespace batchnorm::INSTRUCTION_SET {

template <class F>
INLINE Pack<double> each(Pack<double> x, F function) {
  double values[kLanes];
  store(values, x);
  for (double& value : values) value = function(value);
  return load(values);
}

// The polynomials below are our own fits by linear programming: the largest relative error over the interval is least.

// exp(x) = first·(1 + p)·second, with first·second = 2ⁿ, n the integer nearest to x/ln 2 and p = exp(x − n·ln 2) − 1.
// Two factors, since n reaches beyond what one exponent holds.
struct Exponential {
  Pack<float> first, second;
  Pack<float> inverse;  // 1/second
  Pack<float> p;
};

INLINE Exponential exponential(Pack<float> x) {
  // Beyond these bounds exp is 0 or infinite in float; the comparisons leave a NaN as it is.
  x = select(x > splat(89.0f), splat(89.0f), x);
  x = select(x < splat(-104.0f), splat(-104.0f), x);
  const Pack<float> magic = splat(12582912.0f);  // 1.5·2²³: adding it rounds to an integer, in the last bits
  const Pack<float> shifted = fma(x, splat(1.44269504f), magic);
  const Pack<float> n = shifted - magic;
  // ln 2 in two parts, the first with so few bits that n times it is exact.
  Pack<float> r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  Pack<float> q = splat(1.381451147608459e-3f);
  q = fma(q, r, splat(8.3687799051404e-3f));
  q = fma(q, r, splat(4.166839271783829e-2f));
  q = fma(q, r, splat(0.1666651964187622f));
  q = fma(q, r, splat(0.4999999403953552f));
  Exponential e;
  e.p = fma(r * r, q, r);
  using Vector = Pack<float>::Vector;
  using Integers = Mask<float>::Vector;
#pragma GCC unroll 8
  for (int i = 0; i < Pack<float>::parts; ++i) {
    const Integers whole = (Integers)shifted.part[i] - (Integers)magic.part[i];
    const Integers half = whole >> 1;
    e.first.part[i] = (Vector)((half + 127) << 23);
    e.second.part[i] = (Vector)((whole - half + 127) << 23);
    e.inverse.part[i] = (Vector)((half - whole + 127) << 23);
  }
  return e;
}

INLINE Pack<float> exp(Pack<float> x) {
  const Exponential e = exponential(x);
  return fma(e.first, e.p, e.first) * e.second;
}

INLINE Pack<float> expm1(Pack<float> x) {
  const Exponential e = exponential(x);
  return fma(e.first, e.p, e.first - e.inverse) * e.second;
}

INLINE Pack<double> exp(Pack<double> x) {
  return each(x, [](double v) { return std::exp(v); });
}

INLINE Pack<double> expm1(Pack<double> x) {
  return each(x, [](double v) { return std::expm1(v); });
}

// erfc(x) for x ≥ 0, given exp(−x²): exp(−x²)·t·P(t) with t = 1/(1 + x/2).
INLINE Pack<float> erfc(Pack<float> x, Pack<float> gaussian) {
  const Pack<float> t = splat(1.0f) / fma(x, splat(0.5f), splat(1.0f));
  Pack<float> p = splat(-5.936140939593315e-2f);
  p = fma(p, t, splat(0.2860037386417389f));
  p = fma(p, t, splat(-0.4901667833328247f));
  p = fma(p, t, splat(0.2814757823944092f));
  p = fma(p, t, splat(-2.8986340388655663e-2f));
  p = fma(p, t, splat(0.20369161665439606f));
  p = fma(p, t, splat(0.24284833669662476f));
  p = fma(p, t, splat(0.282410591840744f));
  p = fma(p, t, splat(0.2820844054222107f));
  return p * t * gaussian;
}

INLINE Pack<double> erfc(Pack<double> x, Pack<double>) {
  return each(x, [](double v) { return std::erfc(v); });
}

}  // namespace batchnorm::INSTRUCTION_SET
