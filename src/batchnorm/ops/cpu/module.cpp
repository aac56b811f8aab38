// The Python module `batchnorm.ops.cpu._kernels`: which instruction set computes, and the direct calls of direct.cpp.
// The operators are reached through torch, which they register with when this binary is loaded.
//
// CPython's limited API of 3.10 and nothing beyond it, so that one binary serves every later CPython.
#include <Python.h>

#include <cstring>

#include "direct.h"
#include "dispatch.h"

namespace {

PyObject* instruction_sets(PyObject*, PyObject*) {
  const int count = batchnorm::instruction_set_count();
  Py_ssize_t running = 0;
  for (int index = 0; index < count; ++index) running += batchnorm::instruction_set_runs(index);
  PyObject* names = PyTuple_New(running);
  if (names == nullptr) return nullptr;
  Py_ssize_t position = 0;
  for (int index = 0; index < count; ++index) {
    if (!batchnorm::instruction_set_runs(index)) continue;
    PyObject* name = PyUnicode_FromString(batchnorm::instruction_set_name(index));
    // PyTuple_SetItem takes the reference over, also where it fails.
    if (name == nullptr || PyTuple_SetItem(names, position++, name) != 0) {
      Py_DECREF(names);
      return nullptr;
    }
  }
  return names;
}

PyObject* instruction_set(PyObject*, PyObject*) {
  const int chosen = batchnorm::chosen_instruction_set();
  if (chosen < 0) {
    PyErr_SetString(PyExc_RuntimeError, "this processor runs none of the instruction sets that were built");
    return nullptr;
  }
  return PyUnicode_FromString(batchnorm::instruction_set_name(chosen));
}

PyObject* use(PyObject*, PyObject* argument) {
  const char* name = PyUnicode_AsUTF8AndSize(argument, nullptr);
  if (name == nullptr) return nullptr;
  for (int index = 0; index < batchnorm::instruction_set_count(); ++index) {
    if (std::strcmp(batchnorm::instruction_set_name(index), name) != 0) continue;
    if (!batchnorm::instruction_set_runs(index)) {
      return PyErr_Format(PyExc_ValueError, "this processor does not run %s instructions", name);
    }
    batchnorm::choose_instruction_set(index);
    Py_RETURN_NONE;
  }
  return PyErr_Format(PyExc_ValueError, "this build knows no instruction set %R", argument);
}

PyMethodDef methods[] = {
  {"instruction_sets", instruction_sets, METH_NOARGS,
   "instruction_sets() -> tuple[str, ...]\n\nWhat this binary holds and this processor runs, best first."},
  {"instruction_set", instruction_set, METH_NOARGS, "instruction_set() -> str\n\nThe one that computes.\n\n"
   "Raises:\n    RuntimeError: The processor runs none of them."},
  {"use", use, METH_O,
   "use(name: str) -> None\n\nLet another one compute from here on, in every thread.\n\n"
   "Raises:\n    ValueError: The binary does not hold it, or the processor does not run it."},
  {"prepare", batchnorm::direct_prepare, METH_VARARGS,
   "prepare(tensor: type, parameter: type) -> None\n\nTorch's two classes, whose tensors the functions below take."},
  {"train", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(batchnorm::direct_train)), METH_FASTCALL,
   "train(input, output, mean, var, bits, weight, bias, residual, running_mean, running_var, num_batches_tracked,"
   " momentum, skip_nonfinite, eps, activation, parameters) -> bool"},
  {"normalize", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(batchnorm::direct_normalize)),
   METH_FASTCALL,
   "normalize(input, output, mean, var, weight, bias, residual, eps, activation, parameters) -> bool"},
  {"backward", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(batchnorm::direct_backward)),
   METH_FASTCALL,
   "backward(grad_output, input, mean, var, weight, bias, residual, bits, training, grad_input, grad_weight,"
   " grad_bias, grad_residual, eps, activation, parameters) -> bool"},
  {"train_parts", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(batchnorm::direct_train_parts)),
   METH_FASTCALL,
   "train_parts(input, output, mean, var, bits, weight, bias, residual, running_mean, running_var,"
   " num_batches_tracked, momentum, skip_nonfinite, eps, activation, parameters) -> bool"},
  {"backward_parts", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(batchnorm::direct_backward_parts)),
   METH_FASTCALL,
   "backward_parts(grad_output, input, mean, var, weight, bias, residual, bits, grad_input, grad_weight,"
   " grad_bias, grad_residual, eps, activation, parameters) -> bool"},
  {nullptr, nullptr, 0, nullptr},
};

PyModuleDef_Slot slots[] = {{0, nullptr}};

PyModuleDef definition = {
  PyModuleDef_HEAD_INIT,
  "_kernels",
  "The compiled CPU kernels: which instruction set computes.",
  0,
  methods,
  slots,
  nullptr,
  nullptr,
  nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__kernels() { return PyModuleDef_Init(&definition); }
