// torch.ops.batchnorm on the CPU. Signatures are those of ops/schema.py, meanings those of ops/eager.py.

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "dispatch.h"
#include "layer.h"

namespace batchnorm {

namespace {

using MaybeTensor = std::optional<Tensor>;

Activation activation_of(const std::string& name, const std::vector<double>& parameters) {
  return batchnorm::activation_of(name, parameters.data(), parameters.size());
}

Tensor count_of(int64_t value) {
  Tensor count = empty({}, aoti_torch_dtype_int64());
  *count_data(count) = value;
  return count;
}

Tensor statistics(const std::vector<double>& values, Element input) {
  const bool wide = input == Element::Float64;
  Tensor tensor =
      empty({static_cast<int64_t>(values.size())}, wide ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32());
  write_statistics(tensor, values, input);
  return tensor;
}

// What stands for an output that was not asked for. Each is a tensor of its own: no output may be another.
Tensor nothing_like(const View& tensor) { return empty({0}, tensor.dtype()); }

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Forward run_forward(const Walk& walk, Buffers& buffers, const Parameters& parameters, bool keep_bits,
                    std::optional<double> momentum, bool skip_nonfinite) {
  ForwardLayer layer(walk, parameters);
  keep_bits = keep_bits && keeps_bits(parameters.activation);
  Tensor output = walk.fresh();
  Tensor bits = empty({keep_bits ? walk.layout().bytes_of_bits() : 0}, aoti_torch_dtype_uint8());
  std::vector<double> mean, var;
  layer.train(output.data_ptr(), keep_bits ? static_cast<uint8_t*>(bits.data_ptr()) : nullptr, mean, var);
  buffers.update(walk, mean, var, momentum, skip_nonfinite);
  return {walk.finished(output), count_of(walk.layout().values() ? walk.layout().count() : 0),
          statistics(mean, walk.element()), statistics(var, walk.element()), bits};
}

Forward forward(Tensor input, MaybeTensor weight, MaybeTensor bias, MaybeTensor residual, MaybeTensor mask, double eps,
                std::string name, std::vector<double> parameters, bool keep_bits) {
  const Walk walk(input, mask);
  Buffers none({}, {}, {}, walk.channels());
  return run_forward(walk, none, {weight, bias, residual, eps, activation_of(name, parameters)}, keep_bits, {}, true);
}

Forward train(Tensor input, MaybeTensor weight, MaybeTensor bias, MaybeTensor residual, MaybeTensor mask,
              MaybeTensor running_mean, MaybeTensor running_var, MaybeTensor num_batches_tracked,
              std::optional<double> momentum, bool skip_nonfinite, double eps, std::string name,
              std::vector<double> parameters, bool keep_bits) {
  const Walk walk(input, mask);
  STD_TORCH_CHECK(mask || walk.layout().samples * walk.layout().spatial != 1 || walk.channels() == 0,
                  "batchnorm: expected more than 1 value per channel when training.");
  Buffers buffers(running_mean, running_var, num_batches_tracked, walk.channels());
  const Parameters layer{weight, bias, residual, eps, activation_of(name, parameters)};
  return run_forward(walk, buffers, layer, keep_bits, momentum, skip_nonfinite);
}

// In the dtype of the input's statistics, or in double.
std::tuple<Tensor, Tensor, Tensor> moments_in(bool wide, const Tensor& input, const MaybeTensor& mask) {
  const Walk walk(input, mask);
  std::vector<double> mean(walk.channels()), var(walk.channels());
  Pass pass{walk.layout(), kernels_for(walk.element()), walk.element(), {}};
  pass.input = walk.input();
  pass.wide = wide;
  moments(pass, mean.data(), var.data());
  const Element held = wide ? Element::Float64 : walk.element();
  return {count_of(walk.layout().values() ? walk.layout().count() : 0), statistics(mean, held), statistics(var, held)};
}

std::tuple<Tensor, Tensor, Tensor> moments_operator(Tensor input, MaybeTensor mask) {
  return moments_in(false, input, mask);
}

std::tuple<Tensor, Tensor, Tensor> double_moments_operator(Tensor input, MaybeTensor mask) {
  return moments_in(true, input, mask);
}

Tensor normalize_operator(Tensor input, Tensor mean, Tensor var, MaybeTensor weight, MaybeTensor bias,
                          MaybeTensor residual, MaybeTensor mask, double eps, std::string name,
                          std::vector<double> parameters) {
  const Walk walk(input, mask);
  ForwardLayer layer(walk, {weight, bias, residual, eps, activation_of(name, parameters)});
  Tensor output = walk.fresh();
  layer.normalize(output.data_ptr(), mean, var);
  return walk.finished(output);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor grad_output, Tensor input, Tensor mean, Tensor var,
                                                    MaybeTensor weight, MaybeTensor bias, MaybeTensor residual,
                                                    MaybeTensor mask, MaybeTensor bits, MaybeTensor count, double eps,
                                                    std::string name, std::vector<double> parameters,
                                                    std::vector<bool> wanted) {
  STD_TORCH_CHECK(wanted.size() == 4, "batchnorm: wanted should have four entries.");
  const Walk walk(input, mask);
  BackwardLayer layer(walk, {weight, bias, residual, eps, activation_of(name, parameters)}, grad_output, mean, var,
                      bits);
  Tensor dx = wanted[0] ? walk.fresh() : nothing_like(input);
  Tensor dresidual = wanted[3] ? walk.fresh() : nothing_like(input);
  layer.run(count.has_value(), wanted[0] ? dx.data_ptr() : nullptr, wanted[3] ? dresidual.data_ptr() : nullptr,
            wanted[1] || wanted[2]);
  return {wanted[0] ? walk.finished(dx) : dx,
          wanted[1] ? statistics(layer.sum_dz_standardized, walk.element()) : nothing_like(input),
          wanted[2] ? statistics(layer.sum_dz, walk.element()) : nothing_like(input),
          wanted[3] ? walk.finished(dresidual) : dresidual};
}

std::tuple<Tensor, Tensor> grad_sums_operator(Tensor grad_output, Tensor input, Tensor mean, Tensor var,
                                              MaybeTensor weight, MaybeTensor bias, MaybeTensor residual,
                                              MaybeTensor mask, MaybeTensor bits, double eps, std::string name,
                                              std::vector<double> parameters) {
  const Walk walk(input, mask);
  BackwardLayer layer(walk, {weight, bias, residual, eps, activation_of(name, parameters)}, grad_output, mean, var,
                      bits);
  layer.run_sums();
  return {statistics(layer.sum_dz, walk.element()), statistics(layer.sum_dz_standardized, walk.element())};
}

std::tuple<Tensor, Tensor> grad_input_operator(Tensor grad_output, Tensor input, Tensor mean, Tensor var,
                                               MaybeTensor weight, MaybeTensor bias, MaybeTensor residual,
                                               MaybeTensor mask, MaybeTensor bits, MaybeTensor count,
                                               MaybeTensor sum_dz, MaybeTensor sum_dz_standardized, double eps,
                                               std::string name, std::vector<double> parameters, bool keep_residual) {
  const Walk walk(input, mask);
  BackwardLayer layer(walk, {weight, bias, residual, eps, activation_of(name, parameters)}, grad_output, mean, var,
                      bits);
  const bool training = count && sum_dz && sum_dz_standardized;
  const double values = training ? static_cast<double>(*count_data(*count)) : 0;
  Tensor dx = walk.fresh();
  Tensor dresidual = keep_residual ? walk.fresh() : nothing_like(input);
  layer.run_input(training ? &values : nullptr, sum_dz, sum_dz_standardized, dx.data_ptr(),
                  keep_residual ? dresidual.data_ptr() : nullptr);
  return {walk.finished(dx), keep_residual ? walk.finished(dresidual) : dresidual};
}

}  // namespace

}  // namespace batchnorm

STABLE_TORCH_LIBRARY_IMPL(batchnorm, CPU, library) {
  // Where the processor runs none of the kernels, the Python ones keep the operators.
  if (batchnorm::chosen_instruction_set() < 0) return;
  library.impl("moments", TORCH_BOX(&batchnorm::moments_operator));
  library.impl("double_moments", TORCH_BOX(&batchnorm::double_moments_operator));
  library.impl("normalize", TORCH_BOX(&batchnorm::normalize_operator));
  library.impl("grad_sums", TORCH_BOX(&batchnorm::grad_sums_operator));
  library.impl("grad_input", TORCH_BOX(&batchnorm::grad_input_operator));
  library.impl("forward", TORCH_BOX(&batchnorm::forward));
  library.impl("backward", TORCH_BOX(&batchnorm::backward));
  library.impl("train", TORCH_BOX(&batchnorm::train));
  // Not update_running: whether this is the recomputation of a checkpoint is a question to autograd, which only Python
  // can ask. Where buffers move at every call, train moves them.
}
