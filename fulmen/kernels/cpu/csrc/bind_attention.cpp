// Softmax attention for Python: addresses and sizes in; what could read or write outside the pages
// is refused.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention_args.h"
#include "bindings.h"

namespace nb = nanobind;

namespace fulmen {
namespace {

using std::to_string;

// Sequence n owns tokens lens[n] to lens[n + 1] and the pages of row n of the table.
void check_sequences(const int32_t* lens, const int32_t* past, const int32_t* table, int64_t width,
                     int64_t num_sequences, int64_t num_pages) {
  if (lens[0] != 0) throw std::invalid_argument("cu_seqlens starts at " + to_string(lens[0]) + ", it must at 0");
  for (int64_t n = 0; n < num_sequences; ++n) {
    if (lens[n + 1] < lens[n] || past[n] < 0)
      throw std::invalid_argument("sequence " + to_string(n) + " has " + to_string(lens[n + 1] - lens[n]) +
                                  " tokens after " + to_string(past[n]) + ", neither may be negative");
    const int64_t tokens = int64_t(past[n]) + lens[n + 1] - lens[n], needed = (tokens + kPage - 1) / kPage;
    if (needed > width)
      throw std::invalid_argument("block_table is " + to_string(width) + " pages wide, sequence " + to_string(n) +
                                  " has " + to_string(tokens) + " tokens and needs " + to_string(needed));
    for (int64_t i = 0; i < needed; ++i) {
      const int32_t page = table[n * width + i];
      if (page < 0 || page >= num_pages)
        throw std::invalid_argument("block_table names page " + to_string(page) + " for sequence " + to_string(n) +
                                    ", there are " + to_string(num_pages));
    }
  }
}

// The new tokens in blocks, those with most keys first: the last to end should be short.
std::vector<QueryBlock> query_blocks(const int32_t* cu_seqlens, const int32_t* context_lens, int64_t num_sequences,
                                     int64_t tokens_per_block) {
  std::vector<QueryBlock> blocks;
  for (int64_t n = 0; n < num_sequences; ++n)
    for (int64_t t = cu_seqlens[n]; t < cu_seqlens[n + 1]; t += tokens_per_block)
      blocks.push_back({n, t, context_lens[n] + t - cu_seqlens[n],
                        std::min<int64_t>(tokens_per_block, cu_seqlens[n + 1] - t)});
  std::stable_sort(blocks.begin(), blocks.end(),
                   [](const QueryBlock& a, const QueryBlock& b) { return a.position > b.position; });
  return blocks;
}

}  // namespace

void bind_attention(nb::module_& m) {
  m.def(
      "softmax_attention",
      [](Address q, int64_t q_token_stride, int64_t q_head_stride, Address out, int dtype, Address k_pages,
         Address v_pages, Address k_scales, Address v_scales, int64_t num_pages, Address block_table,
         int64_t block_table_width, Address cu_seqlens, Address context_lens, int64_t num_sequences, int64_t num_heads,
         int64_t num_kv_heads, int64_t head_dim) {
        submit([=] {
          const int32_t *lens = in<int32_t>(cu_seqlens), *past = in<int32_t>(context_lens);
          const int32_t* table = in<int32_t>(block_table);
          check_sequences(lens, past, table, block_table_width, num_sequences, num_pages);
          const int64_t tokens = std::max<int64_t>(1, kBlockRows / (num_heads / num_kv_heads));
          const auto blocks = query_blocks(lens, past, num_sequences, tokens);
          kernels()->softmax_attention({in<void>(q), q_token_stride, q_head_stride, at<void>(out), Dtype(dtype),
                                        in<void>(k_pages), in<void>(v_pages), in<float>(k_scales), in<float>(v_scales), table,
                                        block_table_width, blocks.data(), int64_t(blocks.size()), num_heads, num_kv_heads,
                                        head_dim});
        });
      },
      nb::kw_only(), nb::arg("q"), nb::arg("q_token_stride"), nb::arg("q_head_stride"), nb::arg("out"),
      nb::arg("dtype"), nb::arg("k_pages"), nb::arg("v_pages"), nb::arg("k_scales"), nb::arg("v_scales"),
      nb::arg("num_pages"), nb::arg("block_table"), nb::arg("block_table_width"), nb::arg("cu_seqlens"),
      nb::arg("context_lens"), nb::arg("num_sequences"), nb::arg("num_heads"), nb::arg("num_kv_heads"),
      nb::arg("head_dim"));

  m.def(
      "softmax_attention_backward",
      [](Address q, Address k, Address v, Address out, Address dout, Address dq, Address dk, Address dv, int dtype,
         Address cu_seqlens, int64_t num_sequences, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim) {
        run(kernels()->softmax_attention_backward,
            AttentionBackwardArgs{in<void>(q), in<void>(out), in<void>(dout), in<void>(k), in<void>(v), at<void>(dq),
                                  at<void>(dk), at<void>(dv), Dtype(dtype), in<int32_t>(cu_seqlens), num_sequences,
                                  num_heads, num_kv_heads, head_dim});
      },
      nb::kw_only(), nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("out"), nb::arg("dout"), nb::arg("dq"),
      nb::arg("dk"), nb::arg("dv"), nb::arg("dtype"), nb::arg("cu_seqlens"), nb::arg("num_sequences"),
      nb::arg("num_heads"), nb::arg("num_kv_heads"), nb::arg("head_dim"));

  m.def(
      "write_pages",
      [](Address k, int64_t k_token_stride, int64_t k_head_stride, Address v, int64_t v_token_stride,
         int64_t v_head_stride, int dtype, Address k_pages, Address v_pages, Address k_scales, Address v_scales,
         int64_t num_pages, Address slots, int64_t num_tokens, int64_t num_kv_heads, int64_t head_dim) {
        submit([=] {
          const int64_t *rows = in<int64_t>(slots), num_rows = num_pages * kPage;
          for (int64_t t = 0; t < num_tokens; ++t)
            if (rows[t] < 0 || rows[t] >= num_rows)
              throw std::invalid_argument("slot_mapping sends token " + to_string(t) + " to row " + to_string(rows[t]) +
                                          ", the pages have " + to_string(num_rows));
          write_pages({in<void>(k), in<void>(v), k_token_stride, k_head_stride, v_token_stride, v_head_stride, Dtype(dtype),
                       at<void>(k_pages), at<void>(v_pages), at<float>(k_scales), at<float>(v_scales), rows, num_tokens,
                       num_kv_heads, head_dim});
        });
      },
      nb::kw_only(), nb::arg("k"), nb::arg("k_token_stride"), nb::arg("k_head_stride"), nb::arg("v"),
      nb::arg("v_token_stride"), nb::arg("v_head_stride"), nb::arg("dtype"), nb::arg("k_pages"), nb::arg("v_pages"),
      nb::arg("k_scales"), nb::arg("v_scales"), nb::arg("num_pages"), nb::arg("slots"), nb::arg("num_tokens"),
      nb::arg("num_kv_heads"), nb::arg("head_dim"));

  m.def(
      "rotate",
      [](Address q, int64_t q_stride, Address q_norm, Address q_out, int64_t num_heads, Address k, int64_t k_stride,
         Address k_norm, Address k_out, int64_t num_kv_heads, int dtype, int64_t num_tokens, int64_t head_dim,
         int64_t half, Address cos, Address sin, float eps) {
        run(kernels()->rotate,
            RotateArgs{{{in<void>(q), q_stride, in<void>(q_norm), at<void>(q_out), num_heads},
                        {in<void>(k), k_stride, in<void>(k_norm), at<void>(k_out), num_kv_heads}},
                       Dtype(dtype), num_tokens, head_dim, half, in<float>(cos), in<float>(sin), eps});
      },
      nb::kw_only(), nb::arg("q"), nb::arg("q_stride"), nb::arg("q_norm"), nb::arg("q_out"), nb::arg("num_heads"),
      nb::arg("k"), nb::arg("k_stride"), nb::arg("k_norm"), nb::arg("k_out"), nb::arg("num_kv_heads"),
      nb::arg("dtype"), nb::arg("num_tokens"), nb::arg("head_dim"), nb::arg("half"), nb::arg("cos"), nb::arg("sin"),
      nb::arg("eps"));

  m.def(
      "rotary_angles",
      [](Address positions, Address frequencies, Address cos, Address sin, int64_t num_tokens, int64_t half) {
        run(rotary_angles, AngleArgs{in<int64_t>(positions), in<float>(frequencies), at<float>(cos), at<float>(sin),
                                     num_tokens, half});
      },
      nb::kw_only(), nb::arg("positions"), nb::arg("frequencies"), nb::arg("cos"), nb::arg("sin"),
      nb::arg("num_tokens"), nb::arg("half"));
}

}  // namespace fulmen
