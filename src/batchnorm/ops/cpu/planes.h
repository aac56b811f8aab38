// Values of one channel in planes, (N, C, *spatial) contiguous: a channel's values lie in runs, one or more a sample.
//
// Sums run over blocks of a few thousand values, small enough for the first-level cache and for float to add up; what
// is above a block is in double. Blocks depend on the shape alone, so no sum depends on the number of threads.
#pragma once

#include <cmath>

#include "activations.h"
#include "bits.h"
#include "sums.h"

namespace batchnorm::INSTRUCTION_SET {

constexpr int kUnroll = 4;  // independent sums, so that one addition does not wait for another

struct Sums {
  double first, second;
};

// Σ(x − shift) and Σ(x − shift)² over a block.
template <class T, class A = Accumulator<T>>
INLINE Sums shifted_sums(const PlaneWork& work, const Range& block, A shift) {
  const T* input = static_cast<const T*>(work.input);
  const Pack<A> center = splat(shift);
  // In two levels: beside one large term, each further one is rounded to that one's last digit, always the same way.
  Pack<A> ones[kUnroll] = {}, squares[kUnroll] = {}, all_ones[kUnroll] = {}, all_squares[kUnroll] = {};
  int rounds = 0;
  const auto lift = [&]() INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) {
      all_ones[u] = all_ones[u] + ones[u];
      all_squares[u] = all_squares[u] + squares[u];
      ones[u] = squares[u] = Pack<A>{};
    }
    rounds = 0;
  };
  for (int64_t s = block.begin; s < block.end; ++s) {
    const T* p = input + work.segments[s].offset;
    const int64_t length = work.segments[s].length;
    int64_t i = 0;
    for (; i + kUnroll * kLanes <= length; i += kUnroll * kLanes) {
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) {
        const Pack<A> d = load(p + i + u * kLanes) - center;
        ones[u] = ones[u] + d;
        squares[u] = fma(d, d, squares[u]);
      }
      if (++rounds == kRounds) lift();
    }
    for (; i + kLanes <= length; i += kLanes) {
      const Pack<A> d = load(p + i) - center;
      ones[0] = ones[0] + d;
      squares[0] = fma(d, d, squares[0]);
      if (++rounds == kRounds) lift();
    }
    if (i < length) {
      const int count = static_cast<int>(length - i);
      const Pack<A> d = select(first<A>(count), load_first(p + i, count) - center, Pack<A>{});
      ones[1] = ones[1] + d;
      squares[1] = fma(d, d, squares[1]);
      if (++rounds == kRounds) lift();
    }
  }
  lift();
  return {sum((all_ones[0] + all_ones[1]) + (all_ones[2] + all_ones[3])),
          sum((all_squares[0] + all_squares[1]) + (all_squares[2] + all_squares[3]))};
}

template <class T, class A = Accumulator<T>>
Moments plane_moments(const PlaneWork& work) {
  Moments all;
  A shift = static_cast<A>(work.origin);
  for (int64_t b = work.begin; b < work.end; ++b) {
    const Range& block = work.blocks[b];
    const double count = static_cast<double>(block.length);
    Moments found;
    for (int attempt = 0; attempt < 4; ++attempt) {
      const Sums sums = shifted_sums<T>(work, block, shift);
      const double rest = sums.first / count;
      const double variance = sums.second / count - rest * rest;
      found = {count, (static_cast<double>(shift) - work.origin) + rest, variance > 0 ? variance * count : 0};
      const bool constant = sums.first == 0 && sums.second == 0;
      // What is not finite is not a number in the end; the caller counts again, in double.
      if (!(rest * rest > kGoodShift * variance) || constant) {
        if (!(variance == variance)) found.m2 = variance;
        break;
      }
      shift = static_cast<A>(work.origin + found.mean);
    }
    shift = static_cast<A>(work.origin + found.mean);
    all = merged(all, found);
  }
  return all;
}

// Coefficients in the accumulator's type, in every lane.
template <class A>
struct Affine {
  Pack<A> mean, scale, shift;
  INLINE explicit Affine(const PlaneWork& work)
      : mean(splat(static_cast<A>(work.mean))),
        scale(splat(static_cast<A>(work.scale))),
        shift(splat(static_cast<A>(work.shift))) {}
};

template <class T, template <class> class Chosen, class A = Accumulator<T>>
void plane_normalize(const PlaneWork& work) {
  const Chosen<A> activation(work.activation);
  const Affine<A> affine(work);
  const T* input = static_cast<const T*>(work.input);
  const T* residual = static_cast<const T*>(work.residual);
  T* output = static_cast<T*>(work.output);
  BitWriter writer(work.bits);
  const auto step = [&](auto whole, int64_t i, int count) INLINE_LAMBDA {
    Pack<A> z = fma(load(whole, input + i, count) - affine.mean, affine.scale, affine.shift);
    if (residual) z = z + load(whole, residual + i, count);
    if constexpr (Chosen<A>::has_bits) {
      if (work.bits) writer.put(to_bits(activation.on(z)), count);
    }
    store(whole, output + i, activation.apply(z), count);
  };
  for (int64_t b = work.begin; b < work.end; ++b) {
    for (int64_t s = work.blocks[b].begin; s < work.blocks[b].end; ++s) {
      const Segment& segment = work.segments[s];
      if (work.bits) writer.seek(segment.position);
      by_lanes(segment.offset, segment.offset + segment.length, step);
    }
  }
  writer.finish();
}

// dz at index i: from dy and, where the activation asks, from z (computed again, as it was) or its bit.
template <class T, template <class> class Chosen, class A = Accumulator<T>>
struct PlaneGradient {
  const Chosen<A> activation;
  const Affine<A> affine;
  const T* grad_output;
  const T* residual;
  const uint8_t* bits;
  const uint8_t* bits_end;

  INLINE explicit PlaneGradient(const PlaneWork& work)
      : activation(work.activation),
        affine(work),
        grad_output(static_cast<const T*>(work.grad_output)),
        residual(static_cast<const T*>(work.residual)),
        bits(work.bits),
        bits_end(work.bits_end) {}

  // d is x − mean; bit_offset is what a segment's bits are ahead of its values.
  template <class Whole>
  INLINE Pack<A> at(Whole whole, int64_t i, int count, Pack<A> d, int64_t bit_offset) const {
    const Pack<A> dy = load(whole, grad_output + i, count);
    if constexpr (Chosen<A>::reads_bits) {
      return activation.gradient(dy, read_bits(bits, bits_end, i + bit_offset));
    } else {
      Pack<A> z = d;
      if constexpr (Chosen<A>::needs_z) {
        z = fma(d, affine.scale, affine.shift);
        if (residual) z = z + load(whole, residual + i, count);
      }
      return activation.gradient(dy, z);
    }
  }
};

// sums += Σ dz and Σ dz·(x − mean).
template <class T, template <class> class Chosen, class A = Accumulator<T>>
void plane_grad_sums(const PlaneWork& work, double* sums) {
  const PlaneGradient<T, Chosen> gradient(work);
  const T* input = static_cast<const T*>(work.input);
  for (int64_t b = work.begin; b < work.end; ++b) {
    Pack<A> ones[2] = {}, products[2] = {};
    for (int64_t s = work.blocks[b].begin; s < work.blocks[b].end; ++s) {
      const Segment& segment = work.segments[s];
      const int64_t bit_offset = segment.position - segment.offset;
      const auto step = [&](auto whole, int64_t i, int count, int u) INLINE_LAMBDA {
        const Pack<A> d = load(whole, input + i, count) - gradient.affine.mean;
        const Pack<A> dz = gradient.at(whole, i, count, d, bit_offset);
        ones[u] = ones[u] + dz;
        products[u] = fma(dz, d, products[u]);
      };
      int64_t i = segment.offset;
      const int64_t end = i + segment.length;
      for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
        step(std::true_type{}, i, kLanes, 0);
        step(std::true_type{}, i + kLanes, kLanes, 1);
      }
      by_lanes(i, end, [&](auto whole, int64_t j, int count) INLINE_LAMBDA { step(whole, j, count, 0); });
    }
    sums[0] += sum(ones[0] + ones[1]);
    sums[1] += sum(products[0] + products[1]);
  }
}

template <class T, template <class> class Chosen, class A = Accumulator<T>>
void plane_grad_input(const PlaneWork& work) {
  const PlaneGradient<T, Chosen> gradient(work);
  const T* input = static_cast<const T*>(work.input);
  T* output = static_cast<T*>(work.output);
  T* grad_residual = static_cast<T*>(work.grad_residual);
  const Pack<A> of_grad = splat(static_cast<A>(work.of_grad)), of_input = splat(static_cast<A>(work.of_input));
  const Pack<A> constant = splat(static_cast<A>(work.constant));
  for (int64_t b = work.begin; b < work.end; ++b) {
    for (int64_t s = work.blocks[b].begin; s < work.blocks[b].end; ++s) {
      const Segment& segment = work.segments[s];
      const int64_t bit_offset = segment.position - segment.offset;
      by_lanes(segment.offset, segment.offset + segment.length, [&](auto whole, int64_t i, int count) INLINE_LAMBDA {
        const Pack<A> d = load(whole, input + i, count) - gradient.affine.mean;
        const Pack<A> dz = gradient.at(whole, i, count, d, bit_offset);
        if (grad_residual) store(whole, grad_residual + i, dz, count);
        if (output) {
          const Pack<A> dx = work.training ? fma(dz, of_grad, fma(d, of_input, constant)) : dz * of_grad;
          store(whole, output + i, dx, count);
        }
      });
    }
  }
}

}  // namespace batchnorm::INSTRUCTION_SET
