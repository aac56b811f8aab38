// Sixteen values in registers, whatever the instruction set: the unit that every kernel works in.
//
// A file that includes this has chosen its instruction set by `#pragma GCC target`, named it in INSTRUCTION_SET, which
// is also the namespace, and told its register's size in VECTOR_BYTES (64: AVX-512, 32: AVX2, 16: NEON): the same lines
// compile once for each. (The pragma comes after the standard headers, or the linker could take their inline functions
// from the file with the widest instructions. It does not define __AVX512F__ and its like in C++.)
//
// Arithmetic is written with the compiler's vector extensions. What these do not know is below, by intrinsics: the
// fused multiply-add (spelled out, since a compiler that fuses as it likes would compute z in the backward pass by
// another rounding than in the forward pass), and masks as bits. Loads and stores are in memory.h.
#pragma once

#include "types.h"

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined operand inside its own intrinsics (_mm512_cvtph_ps) for ours.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace batchnorm::INSTRUCTION_SET {

constexpr int kBytes = VECTOR_BYTES;

template <class A>
struct Native {
  typedef A Type __attribute__((vector_size(kBytes)));
};

template <class A>
struct Pack {
  using Vector = typename Native<A>::Type;
  static constexpr int width = kBytes / static_cast<int>(sizeof(A));
  static constexpr int parts = kLanes / width;
  Vector part[parts];
};

template <class A>
struct Mask {
  using Vector = decltype(typename Pack<A>::Vector{} < typename Pack<A>::Vector{});
  Vector part[Pack<A>::parts];
};

// Of a Pack<A>, in the headers that compile for each instruction set and nowhere else.
#define FOR_PARTS _Pragma("GCC unroll 8") for (int i = 0; i < Pack<A>::parts; ++i)

template <class A>
INLINE Pack<A> splat(A value) {
  Pack<A> r;
  FOR_PARTS r.part[i] = typename Pack<A>::Vector{} + value;
  return r;
}

#define ARITHMETIC(op)                               \
  template <class A>                                 \
  INLINE Pack<A> operator op(Pack<A> a, Pack<A> b) { \
    FOR_PARTS a.part[i] = a.part[i] op b.part[i];    \
    return a;                                        \
  }
ARITHMETIC(+)
ARITHMETIC(-)
ARITHMETIC(*)
ARITHMETIC(/)
#undef ARITHMETIC

#define COMPARISON(op)                               \
  template <class A>                                 \
  INLINE Mask<A> operator op(Pack<A> a, Pack<A> b) { \
    Mask<A> r;                                       \
    FOR_PARTS r.part[i] = a.part[i] op b.part[i];    \
    return r;                                        \
  }
COMPARISON(<)
COMPARISON(>)
COMPARISON(<=)
COMPARISON(>=)
#undef COMPARISON

template <class A>
INLINE Mask<A> operator|(Mask<A> a, Mask<A> b) {
  FOR_PARTS a.part[i] |= b.part[i];
  return a;
}

template <class A>
INLINE Mask<A> operator~(Mask<A> a) {
  FOR_PARTS a.part[i] = ~a.part[i];
  return a;
}

template <class A>
INLINE Pack<A> select(Mask<A> mask, Pack<A> a, Pack<A> b) {
  FOR_PARTS a.part[i] = mask.part[i] ? a.part[i] : b.part[i];
  return a;
}

// a·b + c, rounded once.
INLINE Native<float>::Type fma_native(Native<float>::Type a, Native<float>::Type b, Native<float>::Type c) {
#if VECTOR_BYTES == 64
  return _mm512_fmadd_ps(a, b, c);
#elif VECTOR_BYTES == 32
  return _mm256_fmadd_ps(a, b, c);
#else
  return vfmaq_f32(c, a, b);
#endif
}

INLINE Native<double>::Type fma_native(Native<double>::Type a, Native<double>::Type b, Native<double>::Type c) {
#if VECTOR_BYTES == 64
  return _mm512_fmadd_pd(a, b, c);
#elif VECTOR_BYTES == 32
  return _mm256_fmadd_pd(a, b, c);
#else
  return vfmaq_f64(c, a, b);
#endif
}

template <class A>
INLINE Pack<A> fma(Pack<A> a, Pack<A> b, Pack<A> c) {
  FOR_PARTS a.part[i] = fma_native(a.part[i], b.part[i], c.part[i]);
  return a;
}

// --- masks and bits: bit k stands for value k ------------------------------------------------------------------

template <class A>
INLINE uint32_t to_bits(Mask<A> mask) {
  uint32_t bits = 0;
#if VECTOR_BYTES == 64
  if constexpr (sizeof(A) == 4) {
    bits = _mm512_movepi32_mask((__m512i)mask.part[0]);
  } else {
    FOR_PARTS bits |= static_cast<uint32_t>(_mm512_movepi64_mask((__m512i)mask.part[i])) << (8 * i);
  }
#elif VECTOR_BYTES == 32
  if constexpr (sizeof(A) == 4) {
    FOR_PARTS bits |= static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask.part[i])) << (8 * i);
  } else {
    FOR_PARTS bits |= static_cast<uint32_t>(_mm256_movemask_pd((__m256d)mask.part[i])) << (4 * i);
  }
#else
  for (int i = 0; i < Pack<A>::parts; ++i) {
    for (int k = 0; k < Pack<A>::width; ++k) {
      bits |= static_cast<uint32_t>(mask.part[i][k] & 1) << (i * Pack<A>::width + k);
    }
  }
#endif
  return bits;
}

template <class A>
INLINE Mask<A> from_bits(uint32_t bits) {
  using Vector = typename Mask<A>::Vector;
  Mask<A> r;
  FOR_PARTS {
    Vector places;
    for (int k = 0; k < Pack<A>::width; ++k) places[k] = 1 << (i * Pack<A>::width + k);
    r.part[i] = ((Vector{} + bits) & places) != 0;
  }
  return r;
}

// The first `count` of the sixteen.
template <class A>
INLINE Mask<A> first(int count) {
  return from_bits<A>((1u << count) - 1);
}

}  // namespace batchnorm::INSTRUCTION_SET
