// The kernels for 64-bit ARM processors, all of which have NEON.
#if defined(__aarch64__)

#include <cmath>

#include "types.h"

#define INSTRUCTION_SET neon
#define VECTOR_BYTES 16
#include "table.h"

namespace batchnorm {
extern const Kernels* const kNeon = neon::kTable;
}
#endif
