#include <nanobind/nanobind.h>

#include "bindings.h"
#include "lightning_args.h"

namespace nb = nanobind;

void fulmen::bind_lightning(nb::module_& m) {
  m.def(
      "lightning",
      [](Address q, int64_t q_token, int64_t q_head, Address k, int64_t k_token, int64_t k_head, Address v,
         int64_t v_token, int64_t v_head, Address out, int64_t out_token, int64_t out_head, int dtype,
         int64_t num_sequences, int64_t num_heads, int64_t head_dim, Address cu_seqlens, Address context_lens,
         Address decays, Address slots, Address kv_state, Address k_tail, Address v_tail) {
        LightningArgs args{{in<void>(q), q_token, q_head},
                           {in<void>(k), k_token, k_head},
                           {in<void>(v), v_token, v_head},
                           at<void>(out),
                           out_token,
                           out_head,
                           Dtype(dtype),
                           num_sequences,
                           num_heads,
                           head_dim,
                           in<int32_t>(cu_seqlens),
                           in<int32_t>(context_lens),
                           in<float>(decays),
                           in<int64_t>(slots),
                           at<float>(kv_state),
                           at<void>(k_tail),
                           at<void>(v_tail)};
        run(kernels()->lightning, args);
      },
      "See LightningArgs; an address of 0 is a null pointer.");
}
