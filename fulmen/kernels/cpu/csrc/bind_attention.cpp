// Softmax attention for Python. Lengths, tables and slots that lead outside the pages are refused.
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

// Sequences of a call, read where they lie: a recorded call reads them at every replay.
struct Sequences {
  const int32_t* cu_seqlens;    // (N + 1)
  const int32_t* context_lens;  // (N)
  int64_t num_sequences, num_pages;
};

// Sequence n owns tokens lens[n] to lens[n + 1] and the pages of row n of the table.
void check_sequences(const Sequences& sequences, const int32_t* table, int64_t width) {
  const int32_t *lens = sequences.cu_seqlens, *past = sequences.context_lens;
  const int64_t num_sequences = sequences.num_sequences, num_pages = sequences.num_pages;
  if (lens[0] != 0)
    throw std::invalid_argument("cu_seqlens starts at " + to_string(lens[0]) + ", it must at 0");
  for (int64_t n = 0; n < num_sequences; ++n) {
    if (lens[n + 1] < lens[n] || past[n] < 0)
      throw std::invalid_argument("sequence " + to_string(n) + " has " +
                                  to_string(lens[n + 1] - lens[n]) + " tokens after " +
                                  to_string(past[n]) + ", neither may be negative");
    const int64_t tokens = int64_t(past[n]) + lens[n + 1] - lens[n],
                  needed = (tokens + kPage - 1) / kPage;
    if (needed > width)
      throw std::invalid_argument("block_table is " + to_string(width) + " pages wide, sequence " +
                                  to_string(n) + " has " + to_string(tokens) +
                                  " tokens and needs " + to_string(needed));
    for (int64_t i = 0; i < needed; ++i) {
      const int32_t page = table[n * width + i];
      if (page < 0 || page >= num_pages)
        throw std::invalid_argument("block_table names page " + to_string(page) + " for sequence " +
                                    to_string(n) + ", there are " + to_string(num_pages));
    }
  }
}

// The new tokens in blocks, those with most keys first: the last to end should be short.
std::vector<QueryBlock> query_blocks(const Sequences& sequences, int64_t tokens_per_block) {
  const int32_t *cu_seqlens = sequences.cu_seqlens, *context_lens = sequences.context_lens;
  std::vector<QueryBlock> blocks;
  for (int64_t n = 0; n < sequences.num_sequences; ++n)
    for (int64_t t = cu_seqlens[n]; t < cu_seqlens[n + 1]; t += tokens_per_block)
      blocks.push_back({n, t, context_lens[n] + t - cu_seqlens[n],
                        std::min<int64_t>(tokens_per_block, cu_seqlens[n + 1] - t)});
  std::stable_sort(blocks.begin(), blocks.end(), [](const QueryBlock& a, const QueryBlock& b) {
    return a.position > b.position;
  });
  return blocks;
}

void softmax_attention(nb::kwargs given) {
  Arguments read(given);
  AttentionArgs args{};
  READ_FIELDS(read, args, q, q_token_stride, q_head_stride, out, dtype, k_pages, v_pages, k_scales,
              v_scales, block_table, block_table_width, num_heads, num_kv_heads, head_dim, row_sums)
  Sequences sequences{};
  READ_FIELDS(read, sequences, cu_seqlens, context_lens, num_sequences, num_pages)
  read.finish();
  submit("softmax_attention", nullptr, [args, sequences] {
    check_sequences(sequences, args.block_table, args.block_table_width);
    const int64_t group = args.num_heads / args.num_kv_heads;
    const auto blocks = query_blocks(sequences, std::max<int64_t>(1, kBlockRows / group));
    AttentionArgs complete = args;
    complete.blocks = blocks.data();
    complete.num_blocks = int64_t(blocks.size());
    kernels()->softmax_attention(complete);
  });
}

void write_checked(const WriteArgs& args) {
  const int64_t num_rows = args.num_pages * kPage;
  for (int64_t t = 0; t < args.num_tokens; ++t)
    if (args.slots[t] < 0 || args.slots[t] >= num_rows)
      throw std::invalid_argument("slot_mapping sends token " + to_string(t) + " to row " +
                                  to_string(args.slots[t]) + ", the pages have " +
                                  to_string(num_rows));
  write_pages(args);
}

}  // namespace

void read_fields(Arguments& read, AttentionBackwardArgs& args) {
  READ_FIELDS(read, args, q, k, v, out, dout, row_sums, dq, dk, dv, dtype, cu_seqlens,
              num_sequences, num_heads, num_kv_heads, head_dim)
}

void read_fields(Arguments& read, WriteArgs& args) {
  READ_FIELDS(read, args, k, v, k_token_stride, k_head_stride, v_token_stride, v_head_stride, dtype,
              k_pages, v_pages, k_scales, v_scales, num_pages, slots, num_tokens, num_kv_heads,
              head_dim)
}

void read_fields(Arguments& read, RotateArgs& args) {
  RotateRows &queries = args.rows[0], &keys = args.rows[1];
  read.read(FULMEN_NAME_OF("q"), queries.x);
  read.read(FULMEN_NAME_OF("q_stride"), queries.stride);
  read.read(FULMEN_NAME_OF("q_norm"), queries.weight);
  read.read(FULMEN_NAME_OF("q_out"), queries.out);
  read.read(FULMEN_NAME_OF("num_heads"), queries.num_heads);
  read.read(FULMEN_NAME_OF("k"), keys.x);
  read.read(FULMEN_NAME_OF("k_stride"), keys.stride);
  read.read(FULMEN_NAME_OF("k_norm"), keys.weight);
  read.read(FULMEN_NAME_OF("k_out"), keys.out);
  read.read(FULMEN_NAME_OF("num_kv_heads"), keys.num_heads);
  READ_FIELDS(read, args, dtype, num_tokens, head_dim, half, cos, sin, eps)
}

void read_fields(Arguments& read, AngleArgs& args) {
  READ_FIELDS(read, args, positions, frequencies, cos, sin, num_tokens, half)
}

void bind_attention(nb::module_& m) {
  m.def("softmax_attention", softmax_attention);
  bind(m, "softmax_attention_backward", &Kernels::softmax_attention_backward);
  bind(m, "rotate", &Kernels::rotate);
  m.def("write_pages", [](nb::kwargs given) {
    run("write_pages", write_checked, arguments_of<WriteArgs>(given));
  });
  m.def("rotary_angles", [](nb::kwargs given) {
    run("rotary_angles", rotary_angles, arguments_of<AngleArgs>(given));
  });
}

}  // namespace fulmen
