// torch.ops.batchnorm on the CPU. Signatures are those of ops/schema.py, meanings those of ops/eager.py.

#include <cmath>
#include <cstring>
#include <string>
#include <tuple>

#include "dispatch.h"
#include "passes.h"
#include "tensors.h"

namespace batchnorm {

namespace {

struct Named {
  const char* name;
  Kind kind;
  size_t parameters;
};

constexpr Named kActivations[] = {
    {"identity", Kind::Identity, 0}, {"relu", Kind::Relu, 0},          {"leaky_relu", Kind::LeakyRelu, 1},
    {"relu6", Kind::Hardtanh, 0},    {"hardtanh", Kind::Hardtanh, 2},  {"silu", Kind::Silu, 0},
    {"hardswish", Kind::Hardswish, 0}, {"gelu", Kind::Gelu, 0},        {"gelu_tanh", Kind::GeluTanh, 0},
    {"sigmoid", Kind::Sigmoid, 0},   {"tanh", Kind::Tanh, 0},          {"elu", Kind::Elu, 1},
};

Activation activation_of(const std::string& name, const std::vector<double>& parameters) {
  for (const Named& known : kActivations) {
    if (name != known.name) continue;
    STD_TORCH_CHECK(parameters.size() == known.parameters, "batchnorm: ", name, " takes ", known.parameters,
                    " parameters.");
    Activation activation{known.kind};
    if (name == "relu6") activation.second = 6;
    if (!parameters.empty()) activation.first = parameters[0];
    if (parameters.size() > 1) activation.second = parameters[1];
    return activation;
  }
  STD_TORCH_CHECK(false, "batchnorm: no activation is called ", name, ".");
  return {};
}

// What the backward pass takes in place of an activation whose bits were kept.
Activation with_bits(const Activation& activation) {
  return {Kind::Bits, activation.kind == Kind::LeakyRelu ? activation.first : 0.0};
}

bool keeps_bits(const Activation& activation) {
  return activation.kind == Kind::Relu || activation.kind == Kind::LeakyRelu || activation.kind == Kind::Hardtanh;
}

const double* data_or_null(const std::vector<double>& vector, bool given) { return given ? vector.data() : nullptr; }

// A parameter, of the input's dtype or of that of its statistics.
std::vector<double> read_parameter(const char* name, const MaybeTensor& tensor, const Walk& walk) {
  if (!tensor) return {};
  const Element element = element_of(*tensor);
  STD_TORCH_CHECK(element == walk.element() || element == statistics_of(walk.element()), "batchnorm: ", name,
                  " has neither the dtype of the input nor that of its statistics.");
  return read_vector(name, *tensor, walk.channels());
}

Tensor scalar_count(int64_t value) {
  Tensor count = empty({}, aoti_torch_dtype_int64());
  *static_cast<int64_t*>(count.data_ptr()) = value;
  return count;
}

int64_t read_count(const Tensor& count) {
  STD_TORCH_CHECK(dtype_of(count) == aoti_torch_dtype_int64() && count.numel() == 1 && count.is_cpu(),
                  "batchnorm: the count should be one int64 on the CPU.");
  return *static_cast<const int64_t*>(count.data_ptr());
}

Tensor bytes(int64_t count) { return empty({count}, aoti_torch_dtype_uint8()); }

Tensor nothing_like(const Tensor& tensor) { return empty({0}, dtype_of(tensor)); }

// --- the running buffers ---------------------------------------------------------------------------------------------

// The buffers of one layer, checked before anything is computed.
class Buffers {
 public:
  Buffers(const MaybeTensor& mean, const MaybeTensor& var, const MaybeTensor& batches, int64_t channels)
      : given_(mean && var), batches_(batches) {
    if (batches_) read_count(*batches_);
    if (!given_) return;
    mean_ = read_vector("running_mean", *mean, channels);
    var_ = read_vector("running_var", *var, channels);
    mean_tensor_ = mean;
    var_tensor_ = var;
  }

  void count_empty() {
    if (given_ && batches_) ++*static_cast<int64_t*>(batches_->data_ptr());
  }

  // As ops/running.py: all of it or nothing. Without a momentum the average over all batches.
  void update(int64_t count, const std::vector<double>& mean, const std::vector<double>& var, Element input,
              std::optional<double> momentum, bool skip_nonfinite) {
    if (!given_ || count < 2) return;
    const Element mean_element = element_of(*mean_tensor_), var_element = element_of(*var_tensor_);
    const double correction = static_cast<double>(count) / static_cast<double>(count - 1);
    std::vector<double> unbiased(var.size());
    for (size_t c = 0; c < var.size(); ++c) {
      unbiased[c] = rounded(var[c] * correction, statistics_of(input));
      if (skip_nonfinite && !(std::isfinite(rounded(mean[c], mean_element)) &&
                              std::isfinite(rounded(unbiased[c], var_element)))) {
        return;
      }
    }
    STD_TORCH_CHECK(momentum || batches_, "batchnorm: an average over all batches needs num_batches_tracked.");
    const double share = momentum ? *momentum : 1.0 / static_cast<double>(read_count(*batches_) + 1);
    move(*mean_tensor_, mean_element, mean_, mean, share);
    move(*var_tensor_, var_element, var_, unbiased, share);
    count_empty();
  }

 private:
  static double rounded(double value, Element element) {
    double held = 0;
    write(&held, 0, element, value);
    return read(&held, 0, element);
  }

  static void move(Tensor& buffer, Element element, const std::vector<double>& running,
                   const std::vector<double>& batch, double share) {
    const int64_t stride = buffer.stride(0);
    void* data = buffer.data_ptr();
    for (size_t c = 0; c < running.size(); ++c) {
      const double moved = running[c] * (1 - share) + rounded(batch[c], element) * share;
      write(data, static_cast<int64_t>(c) * stride, element, moved);
    }
  }

  bool given_;
  MaybeTensor batches_, mean_tensor_, var_tensor_;
  std::vector<double> mean_, var_;
};

// --- forward ---------------------------------------------------------------------------------------------------------

// What a forward pass in training gives, before it becomes tensors.
struct Trained {
  Tensor output, bits;
  std::vector<double> mean, var;
  int64_t count;
};

Trained run_forward(const Walk& walk, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& residual,
                    double eps, const Activation& activation, bool keep_bits) {
  const Layout& layout = walk.layout();
  const std::vector<double> gamma = read_parameter("weight", weight, walk);
  const std::vector<double> beta = read_parameter("bias", bias, walk);
  keep_bits = keep_bits && keeps_bits(activation);
  Trained out{walk.fresh(), bytes(keep_bits ? layout.bytes_of_bits() : 0), std::vector<double>(walk.channels()),
              std::vector<double>(walk.channels()), layout.values() ? layout.count() : 0};
  ForwardPass pass{{layout, kernels_for(walk.element()), walk.element(), activation}};
  pass.input = walk.input();
  Tensor holder = out.output;
  if (residual) pass.residual = walk.data("residual", *residual, holder);
  pass.output = out.output.data_ptr();
  if (keep_bits) {
    pass.bits = static_cast<uint8_t*>(out.bits.data_ptr());
    // Runs of a mask share bytes, and a matrix leaves the last ones over.
    if (layout.masked || !layout.planes) std::memset(pass.bits, 0, layout.bytes_of_bits());
  }
  pass.weight = data_or_null(gamma, weight.has_value());
  pass.bias = data_or_null(beta, bias.has_value());
  pass.eps = eps;
  moments_and_normalize(pass, out.mean.data(), out.var.data());
  out.output = walk.finished(out.output);
  return out;
}

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Forward as_tensors(const Trained& trained, Element element) {
  return {trained.output, scalar_count(trained.count), statistics(trained.mean, element),
          statistics(trained.var, element), trained.bits};
}

Forward forward(Tensor input, MaybeTensor weight, MaybeTensor bias, MaybeTensor residual, MaybeTensor mask, double eps,
                std::string name, std::vector<double> parameters, bool keep_bits) {
  const Walk walk(input, mask);
  const Activation activation = activation_of(name, parameters);
  return as_tensors(run_forward(walk, weight, bias, residual, eps, activation, keep_bits), walk.element());
}

Forward train(Tensor input, MaybeTensor weight, MaybeTensor bias, MaybeTensor residual, MaybeTensor mask,
              MaybeTensor running_mean, MaybeTensor running_var, MaybeTensor num_batches_tracked,
              std::optional<double> momentum, bool skip_nonfinite, double eps, std::string name,
              std::vector<double> parameters, bool keep_bits) {
  const Walk walk(input, mask);
  STD_TORCH_CHECK(mask || walk.layout().samples * walk.layout().spatial != 1 || walk.channels() == 0,
                  "batchnorm: expected more than 1 value per channel when training.");
  Buffers buffers(running_mean, running_var, num_batches_tracked, walk.channels());
  const Activation activation = activation_of(name, parameters);
  const Trained trained = run_forward(walk, weight, bias, residual, eps, activation, keep_bits);
  if (walk.layout().values() == 0) {
    buffers.count_empty();
  } else {
    buffers.update(trained.count, trained.mean, trained.var, walk.element(), momentum, skip_nonfinite);
  }
  return as_tensors(trained, walk.element());
}

std::tuple<Tensor, Tensor, Tensor> moments_operator(Tensor input, MaybeTensor mask) {
  const Walk walk(input, mask);
  std::vector<double> mean(walk.channels()), var(walk.channels());
  Pass pass{walk.layout(), kernels_for(walk.element()), walk.element(), {}};
  pass.input = walk.input();
  moments(pass, mean.data(), var.data());
  const int64_t count = walk.layout().values() ? walk.layout().count() : 0;
  return {scalar_count(count), statistics(mean, walk.element()), statistics(var, walk.element())};
}

// What is saved of the statistics may be of any dtype (the running buffers in evaluation): used as the input's own are.
std::vector<double> read_statistics(const char* name, const Tensor& tensor, const Walk& walk) {
  std::vector<double> values = read_vector(name, tensor, walk.channels());
  if (walk.element() != Element::Float64) {
    for (double& value : values) value = static_cast<double>(static_cast<float>(value));
  }
  return values;
}

Tensor normalize_operator(Tensor input, Tensor mean, Tensor var, MaybeTensor weight, MaybeTensor bias,
                          MaybeTensor residual, MaybeTensor mask, double eps, std::string name,
                          std::vector<double> parameters) {
  const Walk walk(input, mask);
  const std::vector<double> gamma = read_parameter("weight", weight, walk);
  const std::vector<double> beta = read_parameter("bias", bias, walk);
  const std::vector<double> means = read_statistics("mean", mean, walk), vars = read_statistics("var", var, walk);
  ForwardPass pass{{walk.layout(), kernels_for(walk.element()), walk.element(), activation_of(name, parameters)}};
  Tensor output = walk.fresh(), holder = output;
  pass.input = walk.input();
  if (residual) pass.residual = walk.data("residual", *residual, holder);
  pass.output = output.data_ptr();
  pass.weight = data_or_null(gamma, weight.has_value());
  pass.bias = data_or_null(beta, bias.has_value());
  pass.eps = eps;
  if (walk.layout().values()) normalize(pass, means.data(), vars.data());
  return walk.finished(output);
}

// --- backward --------------------------------------------------------------------------------------------------------

// A backward pass and all that its pointers point to.
struct Backward {
  Walk walk;
  std::vector<double> gamma, beta, means, vars, sum_dz, sum_dzx;
  Tensor grad_output, residual, bits;
  BackwardPass pass;

  Backward(const Tensor& grad, const Tensor& input, const Tensor& mean, const Tensor& var, const MaybeTensor& weight,
           const MaybeTensor& bias, const MaybeTensor& added, const MaybeTensor& mask, const MaybeTensor& kept,
           double eps, const Activation& activation)
      : walk(input, mask),
        gamma(read_parameter("weight", weight, walk)),
        beta(read_parameter("bias", bias, walk)),
        means(read_statistics("mean", mean, walk)),
        vars(read_statistics("var", var, walk)),
        sum_dz(walk.channels()),
        sum_dzx(walk.channels()),
        grad_output(grad),
        residual(grad),
        bits(grad),
        pass{{walk.layout(), kernels_for(walk.element()), walk.element(), kept ? with_bits(activation) : activation}} {
    pass.input = walk.input();
    pass.grad_output = walk.data("grad_output", grad, grad_output);
    if (added) pass.residual = walk.data("residual", *added, residual);
    if (kept) {
      STD_TORCH_CHECK(kept->numel() == walk.layout().bytes_of_bits() && dtype_of(*kept) == aoti_torch_dtype_uint8() &&
                          kept->is_contiguous() && keeps_bits(activation),
                      "batchnorm: these bits are not of this input.");
      bits = *kept;
      pass.bits = static_cast<uint8_t*>(bits.data_ptr());
    }
    pass.weight = data_or_null(gamma, weight.has_value());
    pass.bias = data_or_null(beta, bias.has_value());
    pass.mean = means.data();
    pass.var = vars.data();
    pass.eps = eps;
  }

  Backward(const Backward&) = delete;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor grad_output, Tensor input, Tensor mean, Tensor var,
                                                    MaybeTensor weight, MaybeTensor bias, MaybeTensor residual,
                                                    MaybeTensor mask, MaybeTensor bits, MaybeTensor count, double eps,
                                                    std::string name, std::vector<double> parameters,
                                                    std::vector<bool> wanted) {
  STD_TORCH_CHECK(wanted.size() == 4, "batchnorm: wanted should have four entries.");
  Backward b(grad_output, input, mean, var, weight, bias, residual, mask, bits, eps,
             activation_of(name, parameters));
  // No output may be another: each that is not wanted is a tensor of its own.
  Tensor dx = wanted[0] ? b.walk.fresh() : nothing_like(input);
  Tensor dresidual = wanted[3] ? b.walk.fresh() : nothing_like(input);
  b.pass.training = count.has_value();
  if (wanted[0]) b.pass.grad_input = dx.data_ptr();
  if (wanted[3]) b.pass.grad_residual = dresidual.data_ptr();
  const bool sums = wanted[1] || wanted[2] || (wanted[0] && b.pass.training);
  if (b.walk.layout().values()) {
    grad_sums_and_input(b.pass, sums ? b.sum_dz.data() : nullptr, sums ? b.sum_dzx.data() : nullptr);
  }
  const Element element = b.walk.element();
  return {wanted[0] ? b.walk.finished(dx) : dx, wanted[1] ? statistics(b.sum_dzx, element) : nothing_like(input),
          wanted[2] ? statistics(b.sum_dz, element) : nothing_like(input),
          wanted[3] ? b.walk.finished(dresidual) : dresidual};
}

std::tuple<Tensor, Tensor> grad_sums_operator(Tensor grad_output, Tensor input, Tensor mean, Tensor var,
                                              MaybeTensor weight, MaybeTensor bias, MaybeTensor residual,
                                              MaybeTensor mask, MaybeTensor bits, double eps, std::string name,
                                              std::vector<double> parameters) {
  Backward b(grad_output, input, mean, var, weight, bias, residual, mask, bits, eps,
             activation_of(name, parameters));
  if (b.walk.layout().values()) grad_sums(b.pass, b.sum_dz.data(), b.sum_dzx.data());
  return {statistics(b.sum_dz, b.walk.element()), statistics(b.sum_dzx, b.walk.element())};
}

std::tuple<Tensor, Tensor> grad_input_operator(Tensor grad_output, Tensor input, Tensor mean, Tensor var,
                                               MaybeTensor weight, MaybeTensor bias, MaybeTensor residual,
                                               MaybeTensor mask, MaybeTensor bits, MaybeTensor count,
                                               MaybeTensor sum_dz, MaybeTensor sum_dz_standardized, double eps,
                                               std::string name, std::vector<double> parameters, bool keep_residual) {
  Backward b(grad_output, input, mean, var, weight, bias, residual, mask, bits, eps,
             activation_of(name, parameters));
  Tensor dx = b.walk.fresh();
  Tensor dresidual = keep_residual ? b.walk.fresh() : nothing_like(input);
  b.pass.grad_input = dx.data_ptr();
  if (keep_residual) b.pass.grad_residual = dresidual.data_ptr();
  b.pass.training = count && sum_dz && sum_dz_standardized;
  double values = 0;
  if (b.pass.training) {
    values = static_cast<double>(read_count(*count));
    b.sum_dz = read_vector("sum_dz", *sum_dz, b.walk.channels());
    b.sum_dzx = read_vector("sum_dz_standardized", *sum_dz_standardized, b.walk.channels());
  }
  if (b.walk.layout().values()) grad_input(b.pass, values, b.sum_dz.data(), b.sum_dzx.data());
  return {b.walk.finished(dx), keep_residual ? b.walk.finished(dresidual) : dresidual};
}

}  // namespace

}  // namespace batchnorm

STABLE_TORCH_LIBRARY_IMPL(batchnorm, CPU, library) {
  // Where the processor runs none of the kernels, the Python ones keep the operators.
  if (batchnorm::chosen_instruction_set() < 0) return;
  library.impl("moments", TORCH_BOX(&batchnorm::moments_operator));
  library.impl("normalize", TORCH_BOX(&batchnorm::normalize_operator));
  library.impl("grad_sums", TORCH_BOX(&batchnorm::grad_sums_operator));
  library.impl("grad_input", TORCH_BOX(&batchnorm::grad_input_operator));
  library.impl("forward", TORCH_BOX(&batchnorm::forward));
  library.impl("backward", TORCH_BOX(&batchnorm::backward));
  library.impl("train", TORCH_BOX(&batchnorm::train));
  // Not update_running: whether this is the recomputation of a checkpoint is a question to autograd, which only Python
  // can ask. Where buffers move at every call, train moves them.
}
