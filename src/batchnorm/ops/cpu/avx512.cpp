// The kernels for x86 processors with AVX-512 (F, BW, DQ and VL, as every server since 2017 has them).
#if defined(__x86_64__)

#include <cmath>

#include "types.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#define INSTRUCTION_SET avx512
#define VECTOR_BYTES 64
#include "table.h"

namespace batchnorm {
extern const Kernels* const kAvx512 = avx512::kTable;
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
