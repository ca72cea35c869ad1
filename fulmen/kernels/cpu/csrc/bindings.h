// What the binding files share.
#pragma once

#include <nanobind/nanobind.h>

#include <stdint.h>

#include <functional>
#include <vector>

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

// Calls kept to be made again: the same kernels on the same addresses, whatever lies there then.
struct Program {
  std::vector<std::function<void()>> calls;
};

// What this thread records into; null while it does not.
Program*& recording();

// Does some work without the interpreter's lock, one kernel at a time, and keeps it if recording.
template <class Work>
void submit(const Work& work) {
  if (recording() != nullptr) recording()->calls.push_back(work);
  nanobind::gil_scoped_release release;
  Turn turn;
  work();
}

// Runs a kernel of the table.
template <class Args>
void run(void (*kernel)(const Args&), const Args& args) {
  submit([kernel, args] { kernel(args); });
}

void bind_attention(nanobind::module_& m);
void bind_lightning(nanobind::module_& m);

}  // namespace fulmen
