// Sixteen values from memory and to it: half precision widened and narrowed on the way, whole packs and the last values
// of a row.
#pragma once

#include "pack.h"

namespace batchnorm::INSTRUCTION_SET {

template <class V, class T>
INLINE V load_vector(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
struct Half {
  typedef uint16_t Narrow __attribute__((vector_size(kBytes / 2)));
  typedef uint32_t Wide __attribute__((vector_size(kBytes)));
};

INLINE Native<float>::Type widen(const BFloat16* p) {
  auto wide = __builtin_convertvector(load_vector<Half<BFloat16>::Narrow>(p), Half<BFloat16>::Wide);
  return (Native<float>::Type)(wide << 16);
}

INLINE void narrow(BFloat16* p, Native<float>::Type value) {
  using Wide = Half<BFloat16>::Wide;
  const Wide bits = (Wide)value;
  // To nearest, ties to even; a NaN's mantissa must not round up into infinity.
  const Wide rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Wide kept = (value != value) ? Wide{} + 0x7fc0 : rounded;
  auto result = __builtin_convertvector(kept, Half<BFloat16>::Narrow);
  __builtin_memcpy(p, &result, sizeof result);
}

INLINE Native<float>::Type widen(const Float16* p) {
#if VECTOR_BYTES == 64
  return _mm512_cvtph_ps(load_vector<__m256i>(p));
#elif VECTOR_BYTES == 32
  return _mm256_cvtph_ps(load_vector<__m128i>(p));
#else
  return vcvt_f32_f16(load_vector<float16x4_t>(p));
#endif
}

INLINE void narrow(Float16* p, Native<float>::Type value) {
#if VECTOR_BYTES == 64
  const __m256i result = _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
#elif VECTOR_BYTES == 32
  const __m128i result = _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
#else
  const float16x4_t result = vcvt_f16_f32(value);
#endif
  __builtin_memcpy(p, &result, sizeof result);
}

INLINE Native<float>::Type widen(const float* p) { return load_vector<Native<float>::Type>(p); }
INLINE Native<double>::Type widen(const double* p) { return load_vector<Native<double>::Type>(p); }
INLINE void narrow(float* p, Native<float>::Type value) { __builtin_memcpy(p, &value, sizeof value); }
INLINE void narrow(double* p, Native<double>::Type value) { __builtin_memcpy(p, &value, sizeof value); }

template <class T, class A = Accumulator<T>>
INLINE Pack<A> load(const T* p) {
  Pack<A> r;
  FOR_PARTS r.part[i] = widen(p + i * Pack<A>::width);
  return r;
}

template <class T, class A = Accumulator<T>>
INLINE void store(T* p, Pack<A> value) {
  FOR_PARTS narrow(p + i * Pack<A>::width, value.part[i]);
}

#if VECTOR_BYTES == 32
INLINE Native<float>::Type load_masked(const float* p, Mask<float>::Vector mask) {
  return _mm256_maskload_ps(p, (__m256i)mask);
}
INLINE void store_masked(float* p, Mask<float>::Vector mask, Native<float>::Type value) {
  _mm256_maskstore_ps(p, (__m256i)mask, value);
}
#endif

// 1 to 15 values, by the powers of two in their number: a call of memcpy would cost more than all the rest.
template <class T>
INLINE void copy_first(T* to, const T* from, int count) {
#pragma GCC unroll 4
  for (int size = 8; size > 0; size /= 2) {
    if (count & size) {
      __builtin_memcpy(to, from, size * sizeof(T));
      to += size;
      from += size;
    }
  }
}

// The first `count` (1 to 15) values at p, zeros behind them; nothing else is touched.
template <class T, class A = Accumulator<T>>
INLINE Pack<A> load_first(const T* p, int count) {
#if VECTOR_BYTES == 64
  const uint32_t mask = (1u << count) - 1;
  Pack<A> r;
  if constexpr (sizeof(T) == 2) {
    const __m256i loaded = _mm256_maskz_loadu_epi16(mask, p);
    r.part[0] = widen(reinterpret_cast<const T*>(&loaded));
  } else if constexpr (sizeof(T) == 4) {
    r.part[0] = _mm512_maskz_loadu_ps(mask, p);
  } else {
    r.part[0] = _mm512_maskz_loadu_pd(mask & 0xff, p);
    r.part[1] = _mm512_maskz_loadu_pd(mask >> 8, p + 8);
  }
  return r;
#else
  if constexpr (VECTOR_BYTES == 32 && sizeof(T) == 4) {
    const Mask<A> mask = first<A>(count);
    Pack<A> r;
    FOR_PARTS r.part[i] = load_masked(p + i * Pack<A>::width, mask.part[i]);
    return r;
  } else {
    T whole[kLanes] = {};
    copy_first(whole, p, count);
    return load(whole);
  }
#endif
}

template <class T, class A = Accumulator<T>>
INLINE void store_first(T* p, Pack<A> value, int count) {
#if VECTOR_BYTES == 64
  const uint32_t mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 2) {
    __m256i narrowed;
    narrow(reinterpret_cast<T*>(&narrowed), value.part[0]);
    _mm256_mask_storeu_epi16(p, mask, narrowed);
  } else if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, mask, value.part[0]);
  } else {
    _mm512_mask_storeu_pd(p, mask & 0xff, value.part[0]);
    _mm512_mask_storeu_pd(p + 8, mask >> 8, value.part[1]);
  }
#else
  if constexpr (VECTOR_BYTES == 32 && sizeof(T) == 4) {
    const Mask<A> mask = first<A>(count);
    FOR_PARTS store_masked(p + i * Pack<A>::width, mask.part[i], value.part[i]);
  } else {
    T whole[kLanes];
    store(whole, value);
    copy_first(p, whole, count);
  }
#endif
}

// Sixteen values, or, where `whole` is false, the first `count` of them.
template <class Whole, class T, class A = Accumulator<T>>
INLINE Pack<A> load(Whole, const T* p, int count) {
  if constexpr (Whole::value) return load(p);
  return load_first(p, count);
}

template <class Whole, class T, class A = Accumulator<T>>
INLINE void store(Whole, T* p, Pack<A> value, int count) {
  if constexpr (Whole::value) {
    store(p, value);
  } else {
    store_first(p, value, count);
  }
}

// Calls step(whole, index, count) for each sixteen indices of a run, and once for what is left.
template <class Step>
INLINE void by_lanes(int64_t begin, int64_t end, Step step) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) step(std::true_type{}, i, kLanes);
  if (i < end) step(std::false_type{}, i, static_cast<int>(end - i));
}

}  // namespace batchnorm::INSTRUCTION_SET
