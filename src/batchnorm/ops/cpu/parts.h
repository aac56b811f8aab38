// A batch cut into consecutive parts, each with statistics of its own (ghost batch normalization).
#pragma once

#include <algorithm>

#include "parallel.h"
#include "tensors.h"

namespace batchnorm {

// Nearly equal parts of a walk without a mask, as torch.tensor_split cuts: the first ones have a sample more.
class Parts {
 public:
  Parts(const Walk& walk, int64_t count);

  int64_t count() const { return count_; }
  const Layout& layout(int64_t part) const { return part < longer_ ? long_ : short_; }
  // Values of all channels before the part, and bytes of bits.
  int64_t values_before(int64_t part) const { return before(part, long_.values(), short_.values()); }
  int64_t bits_before(int64_t part) const { return before(part, long_.bytes_of_bits(), short_.bytes_of_bits()); }

  // Calls run(part) for each: in parallel where there are enough to go round evenly, or where one is too small to be
  // worth several threads. (Inside, whatever asks for threads then has one, and gives the same to the last bit.)
  template <class Run>
  void each(const Run& run) const {
    const bool spread = count_ >= 4 * threads_for(values_) || short_.values() < 2 * kWorthThreads;
    in_parallel(count_, spread ? values_ : 0, run);
  }

 private:
  int64_t before(int64_t part, int64_t of_long, int64_t of_short) const {
    return std::min(part, longer_) * of_long + std::max<int64_t>(part - longer_, 0) * of_short;
  }

  int64_t count_, longer_, values_;
  Layout long_, short_;
};

}  // namespace batchnorm
