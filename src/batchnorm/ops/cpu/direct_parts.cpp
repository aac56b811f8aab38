// direct.cpp's calls for a batch in parts.

#include "arguments.h"
#include "direct.h"

namespace batchnorm {

namespace {

// How many parts vectors of statistics (parts · channels) are for.
int64_t parts_of(const View& statistics, const Walk& walk) {
  return walk.channels() ? statistics.numel() / walk.channels() : 0;
}

}  // namespace

PyObject* direct_train_parts(PyObject*, PyObject* const* values, Py_ssize_t count) {
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
    const Parts parts(walk, parts_of(mean_out, walk));
    Buffers buffers(running_mean, running_var, batches, walk.channels());
    ForwardLayer layer(walk, parameters);
    uint8_t* bits_data = bits ? static_cast<uint8_t*>(bits.data()) : nullptr;
    std::vector<double> mean, var;
    {
      const Released released(walk);
      layer.train(parts, output.data(), bits_data, mean, var);
    }
    write_statistics(mean_out, mean, walk.element());
    write_statistics(var_out, var, walk.element());
    // Last: what throws before this is done again by the operator.
    buffers.update(walk, parts, mean, var, momentum, skip_nonfinite);
    Py_RETURN_TRUE;
  });
}

PyObject* direct_backward_parts(PyObject*, PyObject* const* values, Py_ssize_t count) {
  return guarded(count, 15, [&]() -> PyObject* {
    Arguments arguments(values);
    const View grad_output = arguments.tensor(0), input = arguments.tensor(1), mean = arguments.tensor(2),
               var = arguments.tensor(3);
    Parameters parameters{arguments.tensor(4), arguments.tensor(5), arguments.tensor(6), arguments.number(12), {}};
    const View bits = arguments.tensor(7);
    const View dx = arguments.output(8), dweight = arguments.output(9), dbias = arguments.output(10),
               dresidual = arguments.output(11);
    parameters.activation = arguments.activation(13, 14);
    if (arguments.failed()) return nullptr;
    if (arguments.foreign() || !input || !grad_output) Py_RETURN_FALSE;
    const Walk walk(input, {});
    if (!walk.as_given() || !is_writable(walk, dx) || !is_writable(walk, dresidual)) Py_RETURN_FALSE;
    const Parts parts(walk, parts_of(mean, walk));
    BackwardLayer layer(walk, parameters, grad_output, mean, var, bits, &parts);
    {
      const Released released(walk);
      layer.run(parts, dx ? dx.data() : nullptr, dresidual ? dresidual.data() : nullptr, dweight || dbias);
    }
    if (dweight) write_statistics(dweight, layer.sum_dz_standardized, walk.element());
    if (dbias) write_statistics(dbias, layer.sum_dz, walk.element());
    Py_RETURN_TRUE;
  });
}

}  // namespace batchnorm
