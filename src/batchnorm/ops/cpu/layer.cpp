#include "layer.h"

#include <cmath>
#include <cstring>

#include "dispatch.h"

namespace batchnorm {

namespace {

struct Named {
  std::string_view name;
  Kind kind;
  size_t parameters;
};

constexpr Named kActivations[] = {
    {"identity", Kind::Identity, 0},   {"relu", Kind::Relu, 0},         {"leaky_relu", Kind::LeakyRelu, 1},
    {"relu6", Kind::Hardtanh, 0},      {"hardtanh", Kind::Hardtanh, 2}, {"silu", Kind::Silu, 0},
    {"hardswish", Kind::Hardswish, 0}, {"gelu", Kind::Gelu, 0},         {"gelu_tanh", Kind::GeluTanh, 0},
    {"sigmoid", Kind::Sigmoid, 0},     {"tanh", Kind::Tanh, 0},         {"elu", Kind::Elu, 1},
};

// What the backward pass takes in place of an activation whose bits were kept.
Activation with_bits(const Activation& activation) {
  return {Kind::Bits, activation.kind == Kind::LeakyRelu ? activation.first : 0.0};
}

// Of the input's dtype or of that of its statistics.
std::vector<double> read_parameter(const char* name, const View& tensor, const Walk& walk) {
  if (!tensor) return {};
  const Element element = tensor.element();
  STD_TORCH_CHECK(element == walk.element() || element == statistics_of(walk.element()), "batchnorm: ", name,
                  " has neither the dtype of the input nor that of its statistics.");
  return read_vector(name, tensor, walk.channels());
}

// Statistics may come in any dtype (the running buffers in evaluation); they are used as the input's own are.
std::vector<double> read_statistics(const char* name, const View& tensor, const Walk& walk, int64_t parts = 1) {
  std::vector<double> values = read_vector(name, tensor, parts * walk.channels());
  if (walk.element() != Element::Float64) {
    for (double& value : values) value = static_cast<double>(static_cast<float>(value));
  }
  return values;
}

double rounded(double value, Element element) {
  double held = 0;
  write(&held, 0, element, value);
  return read(&held, 0, element);
}

// `running` is what the buffer holds.
void move(const View& buffer, std::vector<double>& running, const double* batch, double share) {
  const Element element = buffer.element();
  const int64_t stride = buffer.strides()[0];
  void* data = buffer.data();
  for (size_t c = 0; c < running.size(); ++c) {
    running[c] = rounded(running[c] * (1 - share) + rounded(batch[c], element) * share, element);
    write(data, static_cast<int64_t>(c) * stride, element, running[c]);
  }
}

Pass pass_of(const Walk& walk, const Activation& activation) {
  Pass pass{walk.layout(), kernels_for(walk.element()), walk.element(), activation};
  pass.input = walk.input();
  return pass;
}

}  // namespace

Activation activation_of(std::string_view name, const double* parameters, size_t count) {
  for (const Named& known : kActivations) {
    if (name != known.name) continue;
    STD_TORCH_CHECK(count == known.parameters, "batchnorm: ", std::string(name), " takes ", known.parameters,
                    " parameters.");
    Activation activation{known.kind};
    if (name == "relu6") activation.second = 6;
    if (count > 0) activation.first = parameters[0];
    if (count > 1) activation.second = parameters[1];
    return activation;
  }
  STD_TORCH_CHECK(false, "batchnorm: no activation is called ", std::string(name), ".");
  return {};
}

bool keeps_bits(const Activation& activation) {
  return activation.kind == Kind::Relu || activation.kind == Kind::LeakyRelu || activation.kind == Kind::Hardtanh;
}

int64_t* count_data(const View& count) {
  STD_TORCH_CHECK(count.dtype() == aoti_torch_dtype_int64() && count.numel() == 1 && count.is_cpu(),
                  "batchnorm: a count should be one int64 on the CPU.");
  return static_cast<int64_t*>(count.data());
}

void write_statistics(const View& tensor, const std::vector<double>& values, Element input) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.sizes()[0] == static_cast<int64_t>(values.size()) &&
                      (tensor.strides()[0] == 1 || values.size() < 2) && tensor.element() == statistics_of(input),
                  "batchnorm: there is no room for a vector of statistics.");
  void* data = tensor.data();
  for (size_t i = 0; i < values.size(); ++i) write(data, static_cast<int64_t>(i), statistics_of(input), values[i]);
}

Buffers::Buffers(const View& mean, const View& var, const View& batches, int64_t channels) {
  if (!mean || !var) return;
  mean_values_ = read_vector("running_mean", mean, channels);
  var_values_ = read_vector("running_var", var, channels);
  if (batches) count_data(batches);
  mean_ = mean;
  var_ = var;
  batches_ = batches;
}

void Buffers::update(const Walk& walk, const std::vector<double>& mean, const std::vector<double>& var,
                     std::optional<double> momentum, bool skip_nonfinite) {
  if (!mean_) return;
  if (walk.layout().values() == 0) {
    if (batches_) ++*count_data(batches_);
    return;
  }
  take(walk.layout().count(), mean.data(), var.data(), walk.element(), momentum, skip_nonfinite);
}

void Buffers::update(const Walk& walk, const Parts& parts, const std::vector<double>& mean,
                     const std::vector<double>& var, std::optional<double> momentum, bool skip_nonfinite) {
  const int64_t channels = walk.channels();
  for (int64_t part = 0; mean_ && part < parts.count(); ++part) {
    take(parts.layout(part).count(), &mean[part * channels], &var[part * channels], walk.element(), momentum,
         skip_nonfinite);
  }
}

void Buffers::take(int64_t count, const double* mean, const double* var, Element input, std::optional<double> momentum,
                   bool skip_nonfinite) {
  if (count < 2) return;
  const Element mean_element = mean_.element(), var_element = var_.element();
  const double correction = static_cast<double>(count) / static_cast<double>(count - 1);
  std::vector<double> unbiased(var_values_.size());
  for (size_t c = 0; c < unbiased.size(); ++c) {
    unbiased[c] = rounded(var[c] * correction, statistics_of(input));
    const bool finite =
        std::isfinite(rounded(mean[c], mean_element)) && std::isfinite(rounded(unbiased[c], var_element));
    if (skip_nonfinite && !finite) return;
  }
  STD_TORCH_CHECK(momentum || batches_, "batchnorm: an average over all batches needs num_batches_tracked.");
  const double share = momentum ? *momentum : 1.0 / static_cast<double>(*count_data(batches_) + 1);
  move(mean_, mean_values_, mean, share);
  move(var_, var_values_, unbiased.data(), share);
  if (batches_) ++*count_data(batches_);
}

ForwardLayer::ForwardLayer(const Walk& walk, const Parameters& parameters)
    : walk_(walk),
      weight_(read_parameter("weight", parameters.weight, walk)),
      bias_(read_parameter("bias", parameters.bias, walk)),
      pass_{pass_of(walk, parameters.activation)} {
  if (parameters.residual) pass_.residual = walk.data("residual", parameters.residual, residual_);
  pass_.weight = parameters.weight ? weight_.data() : nullptr;
  pass_.bias = parameters.bias ? bias_.data() : nullptr;
  pass_.eps = parameters.eps;
}

void ForwardLayer::train(void* output, uint8_t* bits, std::vector<double>& mean, std::vector<double>& var) {
  const Layout& layout = walk_.layout();
  ask_for_huge_pages(output, walk_.bytes());
  pass_.output = output;
  pass_.bits = bits;
  // Runs of a mask share bytes, and a matrix leaves the last ones over.
  if (bits && (layout.masked || !layout.planes)) std::memset(bits, 0, layout.bytes_of_bits());
  mean.resize(walk_.channels());
  var.resize(walk_.channels());
  moments_and_normalize(pass_, mean.data(), var.data());
}

void ForwardLayer::normalize(void* output, const View& mean, const View& var) {
  const std::vector<double> means = read_statistics("mean", mean, walk_), vars = read_statistics("var", var, walk_);
  ask_for_huge_pages(output, walk_.bytes());
  pass_.output = output;
  if (walk_.layout().values()) batchnorm::normalize(pass_, means.data(), vars.data());
}

BackwardLayer::BackwardLayer(const Walk& walk, const Parameters& parameters, const View& grad_output,
                             const View& mean, const View& var, const View& bits, const Parts* parts)
    : sum_dz(walk.channels()),
      sum_dz_standardized(walk.channels()),
      walk_(walk),
      weight_(read_parameter("weight", parameters.weight, walk)),
      bias_(read_parameter("bias", parameters.bias, walk)),
      mean_(read_statistics("mean", mean, walk, parts ? parts->count() : 1)),
      var_(read_statistics("var", var, walk, parts ? parts->count() : 1)),
      pass_{pass_of(walk, bits ? with_bits(parameters.activation) : parameters.activation)} {
  pass_.grad_output = walk.data("grad_output", grad_output, grad_output_);
  if (parameters.residual) pass_.residual = walk.data("residual", parameters.residual, residual_);
  if (bits) {
    const int64_t bytes = parts ? parts->bits_before(parts->count()) : walk.layout().bytes_of_bits();
    STD_TORCH_CHECK(bits.numel() == bytes && bits.dtype() == aoti_torch_dtype_uint8() &&
                        bits.is_cpu() && bits.dim() == 1 && bits.strides()[0] == 1 &&
                        keeps_bits(parameters.activation),
                    "batchnorm: these bits are not of this input.");
    pass_.bits = static_cast<uint8_t*>(bits.data());
  }
  pass_.weight = parameters.weight ? weight_.data() : nullptr;
  pass_.bias = parameters.bias ? bias_.data() : nullptr;
  pass_.mean = mean_.data();
  pass_.var = var_.data();
  pass_.eps = parameters.eps;
}

void BackwardLayer::set_outputs(void* grad_input, void* grad_residual) {
  if (grad_input) ask_for_huge_pages(grad_input, walk_.bytes());
  if (grad_residual) ask_for_huge_pages(grad_residual, walk_.bytes());
  pass_.grad_input = grad_input;
  pass_.grad_residual = grad_residual;
}

void BackwardLayer::run(bool training, void* grad_input, void* grad_residual, bool sums) {
  set_outputs(grad_input, grad_residual);
  pass_.training = training;
  sums = sums || (grad_input && training);
  if (walk_.layout().values() == 0) return;
  grad_sums_and_input(pass_, sums ? sum_dz.data() : nullptr, sums ? sum_dz_standardized.data() : nullptr);
}

void BackwardLayer::run_sums() {
  if (walk_.layout().values()) grad_sums(pass_, sum_dz.data(), sum_dz_standardized.data());
}

void BackwardLayer::run_input(const double* count, const View& sums, const View& products, void* grad_input,
                              void* grad_residual) {
  pass_.training = count != nullptr;
  if (pass_.training) {
    sum_dz = read_vector("sum_dz", sums, walk_.channels());
    sum_dz_standardized = read_vector("sum_dz_standardized", products, walk_.channels());
  }
  set_outputs(grad_input, grad_residual);
  if (walk_.layout().values() == 0) return;
  batchnorm::grad_input(pass_, count ? *count : 0, sum_dz.data(), sum_dz_standardized.data());
}

}  // namespace batchnorm
