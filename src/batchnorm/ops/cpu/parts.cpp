#include "parts.h"

#include <cstring>

#include "layer.h"
#include "pass_parts.h"

namespace batchnorm {

Parts::Parts(const Walk& walk, int64_t count) : count_(count), values_(walk.layout().values()) {
  const Layout& whole = walk.layout();
  STD_TORCH_CHECK(count > 0 && count <= whole.samples && !whole.masked, "batchnorm: no batch is cut so.");
  longer_ = whole.samples % count;
  const auto cut = [&](int64_t samples) {
    return make_layout(samples, whole.channels, whole.spatial, walk.channels_last(), nullptr);
  };
  short_ = cut(whole.samples / count);
  if (longer_ > 0) long_ = cut(whole.samples / count + 1);
}

namespace {

// What of a pass lies at a part.
void place(Pass& pass, const Pass& whole, const Parts& parts, int64_t part) {
  const int64_t values = parts.values_before(part);
  pass.input = at(whole.input, values, whole.element);
  pass.residual = at(whole.residual, values, whole.element);
  pass.bits = whole.bits ? whole.bits + parts.bits_before(part) : nullptr;
}

Pass on(const Layout& layout, const Pass& whole) { return {layout, whole.kernels, whole.element, whole.activation}; }

}  // namespace

void ForwardLayer::train(const Parts& parts, void* output, uint8_t* bits, std::vector<double>& mean,
                         std::vector<double>& var) {
  ask_for_huge_pages(output, walk_.bytes());
  const int64_t channels = walk_.channels();
  pass_.bits = bits;
  mean.resize(parts.count() * channels);
  var.resize(parts.count() * channels);
  parts.each([&](int64_t part) {
    const Layout& layout = parts.layout(part);
    ForwardPass pass{on(layout, pass_)};
    place(pass, pass_, parts, part);
    if (pass.bits && !layout.planes) std::memset(pass.bits, 0, layout.bytes_of_bits());  // as for a whole batch
    pass.output = at(output, parts.values_before(part), pass.element);
    pass.weight = pass_.weight;
    pass.bias = pass_.bias;
    pass.eps = pass_.eps;
    moments_and_normalize(pass, &mean[part * channels], &var[part * channels]);
  });
}

void BackwardLayer::run(const Parts& parts, void* grad_input, void* grad_residual, bool sums) {
  set_outputs(grad_input, grad_residual);
  sums = sums || grad_input;
  const int64_t channels = walk_.channels();
  std::vector<double> sums_dz(sums ? parts.count() * channels : 0), sums_dzx(sums_dz.size());
  parts.each([&](int64_t part) {
    const int64_t values = parts.values_before(part);
    BackwardPass pass{on(parts.layout(part), pass_)};
    place(pass, pass_, parts, part);
    pass.grad_output = at(pass_.grad_output, values, pass.element);
    pass.grad_input = at(grad_input, values, pass.element);
    pass.grad_residual = at(grad_residual, values, pass.element);
    pass.weight = pass_.weight;
    pass.bias = pass_.bias;
    pass.mean = pass_.mean + part * channels;
    pass.var = pass_.var + part * channels;
    pass.eps = pass_.eps;
    grad_sums_and_input(pass, sums ? &sums_dz[part * channels] : nullptr, sums ? &sums_dzx[part * channels] : nullptr);
  });
  // In the order of the parts, whichever thread was first.
  for (int64_t part = 0; sums && part < parts.count(); ++part) {
    for (int64_t channel = 0; channel < channels; ++channel) {
      sum_dz[channel] += sums_dz[part * channels + channel];
      sum_dz_standardized[channel] += sums_dzx[part * channels + channel];
    }
  }
}

}  // namespace batchnorm
