// The table of one instruction set's kernels, by element type and activation.
#pragma once

#include "columns.h"
#include "planes.h"

namespace batchnorm::INSTRUCTION_SET {

template <class T>
constexpr Kernels kernels_of() {
#define OF_EACH(kernel)                                                                                             \
  {kernel<T, Identity>, kernel<T, Relu>, kernel<T, LeakyRelu>, kernel<T, Hardtanh>, kernel<T, Silu>,                \
   kernel<T, Hardswish>, kernel<T, Gelu>, kernel<T, GeluTanh>, kernel<T, Sigmoid>, kernel<T, Tanh>, kernel<T, Elu>}
#define OF_EACH_AND_BITS(kernel)                                                                                    \
  {kernel<T, Identity>,  kernel<T, Relu>, kernel<T, LeakyRelu>, kernel<T, Hardtanh>, kernel<T, Silu>,               \
   kernel<T, Hardswish>, kernel<T, Gelu>, kernel<T, GeluTanh>,  kernel<T, Sigmoid>,  kernel<T, Tanh>,               \
   kernel<T, Elu>,       kernel<T, Bits>}
  return {plane_moments<T>,          OF_EACH(plane_normalize),  OF_EACH_AND_BITS(plane_grad_sums),
          OF_EACH_AND_BITS(plane_grad_input),  column_moments<T>, OF_EACH(column_normalize),
          OF_EACH_AND_BITS(column_grad_sums),  OF_EACH_AND_BITS(column_grad_input)};
#undef OF_EACH
#undef OF_EACH_AND_BITS
}

// In the order of Element.
constexpr Kernels kTable[] = {kernels_of<float>(), kernels_of<double>(), kernels_of<BFloat16>(),
                              kernels_of<Float16>()};

}  // namespace batchnorm::INSTRUCTION_SET
