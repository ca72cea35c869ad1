// Arguments of the lightning attention kernel.
#pragma once

#include <stdint.h>

#include "kernels.h"

namespace fulmen {

// Rows of a packed tensor (T, H, D): element (t, h, d) is at t * token + h * head + d. Strides may
// be negative: time then runs backwards, which is what a gradient needs.
struct Tokens {
  const void* data;
  int64_t token, head;
};

// out_t = q_t S_t with S_t = lambda S_{t-1} + k_t v_t^T, for N sequences and H heads. All states or
// none: without them every sequence starts from zero and leaves nothing behind.
struct LightningArgs {
  Tokens q, k, v;
  void* out;
  int64_t out_token, out_head;
  Dtype dtype;  // of q, k, v, out and both tails
  int64_t num_sequences, num_heads, head_dim;
  const int32_t* cu_seqlens;  // (N + 1): sequence n owns tokens cu_seqlens[n] to cu_seqlens[n + 1]
  const int32_t* context_lens;  // (N): its tokens before this call; null means none
  const float* decays;          // (H, 65): lambda^n of each head
  const int64_t* slots;         // (N): its row in the states
  float* kv_state;              // (S, H, D, D), zero before the first chunk boundary
  void* k_tail;                 // (S, H, 64, D)
  void* v_tail;
};

}  // namespace fulmen
