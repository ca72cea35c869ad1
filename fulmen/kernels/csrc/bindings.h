// What the binding files share.
#pragma once

#include <nanobind/nanobind.h>

#include <stdint.h>

#include "kernels.h"
#include "pool.h"

namespace fulmen {

using Address = uint64_t;  // Tensor.data_ptr()

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}
template <class T>
const T* in(Address address) {
  return reinterpret_cast<const T*>(address);
}

// Runs a kernel of the table: no interpreter lock, one kernel at a time.
template <class Args>
void run(void (*kernel)(const Args&), const Args& args) {
  nanobind::gil_scoped_release release;
  Turn turn;
  kernel(args);
}

void bind_attention(nanobind::module_& m);
void bind_lightning(nanobind::module_& m);

}  // namespace fulmen
