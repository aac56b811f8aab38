#include "layout.h"

#include <algorithm>
#include <numeric>

namespace batchnorm {

namespace {

// Values a block: 8 to 16 KB of float stay in the first-level cache while a block is summed, should its shift turn out
// bad; and 2048 values are few enough for float to add up in 64 parts.
constexpr int64_t kBlockValues = 2048;
constexpr int64_t kBlockRows = 128;
// Runs a block: the ends of runs, where a mask leaves little more, all fall on the same few parts.
constexpr int64_t kBlockRuns = 64;
// Values a slice, the least that is worth a thread's while.
constexpr int64_t kSliceValues = 65536;
// A matrix is folded to whole registers up to this many columns, and where there are rows enough to so many at least:
// a row costs some instructions of its own.
constexpr int64_t kFoldedColumns = 8192;
constexpr int64_t kLeastColumns = 256;

// Collects runs of values in order and cuts them into segments, blocks and slices.
class PartitionBuilder {
 public:
  PartitionBuilder(Partition& partition, int64_t block, int64_t slice)
      : partition_(partition), block_(block), slice_(slice) {}

  // A run at `offset`, whose first bit is at `position`. A new slice begins only where bits begin with a byte, since
  // slices are written by several threads.
  void add(int64_t offset, int64_t length, int64_t position) {
    // A run of up to two blocks stays whole: short ends cost more than a block that is a little long.
    const int64_t piece = length <= 2 * block_ ? length : block_;
    for (int64_t done = 0; done < length; done += piece) {
      if (in_slice_ >= slice_ && in_block_ == 0 && (position + done) % 8 == 0) close_slice();
      const int64_t part = std::min(piece, length - done);
      partition_.segments.push_back({offset + done, part, position + done});
      in_block_ += part;
      in_slice_ += part;
      partition_.count += part;
      if (in_block_ >= block_ || ++runs_in_block_ == kBlockRuns) close_block();
    }
  }

  void finish() {
    if (in_block_) close_block();
    if (in_slice_) close_slice();
  }

 private:
  void close_block() {
    const int64_t begin = partition_.blocks.empty() ? 0 : partition_.blocks.back().end;
    partition_.blocks.push_back({begin, static_cast<int64_t>(partition_.segments.size()), in_block_});
    in_block_ = runs_in_block_ = 0;
  }

  void close_slice() {
    const int64_t begin = partition_.slices.empty() ? 0 : partition_.slices.back().end;
    partition_.slices.push_back({begin, static_cast<int64_t>(partition_.blocks.size()), in_slice_});
    in_slice_ = 0;
  }

  Partition& partition_;
  const int64_t block_, slice_;
  int64_t in_block_ = 0, runs_in_block_ = 0, in_slice_ = 0;
};

// Calls run(begin, length) for each run of true values.
template <class Run>
void each_run(const bool* mask, int64_t length, Run run) {
  for (int64_t i = 0; i < length;) {
    if (!mask[i]) {
      ++i;
      continue;
    }
    const int64_t begin = i;
    while (i < length && mask[i]) ++i;
    run(begin, i - begin);
  }
}

void divide_planes(Layout& layout, const bool* mask) {
  PartitionBuilder builder(layout.partition, kBlockValues, kSliceValues);
  const int64_t plane = layout.spatial, stride = layout.channels * plane;
  for (int64_t n = 0; n < layout.samples; ++n) {
    if (!mask) {
      builder.add(n * stride, plane, n * plane);
      continue;
    }
    each_run(mask + n * plane, plane,
             [&](int64_t begin, int64_t length) { builder.add(n * stride + begin, length, n * plane + begin); });
  }
  builder.finish();
}

void divide_rows(Layout& layout, const bool* mask) {
  const int64_t slice = (kSliceValues / std::max<int64_t>(layout.width, 1) + kBlockRows) / kBlockRows * kBlockRows;
  PartitionBuilder builder(layout.partition, kBlockRows, slice);
  if (!mask) {
    for (int64_t row = 0; row < layout.rows; row += kBlockRows) {
      builder.add(row, std::min(kBlockRows, layout.rows - row), 0);
    }
  } else {
    each_run(mask, layout.rows, [&](int64_t begin, int64_t length) { builder.add(begin, length, 0); });
  }
  builder.finish();
}

}  // namespace

bool walks_channels_last(int64_t channels, bool masked) {
  // Without a mask rows are folded until they fill whole bytes of bits; a mask is of single rows.
  return !masked || channels % 8 == 0;
}

Layout make_layout(int64_t samples, int64_t channels, int64_t spatial, bool channels_last, const bool* mask) {
  Layout layout;
  layout.samples = samples;
  layout.channels = channels;
  layout.spatial = spatial;
  layout.masked = mask != nullptr;
  if (samples * channels * spatial == 0) return layout;

  int64_t rows = samples * spatial, width = channels;
  if (!channels_last && spatial > 1) {
    rows = samples;
    width = channels * spatial;
    layout.inner = spatial;
  }
  int64_t fold = mask ? 1 : kLanes / std::gcd(width, kLanes);
  while (!mask && fold * width < kLeastColumns && rows >= kBlockRows * fold) fold *= 2;
  const bool as_rows = channels_last || spatial == 1;
  const bool few = !mask && spatial < kLanes && (fold == 1 || fold * width <= kFoldedColumns);
  layout.planes = !((as_rows && walks_channels_last(channels, mask)) || few);
  if (layout.planes) {
    divide_planes(layout, mask);
    return layout;
  }
  layout.width = width * fold;
  layout.rows = rows / fold;
  layout.rest = rows % fold * width;
  divide_rows(layout, mask);
  return layout;
}

}  // namespace batchnorm
