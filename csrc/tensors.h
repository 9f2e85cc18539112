// The door: what the loops read and write of torch's tensors. A tensor is asked itself for its address, dtype, device,
// strides and sizes where the memory is about to be used, whatever made it. A wrong one is a ValueError (no tensor at
// all: a TypeError) that names it.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace grokfast {

namespace py = pybind11;

constexpr int64_t any = -1;  // a size that is read, not expected
constexpr int MOST_AXES = 3;

template <typename T>
struct View {
  T* data = nullptr;              // null for None
  int64_t sizes[MOST_AXES] = {};  // of its axes
  int64_t stride = 0;             // elements from one of the first axis to the next
  int64_t operator[](int axis) const { return sizes[axis]; }
};

// torch's objects and the names of its attributes, found once.
struct Torch {
  PyObject *tensor, *parameter, *float32, *int64;
  PyObject *dtype, *is_cpu, *is_neg, *is_contiguous, *shape, *stride, *data_ptr;

  Torch() {
    const py::module_ torch = py::module_::import("torch");
    tensor = py::object(torch.attr("Tensor")).release().ptr();
    parameter = py::object(torch.attr("nn").attr("Parameter")).release().ptr();
    float32 = py::object(torch.attr("float32")).release().ptr();
    int64 = py::object(torch.attr("int64")).release().ptr();
    PyObject** names[] = {&dtype, &is_cpu, &is_neg, &is_contiguous, &shape, &stride, &data_ptr};
    const char* words[] = {"dtype", "is_cpu", "is_neg", "is_contiguous", "shape", "stride", "data_ptr"};
    for (int i = 0; i < 7; ++i) *names[i] = PyUnicode_InternFromString(words[i]);
  }
};

inline const Torch& torch() {  // first called while the module is made, then without a lock
  static const Torch* found = new Torch();
  return *found;
}

inline py::object owned(PyObject* object) {
  if (!object) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

inline int64_t item(const py::object& tuple, Py_ssize_t i) { return PyLong_AsLongLong(PyTuple_GET_ITEM(tuple.ptr(), i)); }

[[noreturn]] inline void refuse(const char* name, py::handle tensor, const char* dtype, std::initializer_list<int64_t> shape) {
  std::string sizes;
  for (const int64_t size : shape) sizes += (sizes.empty() ? "" : ", ") + (size == any ? "any" : std::to_string(size));
  const py::str got = py::str("{} {} on {}, strides {}")
                          .format(tensor.attr("dtype"), py::tuple(tensor.attr("shape")), tensor.attr("device"),
                                  tensor.attr("stride")());
  throw py::value_error(std::string(name) + " must be dense " + dtype + " [" + sizes + "] on the CPU, got " +
                        std::string(got));
}

// A tensor's memory and sizes, which are `shape`'s. With `rows_apart` only what one of the first axis holds is adjacent.
template <typename T>
View<T> view(const char* name, py::handle tensor, std::initializer_list<int64_t> shape, bool rows_apart = false) {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, int64_t>);
  constexpr bool is_float = std::is_same_v<T, float>;
  const char* dtype = is_float ? "torch.float32" : "torch.int64";
  const Torch& t = torch();
  PyObject* const self = tensor.ptr();
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(self));
  if (type != t.tensor && type != t.parameter)
    throw py::type_error(std::string(name) + " must be a torch.Tensor, got " + Py_TYPE(self)->tp_name);
  const auto get = [self](PyObject* what) { return owned(PyObject_GetAttr(self, what)); };
  const auto call = [self](PyObject* what) { return owned(PyObject_CallMethodNoArgs(self, what)); };
  if (get(t.dtype).ptr() != (is_float ? t.float32 : t.int64) || get(t.is_cpu).ptr() != Py_True ||
      call(t.is_neg).ptr() == Py_True)
    refuse(name, tensor, dtype, shape);
  const py::object sizes = get(t.shape);
  View<T> found;
  int64_t n = 1;
  bool fits = PyTuple_GET_SIZE(sizes.ptr()) == Py_ssize_t(shape.size());
  if (!fits) refuse(name, tensor, dtype, shape);
  int axis = 0;
  for (const int64_t expected : shape) {
    const int64_t size = found.sizes[axis] = item(sizes, axis);
    fits &= expected == any || expected == size;
    n *= size;
    ++axis;
  }
  if (rows_apart) {
    const py::object strides = call(t.stride);
    found.stride = item(strides, 0);
    int64_t adjacent = 1;
    for (int i = axis - 1; i > 0; adjacent *= found.sizes[i--])
      fits &= found.sizes[i] == 1 || n == 0 || item(strides, i) == adjacent;
  } else {
    fits &= call(t.is_contiguous).ptr() == Py_True;
    found.stride = found.sizes[0] ? n / found.sizes[0] : 0;
  }
  if (!fits) refuse(name, tensor, dtype, shape);
  found.data = static_cast<T*>(PyLong_AsVoidPtr(call(t.data_ptr).ptr()));
  if (n > 0 && !found.data) throw py::value_error(std::string(name) + " has no memory: its storage was resized");
  return found;
}

// As `view`; of None null, with the sizes it would have.
template <typename T>
View<T> view_or_null(const char* name, py::handle tensor, std::initializer_list<int64_t> shape, bool rows_apart = false) {
  if (!tensor.is_none()) return view<T>(name, tensor, shape, rows_apart);
  View<T> none;
  std::copy(shape.begin(), shape.end(), none.sizes);
  return none;
}

// An integer in [low, high].
inline int64_t within(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high)
    throw py::value_error(std::string(name) + " must be between " + std::to_string(low) + " and " +
                          std::to_string(high) + ", got " + std::to_string(value));
  return value;
}

}  // namespace grokfast
