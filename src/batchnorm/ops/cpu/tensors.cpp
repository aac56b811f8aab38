#include "tensors.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace batchnorm {

namespace {

// Fresh memory costs a page fault every 4 KB, three times the price of the kernel that fills it (100 MB: 37 ms by small
// pages, 12 ms by huge ones). What is about to be written whole may as well lie on huge pages; where the system knows
// none, or gives them anyway, this does nothing.
void ask_for_huge_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  if (bytes < static_cast<int64_t>(2 * kHuge)) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) & ~(kHuge - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(kHuge - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

struct Shape {
  explicit Shape(const Tensor& tensor) : sizes(tensor.sizes()), strides(tensor.strides()) {}

  torch::headeronly::IntHeaderOnlyArrayRef sizes, strides;

  int64_t dims() const { return static_cast<int64_t>(sizes.size()); }

  // Whether memory is filled without gaps in this order of dimensions, the last one fastest; a dimension of size 1 may
  // have any stride.
  template <class Order>
  bool dense(Order order) const {
    int64_t expected = 1;
    for (int64_t place = dims() - 1; place >= 0; --place) {
      const int64_t dim = order(place);
      if (sizes[dim] != 1 && strides[dim] != expected) return false;
      expected *= sizes[dim];
    }
    return true;
  }

  bool contiguous() const {
    return dense([](int64_t place) { return place; });
  }

  bool channels_last() const {
    const int64_t last = dims() - 1;
    return dense([last](int64_t place) { return place == 0 ? 0 : place == last ? 1 : place + 1; });
  }
};

void copy_into(Tensor& to, const Tensor& from) { torch::stable::copy_(to, from); }

}  // namespace

int32_t dtype_of(const Tensor& tensor) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

Element element_of(const Tensor& tensor) {
  const int32_t dtype = dtype_of(tensor);
  if (dtype == aoti_torch_dtype_float32()) return Element::Float32;
  if (dtype == aoti_torch_dtype_float64()) return Element::Float64;
  if (dtype == aoti_torch_dtype_bfloat16()) return Element::BFloat16;
  STD_TORCH_CHECK(dtype == aoti_torch_dtype_float16(),
                  "batchnorm: the dtype is none of float32, float64, bfloat16 and float16.");
  return Element::Float16;
}

Tensor empty(const std::vector<int64_t>& sizes, int32_t dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t dim = sizes.size(); dim-- > 1;) strides[dim - 1] = strides[dim] * sizes[dim];
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), dtype, aoti_torch_device_type_cpu(), 0,
                                                         &handle));
  return Tensor(handle);
}

Tensor empty_strided_like(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), dtype_of(tensor),
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

std::vector<double> read_vector(const char* name, const Tensor& tensor, int64_t channels) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == channels && tensor.is_cpu(), "batchnorm: ", name,
                  " should be a vector of ", channels, " entries on the CPU.");
  const Element element = element_of(tensor);
  const int64_t stride = tensor.stride(0);
  const void* data = tensor.data_ptr();
  std::vector<double> values(channels);
  for (int64_t channel = 0; channel < channels; ++channel) values[channel] = read(data, channel * stride, element);
  return values;
}

Tensor statistics(const std::vector<double>& values, Element input) {
  const bool wide = input == Element::Float64;
  Tensor tensor = empty({static_cast<int64_t>(values.size())},
                        wide ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32());
  void* data = tensor.data_ptr();
  for (size_t i = 0; i < values.size(); ++i) {
    write(data, static_cast<int64_t>(i), wide ? Element::Float64 : Element::Float32, values[i]);
  }
  return tensor;
}

Walk::Walk(const Tensor& input, const MaybeTensor& mask)
    : input_(input), walked_(input), element_(element_of(input)) {
  STD_TORCH_CHECK(input.is_cpu(), "batchnorm: the input is not on the CPU.");
  const Shape shape(input);
  STD_TORCH_CHECK(shape.dims() >= 2, "batchnorm: the input should be (N, C, *spatial).");
  int64_t spatial = 1;
  for (int64_t dim = 2; dim < shape.dims(); ++dim) spatial *= shape.sizes[dim];
  const int64_t samples = shape.sizes[0], channels = shape.sizes[1];

  Tensor mask_holder = input;
  const bool* valid = nullptr;
  if (mask) {
    STD_TORCH_CHECK(dtype_of(*mask) == aoti_torch_dtype_bool() && mask->is_cpu() && mask->size(0) == samples &&
                        mask->numel() == samples * spatial,
                    "batchnorm: the mask should be bool, (N, *spatial), on the CPU.");
    mask_holder = torch::stable::contiguous(*mask);
    valid = static_cast<const bool*>(mask_holder.data_ptr());
  }
  if (!shape.contiguous()) {
    channels_last_ = shape.channels_last() && walks_channels_last(channels, mask.has_value());
    if (!channels_last_) {
      as_given_ = false;
      walked_ = torch::stable::contiguous(input);
    }
  }
  layout_ = make_layout(samples, channels, spatial, channels_last_, valid);
}

bool Walk::fits(const Tensor& tensor) const {
  const Shape shape(tensor);
  return channels_last_ ? shape.channels_last() : shape.contiguous();
}

const void* Walk::data(const char* name, const Tensor& tensor, Tensor& holder) const {
  const auto sizes = tensor.sizes(), expected = input_.sizes();
  bool same = sizes.size() == expected.size() && tensor.is_cpu() && dtype_of(tensor) == dtype_of(input_);
  for (size_t dim = 0; same && dim < sizes.size(); ++dim) same = sizes[dim] == expected[dim];
  STD_TORCH_CHECK(same, "batchnorm: ", name, " should have the input's shape, dtype and device.");
  holder = tensor;
  if (!fits(tensor)) {
    holder = fresh();
    copy_into(holder, tensor);
  }
  return holder.data_ptr();
}

Tensor Walk::fresh() const {
  Tensor tensor = empty_strided_like(walked_);
  ask_for_huge_pages(tensor.data_ptr(), layout_.values() * size_of(element_));
  return tensor;
}

Tensor Walk::finished(Tensor written) const {
  if (as_given_) return written;
  Tensor output = torch::stable::empty_like(input_);
  copy_into(output, written);
  return output;
}

}  // namespace batchnorm
