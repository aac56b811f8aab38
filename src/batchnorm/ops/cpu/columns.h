// Values as a matrix with one vector entry a column: channels-last, (N, C), and what folds into such a matrix.
//
// A tile is some rows of a few packs of columns, whose sums stay in registers; blocks of rows and double above them
// are as in planes.h.
#pragma once

#include "activations.h"
#include "bits.h"
#include "sums.h"

namespace batchnorm::INSTRUCTION_SET {

// Packs of columns in a tile: as many as there are registers for two sums and three vectors of each.
constexpr int kTile = VECTOR_BYTES == 64 ? 4 : 2;

// Vectors of a value a column are padded to whole packs: only the matrix itself ends anywhere.
template <class A>
INLINE const A* entries(const void* vector) {
  return static_cast<const A*>(vector);
}

template <class A>
INLINE void add_to(double* sums, Pack<A> values) {
  A plain[kLanes];
  store(plain, values);
  for (int k = 0; k < kLanes; ++k) sums[k] += static_cast<double>(plain[k]);
}

// Calls tile(width, column, count) for groups of `Packs` packs of columns, then for single ones and what is left.
template <int Packs, class Tile>
INLINE void by_tiles(int64_t first, int64_t last, Tile tile) {
  int64_t column = first;
  for (; column + Packs * kLanes <= last; column += Packs * kLanes) {
    tile(std::integral_constant<int, Packs>{}, std::true_type{}, column, kLanes);
  }
  for (; column + kLanes <= last; column += kLanes) {
    tile(std::integral_constant<int, 1>{}, std::true_type{}, column, kLanes);
  }
  if (column < last) {
    tile(std::integral_constant<int, 1>{}, std::false_type{}, column, static_cast<int>(last - column));
  }
}

template <class Row>
INLINE void each_row(const Segment* segments, const Range& block, Row row) {
  for (int64_t s = block.begin; s < block.end; ++s) {
    const int64_t end = segments[s].offset + segments[s].length;
    for (int64_t r = segments[s].offset; r < end; ++r) row(r);
  }
}

// Mean and m2 of each column over the blocks given, by sums shifted as in planes.h.
template <class T, class A = Accumulator<T>>
void column_moments(const ColumnWork& work) {
  const T* input = static_cast<const T*>(work.input);
  by_tiles<kTile>(work.first, work.last, [&](auto packs, auto whole, int64_t column, int count) INLINE_LAMBDA {
    constexpr int P = decltype(packs)::value;
    Pack<A> shift[P] = {};
    double origin[P * kLanes];
    A origins[P * kLanes];
    for (int k = 0; k < P * kLanes; ++k) {
      origin[k] = k < (whole ? P * kLanes : count) ? work.origin[column + k] : 0;
      origins[k] = static_cast<A>(origin[k]);
    }
    for (int p = 0; p < P; ++p) shift[p] = load(origins + p * kLanes);
    double mean[P * kLanes] = {}, m2[P * kLanes] = {};
    double before = 0;
    for (int64_t b = work.begin; b < work.end; ++b) {
      const Range& block = work.blocks[b];
      const double rows = static_cast<double>(block.length);
      double block_mean[P * kLanes], block_m2[P * kLanes];
      for (int attempt = 0; attempt < 4; ++attempt) {
        Pack<A> ones[P] = {}, squares[P] = {}, all_ones[P] = {}, all_squares[P] = {};
        int rounds = 0;
        const auto lift = [&]() INLINE_LAMBDA {
#pragma GCC unroll 4
          for (int p = 0; p < P; ++p) {
            all_ones[p] = all_ones[p] + ones[p];
            all_squares[p] = all_squares[p] + squares[p];
            ones[p] = squares[p] = Pack<A>{};
          }
          rounds = 0;
        };
        each_row(work.segments, block, [&](int64_t r) INLINE_LAMBDA {
          const T* row = input + r * work.width + column;
#pragma GCC unroll 4
          for (int p = 0; p < P; ++p) {
            const Pack<A> d = load(whole, row + p * kLanes, count) - shift[p];
            ones[p] = ones[p] + d;
            squares[p] = fma(d, d, squares[p]);
          }
          if (++rounds == kRounds) lift();
        });
        lift();
        A shifts[P * kLanes], first[P * kLanes], second[P * kLanes];
        for (int p = 0; p < P; ++p) {
          store(shifts + p * kLanes, shift[p]);
          store(first + p * kLanes, all_ones[p]);
          store(second + p * kLanes, all_squares[p]);
        }
        bool good = true;
        for (int k = 0; k < P * kLanes; ++k) {
          const double rest = static_cast<double>(first[k]) / rows;
          const double variance = static_cast<double>(second[k]) / rows - rest * rest;
          good &= !(rest * rest > kGoodShift * variance) || rest == 0;
          block_mean[k] = (static_cast<double>(shifts[k]) - origin[k]) + rest;
          block_m2[k] = variance < 0 ? 0 : variance * rows;
          shifts[k] = static_cast<A>(origin[k] + block_mean[k]);
        }
        for (int p = 0; p < P; ++p) shift[p] = load(shifts + p * kLanes);
        if (good) break;
      }
      const double share = rows / (before + rows);
      for (int k = 0; k < P * kLanes; ++k) {
        const double delta = block_mean[k] - mean[k];
        mean[k] += delta * share;
        m2[k] += block_m2[k] + delta * delta * before * share;
      }
      before += rows;
    }
    for (int k = 0; k < (whole ? P * kLanes : count); ++k) {
      work.first_sums[column + k] = mean[k];
      work.second_sums[column + k] = m2[k];
    }
  });
}

template <class T, template <class> class Chosen, class A = Accumulator<T>>
void column_normalize(const ColumnWork& work) {
  const Chosen<A> activation(work.activation);
  const T* input = static_cast<const T*>(work.input);
  const T* residual = static_cast<const T*>(work.residual);
  T* output = static_cast<T*>(work.output);
  uint8_t* bits = work.bits;
  const A *mean = entries<A>(work.mean), *scale = entries<A>(work.scale), *shift = entries<A>(work.shift);
  for (int64_t b = work.begin; b < work.end; ++b) {
    each_row(work.segments, work.blocks[b], [&](int64_t r) INLINE_LAMBDA {
      const int64_t start = r * work.width;
      by_lanes(work.first, work.last, [&](auto whole, int64_t column, int count) INLINE_LAMBDA {
        const int64_t i = start + column;
        Pack<A> z = fma(load(whole, input + i, count) - load(mean + column), load(scale + column), load(shift + column));
        if (residual) z = z + load(whole, residual + i, count);
        if constexpr (Chosen<A>::has_bits) {
          if (bits) {
            const uint32_t on = to_bits(activation.on(z)) & ((1u << count) - 1);
            __builtin_memcpy(bits + i / 8, &on, decltype(whole)::value ? 2 : (count + 7) / 8);
          }
        }
        store(whole, output + i, activation.apply(z), count);
      });
    });
  }
}

// dz at row r and a column; d is x − mean.
template <class T, template <class> class Chosen, class A = Accumulator<T>>
struct ColumnGradient {
  const Chosen<A> activation;
  const T* grad_output;
  const T* residual;
  const uint8_t* bits;
  const uint8_t* bits_end;

  INLINE explicit ColumnGradient(const ColumnWork& work)
      : activation(work.activation),
        grad_output(static_cast<const T*>(work.grad_output)),
        residual(static_cast<const T*>(work.residual)),
        bits(work.bits),
        bits_end(work.bits_end) {}

  template <class Whole>
  INLINE Pack<A> at(Whole whole, int64_t i, int count, Pack<A> d, Pack<A> scale, Pack<A> shift) const {
    const Pack<A> dy = load(whole, grad_output + i, count);
    if constexpr (Chosen<A>::reads_bits) {
      return activation.gradient(dy, read_bits(bits, bits_end, i));
    } else {
      Pack<A> z = d;
      if constexpr (Chosen<A>::needs_z) {
        z = fma(d, scale, shift);
        if (residual) z = z + load(whole, residual + i, count);
      }
      return activation.gradient(dy, z);
    }
  }
};

template <class T, template <class> class Chosen, class A = Accumulator<T>>
void column_grad_sums(const ColumnWork& work) {
  const ColumnGradient<T, Chosen> gradient(work);
  const T* input = static_cast<const T*>(work.input);
  by_tiles<kTile>(work.first, work.last, [&](auto packs, auto whole, int64_t column, int count) INLINE_LAMBDA {
    constexpr int P = decltype(packs)::value;
    Pack<A> mean[P], scale[P], shift[P];
    for (int p = 0; p < P; ++p) {
      mean[p] = load(entries<A>(work.mean) + column + p * kLanes);
      scale[p] = load(entries<A>(work.scale) + column + p * kLanes);
      shift[p] = load(entries<A>(work.shift) + column + p * kLanes);
    }
    double first[P * kLanes] = {}, second[P * kLanes] = {};
    for (int64_t b = work.begin; b < work.end; ++b) {
      Pack<A> ones[P] = {}, products[P] = {};
      each_row(work.segments, work.blocks[b], [&](int64_t r) INLINE_LAMBDA {
        const int64_t start = r * work.width + column;
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          const int64_t i = start + p * kLanes;
          const Pack<A> d = load(whole, input + i, count) - mean[p];
          const Pack<A> dz = gradient.at(whole, i, count, d, scale[p], shift[p]);
          ones[p] = ones[p] + dz;
          products[p] = fma(dz, d, products[p]);
        }
      });
      for (int p = 0; p < P; ++p) {
        add_to(first + p * kLanes, ones[p]);
        add_to(second + p * kLanes, products[p]);
      }
    }
    for (int k = 0; k < (whole ? P * kLanes : count); ++k) {
      work.first_sums[column + k] = first[k];
      work.second_sums[column + k] = second[k];
    }
  });
}

template <class T, template <class> class Chosen, class A = Accumulator<T>>
void column_grad_input(const ColumnWork& work) {
  const ColumnGradient<T, Chosen> gradient(work);
  const T* input = static_cast<const T*>(work.input);
  T* output = static_cast<T*>(work.output);
  T* grad_residual = static_cast<T*>(work.grad_residual);
  const A *mean = entries<A>(work.mean), *scale = entries<A>(work.scale), *shift = entries<A>(work.shift);
  const A *of_grad = entries<A>(work.of_grad), *of_input = entries<A>(work.of_input);
  const A* constant = entries<A>(work.constant);
  for (int64_t b = work.begin; b < work.end; ++b) {
    each_row(work.segments, work.blocks[b], [&](int64_t r) INLINE_LAMBDA {
      const int64_t start = r * work.width;
      by_lanes(work.first, work.last, [&](auto whole, int64_t column, int count) INLINE_LAMBDA {
        const int64_t i = start + column;
        const Pack<A> d = load(whole, input + i, count) - load(mean + column);
        const Pack<A> dz = gradient.at(whole, i, count, d, load(scale + column), load(shift + column));
        if (grad_residual) store(whole, grad_residual + i, dz, count);
        if (output) {
          Pack<A> dx = dz * load(of_grad + column);
          if (work.training) {
            dx = fma(dz, load(of_grad + column), fma(d, load(of_input + column), load(constant + column)));
          }
          store(whole, output + i, dx, count);
        }
      });
    });
  }
}

}  // namespace batchnorm::INSTRUCTION_SET
