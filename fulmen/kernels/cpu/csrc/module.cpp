// The Python module: addresses in, kernels run without the interpreter's lock.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <sys/mman.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "bindings.h"
#include "cpu.h"

namespace nb = nanobind;
using namespace fulmen;

Program*& fulmen::recording() {
  static thread_local Program* current = nullptr;
  return current;
}

CallLog*& fulmen::call_log() {
  static thread_local CallLog* current = nullptr;
  return current;
}

namespace {

using StageTimes = std::tuple<double, double, double>;
using CallTimes = std::tuple<std::string, Address, int64_t, std::vector<StageTimes>>;

// Calls of a log that has stopped: kernel, address of its weights, number of matrices, and of each
// stage the seconds in all, those of preparing and those of idle threads.
std::vector<CallTimes> times_of(const CallLog& log) {
  if (log.stopped <= log.started)
    throw std::runtime_error("the log has no end yet, stop it before its times are read");
  const std::chrono::duration<double> elapsed = log.stopped - log.started;
  const double each = elapsed.count() / double(log.stop_ticks - log.start_ticks);
  std::vector<CallTimes> found;
  for (const CallLog::Entry& entry : log.entries) {
    std::vector<StageTimes> stages;
    for (int i = 0; i <= entry.meter.stage; ++i) {
      const Meter::Stage& stage = entry.meter.stages[i];
      stages.emplace_back(stage.ticks * each, stage.preparing * each, stage.idle * each);
    }
    found.emplace_back(entry.kernel, reinterpret_cast<Address>(entry.weights),
                       entry.meter.num_matrices, std::move(stages));
  }
  return found;
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // models that live until the interpreter ends are no leak
  m.doc() = "Fulmen's kernels for the CPU";
  m.def(
      "isa", [] { return kernels() == nullptr ? std::string() : std::string(kernels()->name); },
      "The instruction set in use; empty where the machine lacks AVX2.");
  m.def(
      "instruction_sets", instruction_sets,
      "The sets that the kernels were compiled for, best first, and whether this machine has it.");
  m.def("num_threads", num_threads);
  m.def("set_num_threads", set_num_threads, nb::arg("count"));

  nb::class_<Program>(m, "Program", "Calls made while it recorded, to be made again.")
      .def(nb::init<>())
      .def(
          "record", [](Program& self) { recording() = &self; },
          "This thread's calls are kept from now on.")
      .def("stop", [](Program&) { recording() = nullptr; })
      .def("__len__", [](const Program& self) { return self.calls.size(); })
      .def("replay", [](const Program& self) {
        nb::gil_scoped_release release;
        Turn turn;
        for (const Call& call : self.calls) execute(call.kernel, call.weights, call.work);
      });

  nb::class_<CallLog>(m, "CallLog", "Calls of a thread, timed one by one.")
      .def(nb::init<>())
      .def(
          "start",
          [](CallLog& self) {
            self.entries.clear();
            self.started = std::chrono::steady_clock::now();
            self.start_ticks = ticks();
            call_log() = &self;
          },
          "This thread's calls are timed from now on, replayed ones too.")
      .def("stop",
           [](CallLog& self) {
             call_log() = nullptr;
             self.stop_ticks = ticks();
             self.stopped = std::chrono::steady_clock::now();
           })
      .def("__len__", [](const CallLog& self) { return self.entries.size(); })
      .def("times", times_of);

  m.def(
      "populate",
      [](Address data, uint64_t bytes) {
        nb::gil_scoped_release release;
        const uint64_t page = 4096, from = data / page * page;
        madvise(at<void>(from), data + bytes - from, 22 /* MADV_POPULATE_READ, of Linux 5.14 */);
      },
      "Maps the pages of a file that will be read anyway; where the system cannot, nothing "
      "happens.");
  m.def("probe_read", [](Address data, int64_t bytes) {
    ProbeArgs args{at<const uint8_t>(data), bytes, 0, false, 0};
    run("probe", kernels()->probe, args);
  });
  m.def("probe_products", [](int64_t iterations, bool integer) {
    ProbeArgs args{nullptr, 0, iterations, integer, 0};
    nb::gil_scoped_release release;  // not through run(), which keeps a copy of args
    Turn turn;
    kernels()->probe(args);
    return args.operations;
  });

  bind_products(m);
  bind_rows(m);
  bind_attention(m);
  bind_lightning(m);
}
