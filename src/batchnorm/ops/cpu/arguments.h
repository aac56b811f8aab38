// What the functions for Python share: their arguments, which are checked to be what the kernels may take.
#pragma once

#include <Python.h>

#include "layer.h"

namespace batchnorm {

// Set by prepare(): torch's two classes, and names of attributes.
extern PyTypeObject* tensor_type;
extern PyTypeObject* parameter_type;
extern PyObject* address_name;
extern PyObject* negative_name;

// What a Python argument is, kept until the call is over. A call that failed has set a Python error.
class Arguments {
 public:
  explicit Arguments(PyObject* const* values) : values_(values) {}

  bool failed() const { return failed_; }
  // Whether some argument was of another class than torch's own two.
  bool foreign() const { return foreign_; }

  // A new tensor, to be written to.
  View output(int index) { return view(values_[index]); }

  // A tensor to be read: one whose sign is still to be turned (torch's negative bit) is not what its memory says.
  View tensor(int index) {
    const View found = view(values_[index]);
    if (!found) return found;
    PyObject* negative = PyObject_CallMethodObjArgs(values_[index], negative_name, nullptr);
    if (negative == nullptr) return fail();
    foreign_ = foreign_ || negative == Py_True;
    Py_DECREF(negative);
    return found;
  }

  bool truth(int index) { return values_[index] == Py_True; }

  double number(int index) {
    const double value = PyFloat_AsDouble(values_[index]);
    if (value == -1.0 && PyErr_Occurred()) fail();
    return value;
  }

  std::optional<double> number_or_none(int index) {
    if (values_[index] == Py_None) return {};
    return number(index);
  }

  Activation activation(int name, int parameters) {
    Py_ssize_t length = 0;
    const char* text = PyUnicode_AsUTF8AndSize(values_[name], &length);
    if (text == nullptr) {
      fail();
      return {};
    }
    double numbers[2] = {};
    const Py_ssize_t count = PyTuple_Size(values_[parameters]);
    if (count < 0 || count > 2) {
      fail();
      return {};
    }
    for (Py_ssize_t i = 0; i < count; ++i) numbers[i] = PyFloat_AsDouble(PyTuple_GetItem(values_[parameters], i));
    if (PyErr_Occurred()) fail();
    return activation_of(std::string_view(text, length), numbers, count);
  }

 private:
  View view(PyObject* value) {
    if (value == Py_None) return {};
    if (Py_TYPE(value) != tensor_type && Py_TYPE(value) != parameter_type) {
      foreign_ = true;
      return {};
    }
    PyObject* address = PyObject_GetAttr(value, address_name);
    if (address == nullptr) return fail();
    addresses_[used_] = PyLong_AsVoidPtr(address);
    Py_DECREF(address);
    if (addresses_[used_] == nullptr) return fail();
    return View(reinterpret_cast<AtenTensorHandle>(&addresses_[used_++]));
  }

  View fail() {
    failed_ = true;
    return {};
  }

  PyObject* const* values_;
  void* addresses_[16];
  int used_ = 0;
  bool failed_ = false, foreign_ = false;
};

// Lets other Python threads run while a kernel does, where it takes long enough for them to notice.
class Released {
 public:
  explicit Released(const Walk& walk) : state_(walk.layout().values() < 32768 ? nullptr : PyEval_SaveThread()) {}
  ~Released() {
    if (state_ != nullptr) PyEval_RestoreThread(state_);
  }
  Released(const Released&) = delete;

 private:
  PyThreadState* state_;
};

// Runs work(). What it refuses is for the operator to refuse, or to do by torch's means (a tensor without memory may
// stand for zeros).
template <class Work>
inline PyObject* guarded(Py_ssize_t given, Py_ssize_t expected, Work work) {
  if (given != expected) return PyErr_Format(PyExc_TypeError, "expected %zd arguments, not %zd", expected, given);
  if (tensor_type == nullptr) return PyErr_Format(PyExc_RuntimeError, "prepare() was not called");
  try {
    return work();
  } catch (const std::exception&) {
    Py_RETURN_FALSE;
  }
}

// A new tensor that may be written to as the input is read.
inline bool is_writable(const Walk& walk, const View& output) { return !output || walk.fits(output); }

}  // namespace batchnorm
