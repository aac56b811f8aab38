// How a tensor (N, C, *spatial) lies in memory, and the fixed parts that sums over it are made of.
#pragma once

#include "types.h"

namespace batchnorm {

// Blocks of segments, slices of blocks. All depend on the shape and the mask alone, so that a sum over parts has the
// same parts for any number of threads.
struct Partition {
  std::vector<Segment> segments;
  std::vector<Range> blocks;
  std::vector<Range> slices;
  int64_t count = 0;  // values a channel (planes), rows (matrix)
};

struct Layout {
  int64_t samples = 0, channels = 0, spatial = 0;

  // Planes: (N, C, *spatial) contiguous, walked a channel at a time.
  // Else a matrix of `rows` rows of `width` values, and `rest` values of one more row: channels-last, where a row is
  // one position, or planes of so few values that a row is one sample. `fold` such rows make one of the matrix, to fill
  // whole registers.
  bool planes = true;
  int64_t rows = 0, width = 0, rest = 0;
  int64_t inner = 1;  // neighbouring columns of one channel

  bool masked = false;
  Partition partition;

  int64_t values() const { return samples * channels * spatial; }
  // Values a channel that are valid.
  int64_t count() const { return masked ? partition.count : samples * spatial; }
  int64_t bytes_of_bits() const { return channels * ((samples * spatial + 7) / 8); }
};

// The layout of a tensor that is contiguous or, with `channels_last`, stored (N, *spatial, C). A mask is (N, *spatial).
Layout make_layout(int64_t samples, int64_t channels, int64_t spatial, bool channels_last, const bool* mask);

// Whether the kernels can walk such a tensor as it lies; if not, it must be made contiguous.
bool walks_channels_last(int64_t channels, bool masked);

}  // namespace batchnorm
