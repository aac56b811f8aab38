// Tensors as the kernels take them: checked before anything is written, and laid out so that they can be walked.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "elements.h"
#include "layout.h"

namespace batchnorm {

using torch::stable::Tensor;

// A tensor that somebody else keeps alive, or none.
class View {
 public:
  View() = default;
  explicit View(AtenTensorHandle handle) : handle_(handle) {}
  View(const Tensor& tensor) : handle_(tensor.get()) {}
  View(const std::optional<Tensor>& tensor) : handle_(tensor ? tensor->get() : nullptr) {}

  explicit operator bool() const { return handle_ != nullptr; }

  int64_t dim() const;
  int64_t numel() const;
  int32_t dtype() const;
  bool is_cpu() const;
  const int64_t* sizes() const;
  const int64_t* strides() const;
  // Never null where there are values: a tensor without memory is refused.
  void* data() const;
  Element element() const;
  // The same tensor, kept alive.
  Tensor keep() const;

 private:
  AtenTensorHandle handle_ = nullptr;
};

// New tensors on the CPU, nothing written.
Tensor empty(const std::vector<int64_t>& sizes, int32_t dtype);
Tensor empty_strided_like(const View& tensor);

// The values of a vector of `channels` entries, in double.
std::vector<double> read_vector(const char* name, const View& tensor, int64_t channels);

// To be called of memory that is about to be written whole.
void ask_for_huge_pages(void* data, int64_t bytes);

// An input, and what its layout asks of all that goes with it.
class Walk {
 public:
  Walk(const View& input, const View& mask);

  const Layout& layout() const { return layout_; }
  Element element() const { return element_; }
  int64_t channels() const { return layout_.channels; }
  int64_t bytes() const { return layout_.values() * size_of(element_); }
  // Whether the input is walked as it lies: a new tensor of its strides can be written to. If not, a copy is.
  bool as_given() const { return !copy_; }
  bool channels_last() const { return channels_last_; }
  const void* input() const { return (copy_ ? View(*copy_) : input_).data(); }

  // The data of a tensor of the input's shape and dtype, in the layout: its own or that of a copy, kept in `holder`.
  const void* data(const char* name, const View& tensor, std::optional<Tensor>& holder) const;

  // A new tensor to be written in the layout, and the same with the strides that the input's empty_like has.
  Tensor fresh() const { return empty_strided_like(copy_ ? View(*copy_) : input_); }
  Tensor finished(Tensor written) const;

  // Refuses what has not the input's shape, dtype and device.
  void check_alike(const char* name, const View& tensor) const;
  // Whether such a tensor lies as the walk goes.
  bool fits(const View& tensor) const;

 private:
  View input_;
  std::optional<Tensor> copy_;
  Element element_;
  bool channels_last_ = false;
  Layout layout_;
};

}  // namespace batchnorm
