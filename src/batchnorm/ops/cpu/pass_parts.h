// What the passes over planes and over matrices share: coefficients of a channel, and its moments.
#pragma once

#include <algorithm>
#include <cmath>

#include "elements.h"
#include "passes.h"

namespace batchnorm {

inline bool is_double(const Pass& pass) { return pass.element == Element::Float64; }

inline double as_statistic(const Pass& pass, double value) {
  return is_double(pass) ? value : static_cast<double>(static_cast<float>(value));
}

// z = (x − mean)·scale + shift: the same for forward and backward, bit for bit.
struct Affine {
  double scale, shift;
};

template <class P>
inline Affine affine(const P& pass, int64_t channel, double var) {
  const double invstd = 1 / std::sqrt(var + pass.eps);
  const double weight = pass.weight ? pass.weight[channel] : 1;
  return {as_statistic(pass, weight * invstd), pass.bias ? pass.bias[channel] : 0};
}

inline const void* at(const void* tensor, int64_t values, Element element) {
  return tensor ? static_cast<const char*>(tensor) + values * size_of(element) : nullptr;
}

inline void* at(void* tensor, int64_t values, Element element) {
  return tensor ? static_cast<char*>(tensor) + values * size_of(element) : nullptr;
}

// Moments of what is not finite, as torch has them: sums in double, infinite where the values are. Also what float
// cannot square: any value may turn out so, and this is rare, so it is plain.
inline Moments plain_moments(const Pass& pass, int64_t channel) {
  const Layout& l = pass.layout;
  double count = 0, sum = 0, squares = 0, mean = 0;
  for (int round = 0; round < 2; ++round) {
    each_value(l, channel, [&](int64_t index) {
      const double value = read(pass.input, index, pass.element);
      if (round == 0) {
        count += 1;
        sum += value;
      } else {
        squares += (value - mean) * (value - mean);
      }
    });
    mean = sum / std::max(count, 1.0);
  }
  return {count, mean, squares};
}

// A channel's first valid value, for all of its parts alike.
inline double origin_of(const Pass& pass, int64_t channel) {
  const Layout& l = pass.layout;
  const std::vector<Segment>& segments = l.partition.segments;
  int64_t first = channel * l.inner;
  if (l.planes) {
    if (segments.empty()) return 0;
    first = channel * l.spatial + segments[0].offset;
  } else if (!segments.empty()) {
    first += segments[0].offset * l.width;
  } else if (l.rest == 0) {
    return 0;
  }
  const double value = read(pass.input, first, pass.element);
  return std::isfinite(value) ? value : 0;
}

// `found` has its mean counted from the channel's origin.
inline void finish_moments(const Pass& pass, int64_t channel, Moments found, double* mean, double* var) {
  if (found.count > 0) found.mean += origin_of(pass, channel);
  if (!std::isfinite(found.mean) || !std::isfinite(found.m2)) found = plain_moments(pass, channel);
  const double variance = found.count > 0 ? found.m2 / found.count : 0;
  mean[channel] = pass.wide ? found.mean : as_statistic(pass, found.mean);
  var[channel] = pass.wide ? variance : as_statistic(pass, variance);
}

// dx = weight·invstd·(dz − Σdz/n − x̂·Σ(dz·x̂)/n), as dz·of_grad + (x − mean)·of_input + constant.
struct InputGradient {
  double of_grad, of_input = 0, constant = 0;
};

inline InputGradient input_gradient(const BackwardPass& pass, int64_t channel, double count, double sum_dz, double sum_dzx) {
  // The output does not depend on a value that is alone in its channel; rounding would leave a trace of it.
  if (pass.training && count < 2) return {0};
  const double invstd = 1 / std::sqrt(pass.var[channel] + pass.eps);
  InputGradient g{(pass.weight ? pass.weight[channel] : 1) * invstd};
  if (pass.training) {
    g.of_input = -g.of_grad * invstd * sum_dzx / count;
    g.constant = -g.of_grad * sum_dz / count;
  }
  return g;
}

// Σ dz·(x − mean) as Σ dz·x̂.
inline double standardized(const BackwardPass& pass, int64_t channel, double sum) {
  return sum / std::sqrt(pass.var[channel] + pass.eps);
}

// The passes themselves, each for its own kind of layout; find and write say which of its two halves run.
void plane_forward(const ForwardPass& pass, double* mean, double* var, bool find, bool write);
void plane_backward(const BackwardPass& pass, double count, double* sum_dz, double* sum_dzx, bool find, bool write);
void column_moments(const Pass& pass, double* mean, double* var);
void column_normalize(const ForwardPass& pass, const double* mean, const double* var);
void column_grad_sums(const BackwardPass& pass, double* sum_dz, double* sum_dzx);
void column_grad_input(const BackwardPass& pass, double count, const double* sum_dz, const double* sum_dzx);

}  // namespace batchnorm
