// A call through torch's dispatcher costs 5 µs, most of it for turning arguments into torch's own kind and back; a call
// from here 2. On a small input that decides whether a layer is faster than torch's.
//
// A tensor's address comes from its attribute `_cdata`: it is that of the object which an at::Tensor points to, and
// LibTorch's C functions take the address of an at::Tensor. Both have been so since torch 1.0, but only the functions
// are promised, so kernels.py uses this door for the versions of torch that the tests have seen, and operators else.
//
// Each function returns whether it did the work. Where it did not, nothing was written, and the operator is to be
// called: for tensors of other classes, and those that are not walked as they lie.

#include "direct.h"

#include "arguments.h"

namespace batchnorm {

PyTypeObject* tensor_type = nullptr;
PyTypeObject* parameter_type = nullptr;
PyObject* address_name = nullptr;
PyObject* negative_name = nullptr;

PyObject* direct_prepare(PyObject*, PyObject* types) {
  PyObject* tensor = PyTuple_GetItem(types, 0);
  PyObject* parameter = tensor == nullptr ? nullptr : PyTuple_GetItem(types, 1);
  if (parameter == nullptr) return nullptr;
  address_name = PyUnicode_InternFromString("_cdata");
  negative_name = PyUnicode_InternFromString("is_neg");
  if (address_name == nullptr || negative_name == nullptr) return nullptr;
  // Classes of torch live as long as the process.
  Py_INCREF(types);
  tensor_type = reinterpret_cast<PyTypeObject*>(tensor);
  parameter_type = reinterpret_cast<PyTypeObject*>(parameter);
  Py_RETURN_NONE;
}

PyObject* direct_train(PyObject*, PyObject* const* values, Py_ssize_t count) {
  return guarded(count, 16, [&]() -> PyObject* {
    Arguments arguments(values);
    const View input = arguments.tensor(0), output = arguments.output(1), mean_out = arguments.output(2),
               var_out = arguments.output(3), bits = arguments.output(4);
    Parameters parameters{arguments.tensor(5), arguments.tensor(6), arguments.tensor(7), arguments.number(13), {}};
    const View running_mean = arguments.tensor(8), running_var = arguments.tensor(9), batches = arguments.tensor(10);
    const std::optional<double> momentum = arguments.number_or_none(11);
    const bool skip_nonfinite = arguments.truth(12);
    parameters.activation = arguments.activation(14, 15);
    if (arguments.failed()) return nullptr;
    if (arguments.foreign() || !input) Py_RETURN_FALSE;
    const Walk walk(input, {});
    if (!walk.as_given() || !is_writable(walk, output)) Py_RETURN_FALSE;
    if (walk.layout().samples * walk.layout().spatial == 1) Py_RETURN_FALSE;
    Buffers buffers(running_mean, running_var, batches, walk.channels());
    ForwardLayer layer(walk, parameters);
    uint8_t* bits_data = bits ? static_cast<uint8_t*>(bits.data()) : nullptr;
    std::vector<double> mean, var;
    {
      const Released released(walk);
      layer.train(output.data(), bits_data, mean, var);
    }
    write_statistics(mean_out, mean, walk.element());
    write_statistics(var_out, var, walk.element());
    // Last: what throws before this is done again by the operator.
    buffers.update(walk, mean, var, momentum, skip_nonfinite);
    Py_RETURN_TRUE;
  });
}

PyObject* direct_normalize(PyObject*, PyObject* const* values, Py_ssize_t count) {
  return guarded(count, 10, [&]() -> PyObject* {
    Arguments arguments(values);
    const View input = arguments.tensor(0), output = arguments.output(1), mean = arguments.tensor(2),
               var = arguments.tensor(3);
    Parameters parameters{arguments.tensor(4), arguments.tensor(5), arguments.tensor(6), arguments.number(7), {}};
    parameters.activation = arguments.activation(8, 9);
    if (arguments.failed()) return nullptr;
    if (arguments.foreign() || !input) Py_RETURN_FALSE;
    const Walk walk(input, {});
    if (!walk.as_given() || !is_writable(walk, output)) Py_RETURN_FALSE;
    ForwardLayer layer(walk, parameters);
    {
      const Released released(walk);
      layer.normalize(output.data(), mean, var);
    }
    Py_RETURN_TRUE;
  });
}

PyObject* direct_backward(PyObject*, PyObject* const* values, Py_ssize_t count) {
  return guarded(count, 16, [&]() -> PyObject* {
    Arguments arguments(values);
    const View grad_output = arguments.tensor(0), input = arguments.tensor(1), mean = arguments.tensor(2),
               var = arguments.tensor(3);
    Parameters parameters{arguments.tensor(4), arguments.tensor(5), arguments.tensor(6), arguments.number(13), {}};
    const View bits = arguments.tensor(7);
    const bool training = arguments.truth(8);
    const View dx = arguments.output(9), dweight = arguments.output(10), dbias = arguments.output(11),
               dresidual = arguments.output(12);
    parameters.activation = arguments.activation(14, 15);
    if (arguments.failed()) return nullptr;
    if (arguments.foreign() || !input || !grad_output) Py_RETURN_FALSE;
    const Walk walk(input, {});
    if (!walk.as_given() || !is_writable(walk, dx) || !is_writable(walk, dresidual)) Py_RETURN_FALSE;
    BackwardLayer layer(walk, parameters, grad_output, mean, var, bits);
    {
      const Released released(walk);
      layer.run(training, dx ? dx.data() : nullptr, dresidual ? dresidual.data() : nullptr, dweight || dbias);
    }
    if (dweight) write_statistics(dweight, layer.sum_dz_standardized, walk.element());
    if (dbias) write_statistics(dbias, layer.sum_dz, walk.element());
    Py_RETURN_TRUE;
  });
}

}  // namespace batchnorm
