// The kernels for x86 processors with AVX2, FMA and F16C, as all have had since 2013 (Intel) and 2015 (AMD).
#if defined(__x86_64__)

#include <cmath>

#include "types.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define INSTRUCTION_SET avx2
#define VECTOR_BYTES 32
#include "table.h"

namespace batchnorm {
extern const Kernels* const kAvx2 = avx2::kTable;
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
