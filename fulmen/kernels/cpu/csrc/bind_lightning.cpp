// Lightning attention for Python.
#include "bindings.h"
#include "lightning_args.h"

namespace nb = nanobind;

namespace fulmen {

void read_fields(Arguments& read, LightningArgs& args) {
  read.read(FULMEN_NAME_OF("q"), args.q.data);
  read.read(FULMEN_NAME_OF("q_token"), args.q.token);
  read.read(FULMEN_NAME_OF("q_head"), args.q.head);
  read.read(FULMEN_NAME_OF("k"), args.k.data);
  read.read(FULMEN_NAME_OF("k_token"), args.k.token);
  read.read(FULMEN_NAME_OF("k_head"), args.k.head);
  read.read(FULMEN_NAME_OF("v"), args.v.data);
  read.read(FULMEN_NAME_OF("v_token"), args.v.token);
  read.read(FULMEN_NAME_OF("v_head"), args.v.head);
  READ_FIELDS(read, args, out, out_token, out_head, dtype, num_sequences, num_heads, head_dim,
              cu_seqlens, context_lens, decays, slots, kv_state, k_tail, v_tail)
}

void bind_lightning(nb::module_& m) { bind(m, "lightning", &Kernels::lightning); }

}  // namespace fulmen
