#include "tensors.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace batchnorm {

namespace {

// Whether memory is filled without gaps in this order of dimensions, the last one fastest; a dimension of size 1 may
// have any stride.
template <class Order>
bool is_dense(const View& tensor, Order order) {
  const int64_t* sizes = tensor.sizes();
  const int64_t* strides = tensor.strides();
  int64_t expected = 1;
  for (int64_t place = tensor.dim() - 1; place >= 0; --place) {
    const int64_t dim = order(place);
    if (sizes[dim] != 1 && strides[dim] != expected) return false;
    expected *= sizes[dim];
  }
  return true;
}

bool is_contiguous(const View& tensor) {
  return is_dense(tensor, [](int64_t place) { return place; });
}

bool is_channels_last(const View& tensor) {
  const int64_t last = tensor.dim() - 1;
  return is_dense(tensor, [last](int64_t place) { return place == 0 ? 0 : place == last ? 1 : place + 1; });
}

Tensor empty_strided(int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dims, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

}  // namespace

int64_t View::dim() const {
  int64_t dims;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle_, &dims));
  return dims;
}

int64_t View::numel() const {
  int64_t count;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(handle_, &count));
  return count;
}

int32_t View::dtype() const {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle_, &dtype));
  return dtype;
}

bool View::is_cpu() const {
  int32_t device;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(handle_, &device));
  return device == aoti_torch_device_type_cpu();
}

const int64_t* View::sizes() const {
  int64_t* sizes;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle_, &sizes));
  return sizes;
}

const int64_t* View::strides() const {
  int64_t* strides;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle_, &strides));
  return strides;
}

void* View::data() const {
  int32_t layout;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(handle_, &layout));
  STD_TORCH_CHECK(layout == aoti_torch_layout_strided(), "batchnorm: a tensor is not laid out by strides.");
  void* data;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle_, &data));
  STD_TORCH_CHECK(data != nullptr || numel() == 0, "batchnorm: a tensor has no memory.");
  return data;
}

Element View::element() const {
  const int32_t type = dtype();
  if (type == aoti_torch_dtype_float32()) return Element::Float32;
  if (type == aoti_torch_dtype_float64()) return Element::Float64;
  if (type == aoti_torch_dtype_bfloat16()) return Element::BFloat16;
  STD_TORCH_CHECK(type == aoti_torch_dtype_float16(),
                  "batchnorm: the dtype is none of float32, float64, bfloat16 and float16.");
  return Element::Float16;
}

Tensor View::keep() const {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handle_, &handle));
  return Tensor(handle);
}

Tensor empty(const std::vector<int64_t>& sizes, int32_t dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t dim = sizes.size(); dim-- > 1;) strides[dim - 1] = strides[dim] * sizes[dim];
  return empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype);
}

Tensor empty_strided_like(const View& tensor) {
  return empty_strided(tensor.dim(), tensor.sizes(), tensor.strides(), tensor.dtype());
}

std::vector<double> read_vector(const char* name, const View& tensor, int64_t channels) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.sizes()[0] == channels && tensor.is_cpu(), "batchnorm: ", name,
                  " should be a vector of ", channels, " entries on the CPU.");
  const Element element = tensor.element();
  const int64_t stride = tensor.strides()[0];
  const void* data = tensor.data();
  std::vector<double> values(channels);
  for (int64_t channel = 0; channel < channels; ++channel) values[channel] = read(data, channel * stride, element);
  return values;
}

// Fresh memory costs a page fault every 4 KB, three times the price of the kernel that fills it (100 MB: 37 ms by small
// pages, 12 ms by huge ones). Where the system knows no huge pages, or gives them anyway, this does nothing.
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

Walk::Walk(const View& input, const View& mask) : input_(input), element_(input.element()) {
  STD_TORCH_CHECK(input.is_cpu(), "batchnorm: the input is not on the CPU.");
  const int64_t dims = input.dim();
  STD_TORCH_CHECK(dims >= 2, "batchnorm: the input should be (N, C, *spatial).");
  const int64_t* sizes = input.sizes();
  int64_t spatial = 1;
  for (int64_t dim = 2; dim < dims; ++dim) spatial *= sizes[dim];
  const int64_t samples = sizes[0], channels = sizes[1];

  std::optional<Tensor> mask_holder;
  const bool* valid = nullptr;
  if (mask) {
    STD_TORCH_CHECK(mask.dtype() == aoti_torch_dtype_bool() && mask.is_cpu() && mask.numel() == samples * spatial &&
                        mask.dim() > 0 && mask.sizes()[0] == samples,
                    "batchnorm: the mask should be bool, (N, *spatial), on the CPU.");
    mask_holder = torch::stable::contiguous(mask.keep());
    valid = static_cast<const bool*>(View(*mask_holder).data());
  }
  if (!is_contiguous(input)) {
    channels_last_ = is_channels_last(input) && walks_channels_last(channels, static_cast<bool>(mask));
    if (!channels_last_) copy_ = torch::stable::contiguous(input.keep());
  }
  layout_ = make_layout(samples, channels, spatial, channels_last_, valid);
}

bool Walk::fits(const View& tensor) const {
  return channels_last_ ? is_channels_last(tensor) : is_contiguous(tensor);
}

void Walk::check_alike(const char* name, const View& tensor) const {
  const int64_t dims = tensor.dim();
  bool same = dims == input_.dim() && tensor.is_cpu() && tensor.dtype() == input_.dtype();
  for (int64_t dim = 0; same && dim < dims; ++dim) same = tensor.sizes()[dim] == input_.sizes()[dim];
  STD_TORCH_CHECK(same, "batchnorm: ", name, " should have the input's shape, dtype and device.");
}

const void* Walk::data(const char* name, const View& tensor, std::optional<Tensor>& holder) const {
  check_alike(name, tensor);
  if (fits(tensor)) return tensor.data();
  holder = fresh();
  torch::stable::copy_(*holder, tensor.keep());
  return View(*holder).data();
}

Tensor Walk::finished(Tensor written) const {
  if (as_given()) return written;
  Tensor output = torch::stable::empty_like(input_.keep());
  torch::stable::copy_(output, written);
  return output;
}

}  // namespace batchnorm
