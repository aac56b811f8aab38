// The three calls of eager mode as plain Python functions, past torch's dispatcher.
#pragma once

#include <Python.h>

namespace batchnorm {

PyObject* direct_prepare(PyObject*, PyObject* types);
PyObject* direct_train(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* direct_normalize(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* direct_backward(PyObject*, PyObject* const* arguments, Py_ssize_t count);

// Training on a batch in parts (ghost batch normalization): vectors of statistics are of (parts · channels) entries.
PyObject* direct_train_parts(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* direct_backward_parts(PyObject*, PyObject* const* arguments, Py_ssize_t count);

}  // namespace batchnorm
