#include "passes.h"

#include <cstring>

#include "pass_parts.h"

namespace batchnorm {

namespace {

void clear(const Pass& pass, void* tensor) {
  // What no segment covers is 0.
  if (tensor && pass.layout.masked) std::memset(tensor, 0, pass.layout.values() * size_of(pass.element));
}

}  // namespace

void moments(const Pass& pass, double* mean, double* var) {
  if (pass.layout.values() == 0) {
    std::fill_n(mean, pass.layout.channels, 0.0);
    std::fill_n(var, pass.layout.channels, 0.0);
  } else if (pass.layout.planes) {
    ForwardPass forward{pass};
    plane_forward(forward, mean, var, true, false);
  } else {
    column_moments(pass, mean, var);
  }
}

void normalize(const ForwardPass& pass, const double* mean, const double* var) {
  clear(pass, pass.output);
  if (pass.layout.planes) {
    plane_forward(pass, const_cast<double*>(mean), const_cast<double*>(var), false, true);
  } else {
    column_normalize(pass, mean, var);
  }
}

void moments_and_normalize(const ForwardPass& pass, double* mean, double* var) {
  if (pass.layout.planes && pass.layout.values() > 0) {
    clear(pass, pass.output);
    plane_forward(pass, mean, var, true, true);
    return;
  }
  moments(pass, mean, var);
  normalize(pass, mean, var);
}

void grad_sums(const BackwardPass& pass, double* sum_dz, double* sum_dzx) {
  if (pass.layout.planes) {
    plane_backward(pass, 0, sum_dz, sum_dzx, true, false);
  } else {
    column_grad_sums(pass, sum_dz, sum_dzx);
  }
}

void grad_input(const BackwardPass& pass, double count, const double* sum_dz, const double* sum_dzx) {
  clear(pass, pass.grad_input);
  clear(pass, pass.grad_residual);
  if (pass.layout.planes) {
    plane_backward(pass, count, const_cast<double*>(sum_dz), const_cast<double*>(sum_dzx), false, true);
  } else {
    column_grad_input(pass, count, sum_dz, sum_dzx);
  }
}

void grad_sums_and_input(const BackwardPass& pass, double* sum_dz, double* sum_dzx) {
  const bool write = pass.grad_input || pass.grad_residual;
  const double count = static_cast<double>(pass.layout.count());
  if (pass.layout.planes && write && sum_dz) {
    clear(pass, pass.grad_input);
    clear(pass, pass.grad_residual);
    plane_backward(pass, count, sum_dz, sum_dzx, true, true);
    return;
  }
  if (sum_dz) grad_sums(pass, sum_dz, sum_dzx);
  if (!write) return;
  BackwardPass rest = pass;
  rest.training = pass.training && sum_dz;  // the residual's gradient alone needs no sums
  grad_input(rest, count, sum_dz, sum_dzx);
}

}  // namespace batchnorm
