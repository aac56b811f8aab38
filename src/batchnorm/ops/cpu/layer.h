// A layer's forward and backward pass on tensors: everything is checked first, then computed into memory given.
#pragma once

#include <string_view>

#include "parts.h"
#include "passes.h"

namespace batchnorm {

// By the name and numbers that operators take.
Activation activation_of(std::string_view name, const double* parameters, size_t count);

// Whether one bit a value is all that its backward pass needs.
bool keeps_bits(const Activation& activation);

// The running buffers of one layer, or none.
class Buffers {
 public:
  Buffers(const View& mean, const View& var, const View& batches, int64_t channels);

  // As ops/running.py: all of it or nothing. Without a momentum the average over all batches. An empty batch counts.
  void update(const Walk& walk, const std::vector<double>& mean, const std::vector<double>& var,
              std::optional<double> momentum, bool skip_nonfinite);
  // The parts one after the other, each as a batch.
  void update(const Walk& walk, const Parts& parts, const std::vector<double>& mean, const std::vector<double>& var,
              std::optional<double> momentum, bool skip_nonfinite);

 private:
  void take(int64_t count, const double* mean, const double* var, Element input, std::optional<double> momentum,
            bool skip_nonfinite);

  View mean_, var_, batches_;
  std::vector<double> mean_values_, var_values_;
};

// z's parameters and the activation; the statistics are of the batch or given.
struct Parameters {
  View weight, bias, residual;
  double eps;
  Activation activation;
};

class ForwardLayer {
 public:
  ForwardLayer(const Walk& walk, const Parameters& parameters);

  // Training. `bits` may be null.
  void train(void* output, uint8_t* bits, std::vector<double>& mean, std::vector<double>& var);
  // Each part by its own statistics, which are (parts, channels); as are bits, part after part.
  void train(const Parts& parts, void* output, uint8_t* bits, std::vector<double>& mean, std::vector<double>& var);
  // Evaluation.
  void normalize(void* output, const View& mean, const View& var);

 private:
  const Walk& walk_;
  std::vector<double> weight_, bias_;
  std::optional<Tensor> residual_;
  ForwardPass pass_;
};

class BackwardLayer {
 public:
  // With parts, mean, var and bits are those of the parts, one after the other.
  BackwardLayer(const Walk& walk, const Parameters& parameters, const View& grad_output, const View& mean,
                const View& var, const View& bits, const Parts* parts = nullptr);
  BackwardLayer(const BackwardLayer&) = delete;

  // Null for what is not wanted; without training the statistics are constants.
  void run(bool training, void* grad_input, void* grad_residual, bool sums);
  // In training; the sums are over all parts.
  void run(const Parts& parts, void* grad_input, void* grad_residual, bool sums);
  void run_sums();
  void run_input(const double* count, const View& sum_dz, const View& sum_dz_standardized, void* grad_input,
                 void* grad_residual);

  std::vector<double> sum_dz, sum_dz_standardized;

 private:
  void set_outputs(void* grad_input, void* grad_residual);

  const Walk& walk_;
  std::vector<double> weight_, bias_, mean_, var_;
  std::optional<Tensor> grad_output_, residual_;
  BackwardPass pass_;
};

// One int64 on the CPU.
int64_t* count_data(const View& count);

// Writes a vector of statistics to a tensor of their dtype.
void write_statistics(const View& tensor, const std::vector<double>& values, Element input);

}  // namespace batchnorm
