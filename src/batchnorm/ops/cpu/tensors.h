// Tensors as the kernels take them: laid out so that they can be walked, checked before anything is written.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "elements.h"
#include "layout.h"

namespace batchnorm {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

Element element_of(const Tensor& tensor);
int32_t dtype_of(const Tensor& tensor);

// Sizes and strides as given, on the CPU, nothing written.
Tensor empty(const std::vector<int64_t>& sizes, int32_t dtype);
Tensor empty_strided_like(const Tensor& tensor);

// The values of a vector of `channels` entries, in double.
std::vector<double> read_vector(const char* name, const Tensor& tensor, int64_t channels);

// Writes a new vector of the dtype that statistics of such an input have.
Tensor statistics(const std::vector<double>& values, Element input);

// An input, and what its layout asks of all that goes with it.
class Walk {
 public:
  Walk(const Tensor& input, const MaybeTensor& mask);

  const Layout& layout() const { return layout_; }
  Element element() const { return element_; }
  int64_t channels() const { return layout_.channels; }
  const void* input() const { return walked_.data_ptr(); }

  // The data of a tensor of the input's shape and dtype, in the input's layout: itself or a copy, which `holder` keeps.
  const void* data(const char* name, const Tensor& tensor, Tensor& holder) const;

  // A new tensor to be written in the layout, and the same with the strides that the input's own empty_like has.
  Tensor fresh() const;
  Tensor finished(Tensor written) const;

 private:
  bool fits(const Tensor& tensor) const;

  Tensor input_;
  Tensor walked_;
  Element element_;
  bool channels_last_ = false;
  bool as_given_ = true;
  Layout layout_;
};

}  // namespace batchnorm
