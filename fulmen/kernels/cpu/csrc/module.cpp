// The Python module: addresses in, kernels run without the interpreter's lock.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <sys/mman.h>

#include <string>

#include "bindings.h"
#include "cpu.h"

namespace nb = nanobind;
using namespace fulmen;

Program*& fulmen::recording() {
  static thread_local Program* current = nullptr;
  return current;
}

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
        for (const auto& call : self.calls) call();
      });

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
    run(kernels()->probe, args);
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
