// The forward and the backward pass over a layout: which kernel runs on which part, in which thread.
#pragma once

#include "layout.h"

namespace batchnorm {

// Vectors of a value a channel are in double, each value rounded to what the tensor that holds it can hold: the backward
// pass reads those tensors, and must compute z again to the last bit.
struct Pass {
  const Layout& layout;
  const Kernels& kernels;
  Element element;
  Activation activation;
  const void* input = nullptr;
  const void* residual = nullptr;
  uint8_t* bits = nullptr;
  bool wide = false;  // whether moments stay in double
};

struct ForwardPass : Pass {
  void* output = nullptr;
  const double* weight = nullptr;  // null for 1
  const double* bias = nullptr;    // null for 0
  double eps = 0;
};

// Mean and biased variance of each channel.
void moments(const Pass& pass, double* mean, double* var);

// output = activation(z) by the mean and variance given.
void normalize(const ForwardPass& pass, const double* mean, const double* var);

// Both, a channel at a time where that keeps it in cache.
void moments_and_normalize(const ForwardPass& pass, double* mean, double* var);

struct BackwardPass : Pass {
  const void* grad_output = nullptr;
  void* grad_input = nullptr;     // null where not wanted
  void* grad_residual = nullptr;  // null where not wanted
  const double* weight = nullptr;
  const double* bias = nullptr;
  const double* mean = nullptr;
  const double* var = nullptr;
  double eps = 0;
  bool training = true;  // else the statistics are constants
};

// Σ dz and Σ dz·x̂ of each channel.
void grad_sums(const BackwardPass& pass, double* sum_dz, double* sum_dz_standardized);

// The gradients of input and residual, by the sums given (not read in evaluation).
void grad_input(const BackwardPass& pass, double count, const double* sum_dz, const double* sum_dz_standardized);

// Both, a channel at a time where that keeps it in cache; the sums only where they are needed or not null.
void grad_sums_and_input(const BackwardPass& pass, double* sum_dz, double* sum_dz_standardized);

}  // namespace batchnorm
