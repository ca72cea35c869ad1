// The Python module: addresses in, kernels run without the interpreter's lock.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "pool.h"
#include "bindings.h"

namespace nb = nanobind;
using namespace fulmen;

namespace {

Matrix matrix(Address data, int format, int group, int64_t n, int64_t k) {
  return {reinterpret_cast<const uint8_t*>(data), Format(format), group, n, k};
}

// The matrices of a layer's experts, side by side.
struct Stack {
  std::vector<Matrix> w1, w2, w3;
};

void check_ids(const int64_t* ids, int64_t count, int64_t known, const char* kind) {
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= known)
      throw std::invalid_argument(std::string(kind) + " id " + std::to_string(ids[i]) + " is outside the " + std::to_string(known) +
                                  " ids known");
}

struct EmbedArgs {
  const uint8_t* table;
  const int64_t* ids;
  int64_t num_ids, row_bytes;
  uint8_t* out;
};

constexpr int64_t kEmbedRows = 64;

void embed_task(void* context, int64_t task, int) {
  const EmbedArgs& args = *static_cast<const EmbedArgs*>(context);
  for (int64_t i = task * kEmbedRows; i < std::min(args.num_ids, (task + 1) * kEmbedRows); ++i)
    memcpy(args.out + i * args.row_bytes, args.table + args.ids[i] * args.row_bytes, size_t(args.row_bytes));
}

void embed(const EmbedArgs& args) {
  parallel((args.num_ids + kEmbedRows - 1) / kEmbedRows, embed_task, const_cast<EmbedArgs*>(&args));
}

}  // namespace

Program*& fulmen::recording() {
  static thread_local Program* current = nullptr;
  return current;
}

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // models that live until the interpreter ends are no leak
  m.doc() = "Fulmen's kernels for the CPU";
  m.def("isa", [] { return kernels() == nullptr ? std::string() : std::string(kernels()->name); },
        "The instruction set in use; empty where the machine lacks AVX2.");
  m.def("num_threads", num_threads);
  m.def("set_num_threads", set_num_threads, nb::arg("count"));

  nb::class_<Matrix>(m, "Matrix", "A packed matrix: where it lies and how; the memory is the caller's.")
      .def("__init__", [](Matrix* self, Address data, int format, int group, int64_t n, int64_t k) {
        new (self) Matrix(matrix(data, format, group, n, k));
      });
  m.def("linear", [](Address x, int x_dtype, int64_t rows, int64_t x_stride, const Matrix& w, int input_bits,
                     Address out, int out_dtype, int64_t out_stride, int activation, Address sums) {
    LinearArgs args{in<void>(x), Dtype(x_dtype), rows, x_stride, w, input_bits,
                    at<void>(out), Dtype(out_dtype), out_stride, Activation(activation), at<void>(sums)};
    run(kernels()->linear, args);
  });
  m.def("activation_backward", [](Address dy, int dy_dtype, int64_t rows, int64_t n, Address sums, int activation, int dtype,
                                  Address dz, Address dz_transposed, int64_t stride) {
    ActivationBackwardArgs args{in<void>(dy), Dtype(dy_dtype), rows, n, in<void>(sums), Activation(activation), Dtype(dtype),
                                at<void>(dz), at<void>(dz_transposed), stride};
    run(kernels()->activation_backward, args);
  });
  m.def("pack", [](Address source, int dtype, int64_t row_stride, int64_t column_stride, const Matrix& w, Address out) {
    PackArgs args{in<void>(source), Dtype(dtype), row_stride, column_stride, w, at<uint8_t>(out)};
    run(kernels()->pack, args);
  });
  m.def("head", [](Address x, int x_dtype, int64_t rows, int64_t x_stride, const Matrix& w, int input_bits, Address targets,
                   int top_k, Address logsumexp, Address target_logits, Address top_logits, Address top_ids) {
    HeadArgs args{in<void>(x), Dtype(x_dtype), rows, x_stride, w, input_bits, in<int64_t>(targets), top_k, at<float>(logsumexp),
                  at<float>(target_logits), at<float>(top_logits), at<int64_t>(top_ids)};
    submit([args] {
      check_ids(args.targets, args.targets == nullptr ? 0 : args.rows, args.w.n, "target");
      kernels()->head(args);
    });
  });
  m.def("head_backward", [](Address x, int x_dtype, int64_t rows, int64_t x_stride, const Matrix& w, Address targets,
                            Address logsumexp, Address gradient, int dtype, Address error, Address error_transposed,
                            int64_t stride) {
    HeadBackwardArgs args{in<void>(x), Dtype(x_dtype), rows, x_stride, w, in<int64_t>(targets), in<float>(logsumexp),
                          in<float>(gradient), Dtype(dtype), at<void>(error), at<void>(error_transposed), stride};
    run(kernels()->head_backward, args);
  });
  m.def("norm", [](int dtype, int64_t rows, int64_t width, Address x, int64_t x_stride, Address weight, float eps,
                   Address branch, float alpha, float beta, Address stream, Address gate, int64_t gate_stride, Address out) {
    NormArgs args{Dtype(dtype), rows, width, in<void>(x), x_stride, in<void>(weight), eps, in<void>(branch), alpha, beta,
                  at<void>(stream), in<void>(gate), gate_stride, at<void>(out)};
    run(kernels()->norm, args);
  });
  m.def("norm_backward", [](int dtype, int64_t rows, int64_t width, Address stream, int64_t stream_stride, Address weight, float eps,
                            Address gate, Address dout, Address dstream, float alpha, float beta, Address dx, Address dbranch,
                            Address dgate, Address dweight) {
    NormBackwardArgs args{Dtype(dtype), rows, width, in<void>(stream), stream_stride, in<void>(weight), eps, in<void>(gate),
                          in<void>(dout), in<void>(dstream), alpha, beta, at<void>(dx), at<void>(dbranch), at<void>(dgate),
                          at<float>(dweight)};
    run(kernels()->norm_backward, args);
  });
  m.def("route", [](Address logits, int64_t rows, int num_experts, int top_k, bool is_sigmoid, Address bias,
                    Address weights, Address ids) {
    RouteArgs args{in<float>(logits), rows, num_experts, top_k, is_sigmoid, in<float>(bias), at<float>(weights), at<int64_t>(ids)};
    run(kernels()->route, args);
  });
  m.def("route_backward", [](Address logits, Address ids, Address weights, Address dweights, int64_t rows, int num_experts, int top_k,
                             bool is_sigmoid, Address dlogits) {
    RouteBackwardArgs args{in<float>(logits), in<int64_t>(ids), in<float>(weights), in<float>(dweights), rows, num_experts, top_k,
                           is_sigmoid, at<float>(dlogits)};
    run(kernels()->route_backward, args);
  });
  nb::class_<Stack>(m, "Stack", "The packed matrices of a layer's experts; the memory is the caller's.")
      .def("__init__", [](Stack* self, std::vector<Matrix> w1, std::vector<Matrix> w2, std::vector<Matrix> w3) {
        new (self) Stack{std::move(w1), std::move(w2), std::move(w3)};
      });
  m.def("experts", [](Address x, int dtype, int64_t rows, int64_t x_stride, Address ids, Address weights, int top_k,
                      const Stack& stack, int input_bits, Address out) {
    ExpertsArgs args{in<void>(x), Dtype(dtype), rows, x_stride, in<int64_t>(ids), in<float>(weights), top_k,
                     int(stack.w1.size()), stack.w1.data(), stack.w2.data(), stack.w3.data(), input_bits, at<void>(out)};
    submit([args] {
      check_ids(args.ids, args.rows * args.top_k, args.num_experts, "expert");
      kernels()->experts(args);
    });
  });
  using Addresses = std::vector<Address>;
  m.def("experts_backward", [](int dtype, int64_t rows, int hidden_size, int intermediate_size, int top_k, Address x, Address dout,
                               Address ids, Address weights, const Addresses& w1, const Addresses& w2, const Addresses& w3,
                               Address dx, Address dweights, const Addresses& dw1, const Addresses& dw2, const Addresses& dw3) {
    auto sources = [](const Addresses& all) { return reinterpret_cast<const void* const*>(all.data()); };
    auto targets = [](const Addresses& all) { return reinterpret_cast<void* const*>(all.data()); };
    ExpertsBackwardArgs args{Dtype(dtype), rows, hidden_size, intermediate_size, top_k, int(w1.size()), in<void>(x), in<void>(dout),
                             in<int64_t>(ids), in<float>(weights), sources(w1), sources(w2), sources(w3), at<void>(dx),
                             at<float>(dweights), targets(dw1), targets(dw2), targets(dw3)};
    check_ids(args.ids, args.rows * args.top_k, args.num_experts, "expert");
    run(kernels()->experts_backward, args);
  });
  m.def("embed", [](Address table, int64_t num_rows, Address ids, int64_t num_ids, int64_t row_bytes, Address out) {
    submit([=] {
      check_ids(in<int64_t>(ids), num_ids, num_rows, "token");
      embed({in<uint8_t>(table), in<int64_t>(ids), num_ids, row_bytes, at<uint8_t>(out)});
    });
  });
  nb::class_<Program>(m, "Program", "Calls made while it recorded, to be made again.")
      .def(nb::init<>())
      .def("record", [](Program& self) { recording() = &self; }, "This thread's calls are kept from now on.")
      .def("stop", [](Program&) { recording() = nullptr; })
      .def("__len__", [](const Program& self) { return self.calls.size(); })
      .def("replay", [](const Program& self) {
        nb::gil_scoped_release release;
        Turn turn;
        for (const auto& call : self.calls) call();
      });
  m.def("populate", [](Address data, uint64_t bytes) {
    nb::gil_scoped_release release;
    const uint64_t page = 4096, from = data / page * page;
    madvise(at<void>(from), data + bytes - from, 22 /* MADV_POPULATE_READ, of Linux 5.14 */);
  }, "Maps the pages of a file that will be read anyway; where the system cannot, nothing happens.");
  m.def("probe_read", [](Address data, int64_t bytes) {
    ProbeArgs args{in<uint8_t>(data), bytes, 0, false, 0};
    run(kernels()->probe, args);
  });
  m.def("probe_products", [](int64_t iterations, bool integer) {
    ProbeArgs args{nullptr, 0, iterations, integer, 0};
    nb::gil_scoped_release release;  // not through run(), which keeps a copy of args
    Turn turn;
    kernels()->probe(args);
    return args.operations;
  });
  bind_attention(m);
  bind_lightning(m);
}
