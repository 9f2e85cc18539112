// How tensors lie in memory, from Python objects, by DLPack's exchange table (dlpack.h 1.2 and later): a few nanoseconds a
// tensor, where every attribute read from Python takes fifty. No framework is linked; the table comes from the tensors' type.
#pragma once

#include <Python.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace grokfast {

// dlpack.h's DLTensor and DLPackExchangeAPI, of major version 1.
struct Lying {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct ExchangeTable {
  uint32_t major, minor;
  void* older;
  void *allocate, *from_py_object, *to_py_object;
  int (*look)(void* py_object, Lying* out);  // no new reference; -1 with a Python error set
  void* current_stream;
};

// The table in a capsule; throws where it is of another version.
inline const ExchangeTable* exchange_table(PyObject* capsule) {
  const void* found = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
  if (!found) throw std::invalid_argument("exchange must be a type's __dlpack_c_exchange_api__");
  const auto* table = static_cast<const ExchangeTable*>(found);
  if (table->major != 1 || !table->look) throw std::invalid_argument("DLPack's exchange table is of another version");
  return table;
}

// Appends what tells one place and form of memory from another: address (or none), device, dtype, shape and strides.
// Returns false, with a Python error set, for what has no such form.
inline bool append_look(const ExchangeTable* table, PyObject* tensor, bool with_address, std::vector<int64_t>& look) {
  Lying t;
  if (table->look(tensor, &t)) return false;
  if (with_address) look.push_back(int64_t(reinterpret_cast<uintptr_t>(t.data)) + int64_t(t.byte_offset));
  look.push_back(int64_t(t.device_type) << 32 | uint32_t(t.device_id));
  look.push_back(int64_t(t.ndim) << 32 | t.code << 24 | t.bits << 16 | t.lanes);
  int64_t size = 1;
  for (int i = 0; i < t.ndim; ++i) size *= t.shape[i];
  for (int i = 0; i < t.ndim; ++i) {
    look.push_back(t.shape[i]);
    look.push_back(size && t.shape[i] != 1 && t.strides ? t.strides[i] : 0);  // of one element a stride says nothing
  }
  return true;
}

}  // namespace grokfast
