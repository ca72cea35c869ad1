// Packed matrices and the products with them for Python: linear layers, experts, the head.
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"

namespace nb = nanobind;

namespace fulmen {

void check_ids(const int64_t* ids, int64_t count, int64_t known, const char* kind) {
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= known)
      throw std::invalid_argument(std::string(kind) + " id " + std::to_string(ids[i]) +
                                  " is outside the " + std::to_string(known) + " ids known");
}

void read_fields(Arguments& read, Matrix& args) {
  READ_FIELDS(read, args, data, format, group, n, k)
}

void read_fields(Arguments& read, LinearArgs& args) {
  READ_FIELDS(read, args, x, x_dtype, rows, x_stride, w, input_bits, out, out_dtype, out_stride,
              activation, sums, addend)
}

void read_fields(Arguments& read, ActivationBackwardArgs& args) {
  READ_FIELDS(read, args, dy, dy_dtype, rows, n, sums, activation, dtype, dz)
}

void read_fields(Arguments& read, OuterArgs& args) {
  READ_FIELDS(read, args, a, a_dtype, a_stride, b, b_dtype, b_stride, rows, n, k, out, out_dtype,
              adds)
}

void read_fields(Arguments& read, PackArgs& args) {
  READ_FIELDS(read, args, source, source_dtype, row_stride, column_stride, w, out)
}

void read_fields(Arguments& read, CodebookArgs& args) {
  READ_FIELDS(read, args, weight, rows, width, row_stride, column_stride, group, columns, codes,
              scales, zeros)
}

void read_fields(Arguments& read, HeadArgs& args) {
  READ_FIELDS(read, args, x, x_dtype, rows, x_stride, w, input_bits, targets, top_k, logsumexp,
              target_logits, top_logits, top_ids, logits, logits_stride, entropy, scales, uniforms,
              drawn_ids, drawn_logits)
}

void read_fields(Arguments& read, HeadBackwardArgs& args) {
  READ_FIELDS(read, args, logits, logits_stride, x, x_dtype, rows, x_stride, w, targets, logsumexp,
              gradient, dtype, error, error_stride)
}

namespace {

// The matrices of a layer's experts, side by side.
struct Stack {
  std::vector<Matrix> w1, w2, w3;
};

void experts(nb::kwargs given) {
  Arguments read(given);
  ExpertsArgs args{};
  READ_FIELDS(read, args, x, dtype, rows, x_stride, ids, weights, top_k, input_bits, sums, out)
  const Stack& stack = nb::cast<const Stack&>(read.take(FULMEN_NAME_OF("stack")));
  read.finish();
  args.num_experts = int(stack.w1.size());
  args.w1 = stack.w1.data();
  args.w2 = stack.w2.data();
  args.w3 = stack.w3.data();
  submit("experts", args.w1[0].data, [args] {
    check_ids(args.ids, args.rows * args.top_k, args.num_experts, "expert");
    kernels()->experts(args);
  });
}

// Matrices of every expert, by their addresses.
struct Plain {
  std::vector<Address> w1, w2, w3, dw1, dw2, dw3;
};

void experts_backward(nb::kwargs given) {
  Arguments read(given);
  ExpertsBackwardArgs args{};
  READ_FIELDS(read, args, dtype, rows, hidden_size, intermediate_size, top_k, x, dout, ids, weights,
              sums, dx, dweights)
  Plain plain;
  READ_FIELDS(read, plain, w1, w2, w3, dw1, dw2, dw3)
  read.finish();
  const auto in = [](const std::vector<Address>& all) {
    return reinterpret_cast<const void* const*>(all.data());
  };
  const auto out = [](const std::vector<Address>& all) {
    return reinterpret_cast<void* const*>(all.data());
  };
  args.num_experts = int(plain.w1.size());
  args.w1 = in(plain.w1), args.w2 = in(plain.w2), args.w3 = in(plain.w3);
  args.dw1 = out(plain.dw1), args.dw2 = out(plain.dw2), args.dw3 = out(plain.dw3);
  check_ids(args.ids, args.rows * args.top_k, args.num_experts, "expert");
  run("experts_backward", kernels()->experts_backward, args);
}

}  // namespace

void bind_products(nb::module_& m) {
  nb::class_<Matrix>(m, "Matrix", "A packed matrix; the memory is the caller's.")
      .def("__init__",
           [](Matrix* self, nb::kwargs given) { new (self) Matrix(arguments_of<Matrix>(given)); });
  nb::class_<Stack>(m, "Stack", "Packed matrices of a layer's experts; the memory is the caller's.")
      .def("__init__",
           [](Stack* self, std::vector<Matrix> w1, std::vector<Matrix> w2, std::vector<Matrix> w3) {
             new (self) Stack{std::move(w1), std::move(w2), std::move(w3)};
           });
  bind(m, "linear", &Kernels::linear);
  bind(m, "activation_backward", &Kernels::activation_backward);
  bind(m, "outer", &Kernels::outer);
  bind(m, "pack", &Kernels::pack);
  bind(m, "codebook", &Kernels::codebook);
  m.def("head", [](nb::kwargs given) {
    const HeadArgs args = arguments_of<HeadArgs>(given);
    submit("head", args.w.data, [args] {
      check_ids(args.targets, args.targets == nullptr ? 0 : args.rows, args.w.n, "target");
      kernels()->head(args);
    });
  });
  bind(m, "head_backward", &Kernels::head_backward);
  m.def("experts", experts);
  m.def("experts_backward", experts_backward);
}

}  // namespace fulmen
