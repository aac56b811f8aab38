// What the sums over planes and over columns share.
#pragma once

#include "memory.h"

namespace batchnorm::INSTRUCTION_SET {

// A shift of sums is good enough where the mean of what is left is below this many variances, squared: the sum of
// squares then loses no more than a digit to the sum.
constexpr double kGoodShift = 8;

// Additions that a sum of squares takes before it is added to the one above it.
constexpr int kRounds = 16;

// The sum of the sixteen in double, in one fixed order: a tree, whose additions do not wait for one another.
template <class A>
INLINE double sum(Pack<A> a) {
  A plain[kLanes];
  store(plain, a);
  double values[kLanes];
  for (int k = 0; k < kLanes; ++k) values[k] = static_cast<double>(plain[k]);
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int k = 0; k < half; ++k) values[k] += values[k + half];
  }
  return values[0];
}

}  // namespace batchnorm::INSTRUCTION_SET
