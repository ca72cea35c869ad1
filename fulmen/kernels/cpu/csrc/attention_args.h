// Arguments of the softmax attention kernels.
//
// Pages hold 64 keys and values of one head each. Dp is head_dim rounded up to 16; v is 2 for bf16,
// whose pairs multiply at once, and 1 for float32. Keys have their lanes over keys, values over
// head_dim:
//   k_pages   (P, Hkv, Dp / v, 64, v)     values with d >= head_dim are zeros
//   v_pages   (P, Hkv, 64 / v, Dp, v)
// Rows without a token hold anything, even NaN: pages are reused without being cleared.
//
// Pages may hold int8 codes in the same places, with a float32 scale for every token and head:
//   k_scales, v_scales   (P, Hkv, 64)
#pragma once

#include <stdint.h>

#include "kernels.h"

namespace fulmen {

constexpr int kPage = 64;

// Rows (tokens x query heads of one key-value head) that share a walk over the keys: a multiple of
// the six that the kernels hold in registers.
constexpr int kBlockRows = 96;

static inline int64_t padded_dim(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

// Consecutive new tokens of one sequence.
struct QueryBlock {
  int64_t sequence;
  int64_t token;     // the first, in the packed batch
  int64_t position;  // of the first, in its sequence
  int64_t count;     // at most max(1, kBlockRows / (H / Hkv))
};

struct AttentionArgs {
  const void* q;  // (T, H, D), strided by token and head
  int64_t q_token_stride, q_head_stride;
  void* out;  // (T, H, D)
  Dtype dtype;
  const void *k_pages, *v_pages;
  const float *k_scales, *v_scales;  // null unless the pages hold codes
  const int32_t* block_table;        // (N, block_table_width): the pages of each sequence
  int64_t block_table_width;
  const QueryBlock* blocks;
  int64_t num_blocks;
  int64_t num_heads, num_kv_heads, head_dim;
  float* row_sums;  // (T, H, 2): of each row its largest score, in base 2, and the sum of its
                    // weights, which are relative to it; null: not wanted
};

// Causal attention of whole sequences without a past: gradients of q, k and v, or those of them
// that are wanted.
struct AttentionBackwardArgs {
  const void *q, *out, *dout;  // (T, H, D)
  const float* row_sums;       // as the forward pass left them
  const void *k, *v;           // (T, Hkv, D)
  void *dq, *dk, *dv;          // null: not wanted
  Dtype dtype;
  const int32_t* cu_seqlens;  // (N + 1)
  int64_t num_sequences, num_heads, num_kv_heads, head_dim;
};

// Normalises whole rows where there is a weight, then turns the first 2 half dimensions of every
// head: dimension j with j + half.
struct RotateRows {
  const void* x;  // (T, heads * head_dim), strided by token
  int64_t stride;
  const void* weight;  // (heads * head_dim), or null
  void* out;           // (T, heads, head_dim)
  int64_t num_heads;
};

struct RotateArgs {
  RotateRows rows[2];  // queries, keys
  Dtype dtype;
  int64_t num_tokens, head_dim, half;
  const float *cos, *sin;  // (T, half)
  float eps;
};

// Token t goes to row slots[t] of the flattened (P, 64).
struct WriteArgs {
  const void *k, *v;  // (T, Hkv, D), strided by token and head
  int64_t k_token_stride, k_head_stride, v_token_stride, v_head_stride;
  Dtype dtype;
  void *k_pages, *v_pages;
  float *k_scales, *v_scales;  // null unless the pages hold codes
  int64_t num_pages;
  const int64_t* slots;
  int64_t num_tokens, num_kv_heads, head_dim;
};

// cos and sin (T, half) of positions[t] * frequencies[j], the product rounded to float32.
struct AngleArgs {
  const int64_t* positions;
  const float* frequencies;
  float *cos, *sin;
  int64_t num_tokens, half;
};

// Compiled once, for every instruction set (attention.cpp).
void write_pages(const WriteArgs& args);
void rotary_angles(const AngleArgs& args);

}  // namespace fulmen
