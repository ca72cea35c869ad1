// Shared by the binding files: reading arguments, running and recording kernels.
#pragma once

#include <nanobind/nanobind.h>

#include <chrono>
#include <functional>
#include <vector>

#include "arguments.h"
#include "kernels.h"
#include "pool.h"

namespace fulmen {

// Recorded calls, to be replayed: same kernels, same addresses, other values.
struct Call {
  const char* kernel;
  const void* weights;  // address of the first weight; null where a kernel has none
  std::function<void()> work;
};
struct Program {
  std::vector<Call> calls;
};

// The program that this thread records into, or null.
Program*& recording();

// Calls that were timed one by one.
struct CallLog {
  struct Entry {
    const char* kernel;
    const void* weights;
    Meter meter;
  };
  std::vector<Entry> entries;
  std::chrono::steady_clock::time_point started, stopped;
  int64_t start_ticks = 0, stop_ticks = 0;
};

// The log of this thread's calls, or null: they are not timed.
CallLog*& call_log();

// Does some work, one kernel at a time, timed where calls are logged; the caller holds the turn.
template <class Work>
void execute(const char* kernel, const void* weights, const Work& work) {
  CallLog* log = call_log();
  if (log == nullptr) return work();
  struct Metering {
    Meter own;
    Metering() { meter = &own, own.since = ticks(); }
    ~Metering() { meter = nullptr; }  // also where the work throws
  } metering;
  work();
  Meter& own = metering.own;
  own.stages[own.stage].ticks = ticks() - own.since;
  log->entries.push_back({kernel, weights, own});
}

// Does some work without the interpreter's lock, and keeps it if recording.
template <class Work>
void submit(const char* kernel, const void* weights, const Work& work) {
  if (recording() != nullptr) recording()->calls.push_back({kernel, weights, work});
  nanobind::gil_scoped_release release;
  Turn turn;
  execute(kernel, weights, work);
}

// The first weight that a kernel reads, which tells its calls apart.
inline const void* weights_of(const LinearArgs& args) { return args.w.data; }
inline const void* weights_of(const NormArgs& args) { return args.weight; }
template <class Args>
const void* weights_of(const Args&) {
  return nullptr;
}

// Runs a kernel on its arguments.
template <class Args>
void run(const char* name, void (*kernel)(const Args&), const Args& args) {
  submit(name, weights_of(args), [kernel, args] { kernel(args); });
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
  m.def(name, [name, kernel](nanobind::kwargs given) {
    run(name, kernels()->*kernel, arguments_of<Args>(given));
  });
}

// Throws std::invalid_argument unless ids are 0 to known - 1; kind names them.
void check_ids(const int64_t* ids, int64_t count, int64_t known, const char* kind);

void bind_attention(nanobind::module_& m);
void bind_lightning(nanobind::module_& m);
void bind_products(nanobind::module_& m);
void bind_rows(nanobind::module_& m);

}  // namespace fulmen
