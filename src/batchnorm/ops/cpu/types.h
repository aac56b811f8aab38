// What the kernels and those who call them agree on: element types, activations, and how memory is walked.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace batchnorm {

// Values that a kernel works on at a time, whatever the instruction set.
constexpr int kLanes = 16;

// Half precision in memory: the kernels only convert it.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Statistics and arithmetic are in float for all but double.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

enum class Element { Float32, Float64, BFloat16, Float16, Count };

// As the table of activations names them; relu6 is a hardtanh. Bits stands, in a backward pass, for all whose
// derivative was kept as one bit a value.
enum class Kind { Identity, Relu, LeakyRelu, Hardtanh, Silu, Hardswish, Gelu, GeluTanh, Sigmoid, Tanh, Elu, Bits, Count };

struct Activation {
  Kind kind = Kind::Identity;
  double first = 0;   // negative_slope, min_val or alpha; for Bits the slope where the bit is off
  double second = 0;  // max_val
};

// A run of values: in planes, values of one channel that lie side by side, counted from the channel's first one; in a
// matrix, rows that follow one another.
struct Segment {
  int64_t offset;
  int64_t length;
  int64_t position;  // of its first bit, where bits are kept
};

// Which segments make a block, or which blocks make a slice, and how long they are together.
struct Range {
  int64_t begin;
  int64_t end;
  int64_t length;
};

// Count, mean (counted from an origin: see PlaneWork) and the sum of squared differences from it.
struct Moments {
  double count = 0;
  double mean = 0;
  double m2 = 0;
};

// Of two sets together (Chan, Golub & LeVeque 1979).
INLINE Moments merged(const Moments& a, const Moments& b) {
  if (a.count == 0) return b;
  if (b.count == 0) return a;
  const double count = a.count + b.count;
  const double delta = b.mean - a.mean;
  const double share = b.count / count;
  return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * a.count * share};
}

// One channel's values, or a slice of them, when they lie in planes: (N, C, *spatial) contiguous.
struct PlaneWork {
  const void* input = nullptr;        // each points to the channel's first value
  const void* grad_output = nullptr;
  const void* residual = nullptr;
  void* output = nullptr;             // y, or dx
  void* grad_residual = nullptr;
  uint8_t* bits = nullptr;            // the channel's own bytes
  const uint8_t* bits_end = nullptr;
  const Segment* segments = nullptr;
  const Range* blocks = nullptr;      // ranges of segments
  int64_t begin = 0, end = 0;         // which blocks
  // Moments are found with their mean counted from the channel's first value: merging takes differences of means, which
  // a large mean, rounded, would spoil.
  double origin = 0;
  double mean = 0, scale = 0, shift = 0;        // z = (x − mean)·scale + shift
  double of_grad = 0, of_input = 0, constant = 0;  // dx = dz·of_grad + (x − mean)·of_input + constant
  bool training = true;               // else dx = dz·of_grad: what is constant passes no NaN on
  Activation activation;
};

// A matrix of rows, or some rows and columns of it, with a value of each vector a column: channels-last and (N, C).
struct ColumnWork {
  const void* input = nullptr;        // the matrix's first value
  const void* grad_output = nullptr;
  const void* residual = nullptr;
  void* output = nullptr;
  void* grad_residual = nullptr;
  uint8_t* bits = nullptr;            // in the order of memory
  const uint8_t* bits_end = nullptr;
  const Segment* segments = nullptr;  // runs of rows
  const Range* blocks = nullptr;
  int64_t begin = 0, end = 0;         // which blocks
  int64_t width = 0;                  // values from one row to the next
  int64_t first = 0, last = 0;        // which columns
  const double* origin = nullptr;     // as in PlaneWork, a value a column
  const void* mean = nullptr;         // of the accumulator's type, a value a column
  const void* scale = nullptr;
  const void* shift = nullptr;
  const void* of_grad = nullptr;
  const void* of_input = nullptr;
  const void* constant = nullptr;
  bool training = true;               // as in PlaneWork
  double* first_sums = nullptr;       // moments: the mean from the origin; gradients: Σ dz; a value a column
  double* second_sums = nullptr;      // moments: m2; gradients: Σ dz·(x − mean)
  Activation activation;
};

// The kernels of one element type in one instruction set.
struct Kernels {
  Moments (*plane_moments)(const PlaneWork&);
  void (*plane_normalize[static_cast<int>(Kind::Bits)])(const PlaneWork&);
  void (*plane_grad_sums[static_cast<int>(Kind::Count)])(const PlaneWork&, double* sums);
  void (*plane_grad_input[static_cast<int>(Kind::Count)])(const PlaneWork&);
  void (*column_moments)(const ColumnWork&);
  void (*column_normalize[static_cast<int>(Kind::Bits)])(const ColumnWork&);
  void (*column_grad_sums[static_cast<int>(Kind::Count)])(const ColumnWork&);
  void (*column_grad_input[static_cast<int>(Kind::Count)])(const ColumnWork&);
};

}  // namespace batchnorm
