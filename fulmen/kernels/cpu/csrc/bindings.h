// Shared by the binding files: reading arguments, running and recording kernels.
#pragma once

#include <nanobind/nanobind.h>

#include <functional>
#include <vector>

#include "arguments.h"
#include "kernels.h"
#include "pool.h"

namespace fulmen {

// Recorded calls, to be replayed: same kernels, same addresses, other values.
struct Program {
  std::vector<std::function<void()>> calls;
};

// The program that this thread records into, or null.
Program*& recording();

// Does some work without the interpreter's lock, one kernel at a time, and keeps it if recording.
template <class Work>
void submit(const Work& work) {
  if (recording() != nullptr) recording()->calls.push_back(work);
  nanobind::gil_scoped_release release;
  Turn turn;
  work();
}

// Runs a kernel on its arguments.
template <class Args>
void run(void (*kernel)(const Args&), const Args& args) {
  submit([kernel, args] { kernel(args); });
}

// Reads the struct of a kernel by its own read_fields(Arguments&, Args&).
template <class Args>
Args arguments_of(const nanobind::kwargs& given) {
  Args args{};
  Arguments read(given);
  read_fields(read, args);
  read.finish();
  return args;
}

// Binds a kernel of the table; its arguments are the fields of its struct.
template <class Args>
void bind(nanobind::module_& m, const char* name, void (*Kernels::*kernel)(const Args&)) {
  m.def(name,
        [kernel](nanobind::kwargs given) { run(kernels()->*kernel, arguments_of<Args>(given)); });
}

// Throws std::invalid_argument unless ids are 0 to known - 1; kind names them.
void check_ids(const int64_t* ids, int64_t count, int64_t known, const char* kind);

void bind_attention(nanobind::module_& m);
void bind_lightning(nanobind::module_& m);
void bind_products(nanobind::module_& m);
void bind_rows(nanobind::module_& m);

}  // namespace fulmen
