// Norms, routing and embedding for Python.
#include <string.h>

#include <algorithm>

#include "bindings.h"

namespace nb = nanobind;

namespace fulmen {

void read_fields(Arguments& read, NormArgs& args) {
  READ_FIELDS(read, args, dtype, rows, width, x, x_stride, weight, eps, branch, alpha, beta, stream,
              gate, gate_stride, out)
}

void read_fields(Arguments& read, NormBackwardArgs& args) {
  READ_FIELDS(read, args, dtype, rows, width, stream, stream_stride, weight, eps, gate, dout,
              dstream, alpha, beta, dx, dbranch, dgate, dweight)
}

void read_fields(Arguments& read, RouteArgs& args) {
  READ_FIELDS(read, args, logits, rows, num_experts, top_k, is_sigmoid, bias, weights, ids)
}

void read_fields(Arguments& read, RouteBackwardArgs& args) {
  READ_FIELDS(read, args, logits, ids, weights, dweights, rows, num_experts, top_k, is_sigmoid,
              dlogits)
}

namespace {

// out[i] = table[ids[i]], rows of row_bytes
struct EmbedArgs {
  const uint8_t* table;
  int64_t num_rows;
  const int64_t* ids;
  int64_t num_ids, row_bytes;
  uint8_t* out;
};

void read_fields(Arguments& read, EmbedArgs& args) {
  READ_FIELDS(read, args, table, num_rows, ids, num_ids, row_bytes, out)
}

constexpr int64_t kEmbedRows = 64;  // of a task

void embed_task(void* context, int64_t task, int) {
  const EmbedArgs& args = *static_cast<const EmbedArgs*>(context);
  const int64_t end = std::min(args.num_ids, (task + 1) * kEmbedRows);
  for (int64_t i = task * kEmbedRows; i < end; ++i)
    memcpy(args.out + i * args.row_bytes, args.table + args.ids[i] * args.row_bytes,
           size_t(args.row_bytes));
}

void embed(const EmbedArgs& args) {
  check_ids(args.ids, args.num_ids, args.num_rows, "token");
  parallel((args.num_ids + kEmbedRows - 1) / kEmbedRows, embed_task, const_cast<EmbedArgs*>(&args));
}

}  // namespace

void bind_rows(nb::module_& m) {
  bind(m, "norm", &Kernels::norm);
  bind(m, "norm_backward", &Kernels::norm_backward);
  bind(m, "route", &Kernels::route);
  bind(m, "route_backward", &Kernels::route_backward);
  m.def("embed", [](nb::kwargs given) { run("embed", embed, arguments_of<EmbedArgs>(given)); });
}

}  // namespace fulmen
