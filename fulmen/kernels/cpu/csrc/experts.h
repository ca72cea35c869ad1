// Mixture of experts: tokens grouped by expert, both products of all experts in one call.
//
// Up: h = silu(x w1^T) (x w3^T), tasks over experts and panels of the expert's width. Down: tasks
// over tokens and panels of the output; each goes through the experts in their order and adds to
// its columns of its tokens, so a token's sum has one order whatever stands beside it.
#pragma once

#include "kernels.h"
#include "linear.h"
#include "pool.h"
#include "product.h"
#include "vec.h"

namespace ISA {

using fulmen::ExpertsArgs;

// Pairs of a token and an expert it chose, grouped by expert.
struct Pairing {
  int64_t* starts;  // (E + 1,) first pair of each expert
  int32_t* active;  // experts that some token chose, in order
  int64_t num_active;
  int32_t* tokens;  // (pairs,) of each pair, in order within an expert
  float* weights;   // (pairs,)
};

struct ExpertsJob {
  const ExpertsArgs* args;
  Pairing pairs;
  Operand up_operand;
  Rows x;
  uint8_t* hidden;  // (pairs, F) in the model's dtype
  int64_t up_wide;  // panels a task takes
};

// The last product of all experts: of each token the sum over its pairs of weight times w h.
struct DownJob {
  const Pairing* pairs;
  const Matrix* w;  // one an expert
  Operand o;
  Rows h;  // of each pair
  bool is_weighted;
  int64_t rows, wide, some;  // tokens; panels and tokens a task takes
  void* out;                 // (rows, w.n)
  Dtype dtype;
};

static inline int64_t tasks_for(const Matrix& w, int64_t wide) {
  return (panels(w) + wide - 1) / wide;
}

// Wide tasks read their rows fewer times; narrow ones keep all threads busy to the end.
static inline int64_t task_width(const Matrix& w, int64_t rows, int64_t others) {
  int64_t wide = rows >= 32 ? 4 : 1;
  while (wide > 1 && tasks_for(w, wide) * others < 4 * fulmen::num_threads()) wide /= 2;
  return wide;
}

static void up_task(void* context, int64_t task, int thread) {
  const ExpertsJob& job = *(const ExpertsJob*)context;
  const ExpertsArgs& args = *job.args;
  const int64_t per_expert = tasks_for(args.w1[0], job.up_wide);
  const Pairing& pairs = job.pairs;
  const int64_t e = pairs.active[task / per_expert], from = pairs.starts[e],
                to = pairs.starts[e + 1];
  const Matrix &w1 = args.w1[e], &w3 = args.w3[e];
  const int64_t first = task % per_expert * job.up_wide,
                last = least(first + job.up_wide, panels(w1));
  const int64_t size = size_of(args.dtype);
  const int64_t ahead = least(task + fulmen::num_threads(), pairs.num_active * per_expert - 1);
  const uint8_t* after =
      panel_data(args.w1[pairs.active[ahead / per_expert]], ahead % per_expert * job.up_wide);
  float* gate = (float*)fulmen::scratch(thread, 1, sizeof(float) * 2 * kSumRows * kPanel);
  float* up = gate + kSumRows * kPanel;
  const uint8_t* x[kSumRows];
  const int64_t share = share_of(to - from);
  for (int64_t r = from; r < to; r += share) {
    const int64_t rows = least(share, to - r);
    for (int64_t i = 0; i < rows; ++i) x[i] = job.x.data + pairs.tokens[r + i] * job.x.bytes;
    for (int64_t p = first; p < last; ++p) {
      const int64_t block = p * kPanelBlocks;
      const int blocks = int(least(kPanelBlocks, num_blocks(w1) - block));
      panel(x, rows, job.up_operand, w1, block, blocks, gate, panel_data(w3, p));
      panel(x, rows, job.up_operand, w3, block, blocks, up,
            p + 1 < last ? panel_data(w1, p + 1) : after);
      const int columns = int(least(blocks * kLanes, w1.n - block * kLanes));
      for (int64_t i = 0; i < rows; ++i) {
        uint8_t* out = job.hidden + ((r + i) * w1.n + block * kLanes) * size;
        if (args.sums != nullptr) {
          float* sums = args.sums + (r + i) * 2 * w1.n + block * kLanes;
          memcpy(sums, gate + i * kPanel, sizeof(float) * size_t(columns));
          memcpy(sums + w1.n, up + i * kPanel, sizeof(float) * size_t(columns));
        }
        for (int c = 0; c < columns; c += kLanes) {
          const V g = load(gate + i * kPanel + c);
          const V h = mul(mul(g, sigmoid(g)), load(up + i * kPanel + c));
          const int n = int(least(kLanes, columns - c));
          if (args.dtype == fulmen::kFloat32)
            store_n((float*)out + c, h, n);
          else
            store_n((uint16_t*)out + c, h, n);
        }
      }
    }
  }
}

// The first pair, of those from `from` to `to`, whose token is at least `token`.
static inline int64_t first_pair(const int32_t* tokens, int64_t from, int64_t to, int64_t token) {
  while (from < to) {
    const int64_t middle = (from + to) / 2;
    if (tokens[middle] < token)
      from = middle + 1;
    else
      to = middle;
  }
  return from;
}

static void down_task(void* context, int64_t task, int thread) {
  const DownJob& job = *(const DownJob*)context;
  const Pairing& pairs = *job.pairs;
  const int64_t across = tasks_for(job.w[0], job.wide);
  const int64_t first = task % across * job.wide, last = least(first + job.wide, panels(job.w[0]));
  const int64_t begin = task / across * job.some, end = least(begin + job.some, job.rows);
  const int64_t width = job.wide * kPanel;
  float* sums = (float*)fulmen::scratch(
      thread, 1, sizeof(float) * size_t(kSumRows * kPanel + (end - begin) * width));
  float* totals = sums + kSumRows * kPanel;
  memset(totals, 0, sizeof(float) * size_t((end - begin) * width));
  const uint8_t* h[kSumRows];
  for (int64_t index = 0; index < pairs.num_active; ++index) {
    const int32_t e = pairs.active[index];
    const Matrix& w = job.w[e];
    const bool is_last = index + 1 == pairs.num_active;
    const Matrix& next_w = job.w[pairs.active[is_last ? 0 : index + 1]];
    const uint8_t* after =
        panel_data(next_w, is_last ? first + fulmen::num_threads() * job.wide : first);
    const int64_t from = first_pair(pairs.tokens, pairs.starts[e], pairs.starts[e + 1], begin),
                  to = first_pair(pairs.tokens, from, pairs.starts[e + 1], end);
    const int64_t share = share_of(to - from);
    for (int64_t r = from; r < to; r += share) {
      const int64_t rows = least(share, to - r);
      for (int64_t i = 0; i < rows; ++i) h[i] = job.h.data + (r + i) * job.h.bytes;
      for (int64_t p = first; p < last; ++p) {
        const int64_t block = p * kPanelBlocks;
        const int blocks = int(least(kPanelBlocks, num_blocks(w) - block));
        panel(h, rows, job.o, w, block, blocks, sums, p + 1 < last ? panel_data(w, p + 1) : after);
        for (int64_t i = 0; i < rows; ++i) {
          float* total = totals + (pairs.tokens[r + i] - begin) * width + (p - first) * kPanel;
          const V weight = set1(job.is_weighted ? pairs.weights[r + i] : 1.0f);
          for (int c = 0; c < blocks * kLanes; c += kLanes)
            store(total + c, fma(weight, load(sums + i * kPanel + c), load(total + c)));
        }
      }
    }
  }
  const int64_t size = size_of(job.dtype);
  const int64_t column = first * kPanel;
  const int columns = int(least(width, job.w[0].n - column));
  for (int64_t t = begin; t < end; ++t)
    write_row(totals + (t - begin) * width, columns, fulmen::kNone,
              (uint8_t*)job.out + (t * job.w[0].n + column) * size, job.dtype);
}

// Tokens a task takes: where experts have many rows each, few enough that their sums stay in a
// cache, and that the last tasks are short; else all, for each task reads the weights.
static inline int64_t down_tokens(int64_t top_k, int64_t num_active) {
  return most(1024, kSumRows * num_active / top_k);
}

static void down(DownJob& job, int top_k) {
  const int64_t each = job.rows * top_k / most(job.pairs->num_active, 1);
  job.some = down_tokens(top_k, job.pairs->num_active);
  const int64_t parts = (job.rows + job.some - 1) / job.some;
  job.wide = task_width(job.w[0], each, parts);
  fulmen::parallel(parts * tasks_for(job.w[0], job.wide), down_task, &job);
}

// Groups pairs by expert; places, if not null, receives the index of each in (rows, top_k).
static inline void group_pairs(const int64_t* ids, const float* weights, int64_t rows, int top_k,
                               int num_experts, Pairing& to, int64_t* places) {
  for (int e = 0; e <= num_experts; ++e) to.starts[e] = 0;
  for (int64_t i = 0; i < rows * top_k; ++i) ++to.starts[ids[i] + 1];
  to.num_active = 0;
  for (int e = 0; e < num_experts; ++e) {
    if (to.starts[e + 1] > 0) to.active[to.num_active++] = e;
    to.starts[e + 1] += to.starts[e];
  }
  for (int64_t i = 0; i < rows * top_k; ++i) {
    const int64_t place = to.starts[ids[i]]++;
    to.tokens[place] = int32_t(i / top_k);
    to.weights[place] = weights[i];
    if (places != nullptr) places[place] = i;
  }
  for (int e = num_experts; e > 0; --e) to.starts[e] = to.starts[e - 1];
  to.starts[0] = 0;
}

// Bytes of a pairing, and its pieces of memory that is aligned to 8.
static inline int64_t pairing_bytes(int64_t pairs, int64_t num_experts) {
  return round_up((num_experts + 1) * 8 + num_experts * 4 + pairs * 8, 64);
}
static inline Pairing pairing_in(uint8_t* memory, int64_t pairs, int64_t num_experts) {
  Pairing made{};
  made.starts = (int64_t*)memory;
  made.active = (int32_t*)(made.starts + num_experts + 1);
  made.tokens = made.active + num_experts;
  made.weights = (float*)(made.tokens + pairs);
  return made;
}

static void experts(const ExpertsArgs& args) {
  const int64_t pairs = args.rows * args.top_k;
  const int64_t size = size_of(args.dtype);
  const Matrix &w1 = args.w1[0], &w2 = args.w2[0];
  ExpertsJob job{};
  job.args = &args;
  job.up_operand = operand_for(w1, args.dtype, args.input_bits);
  const int64_t hidden_bytes = round_up(pairs * w1.n * size, 64);
  job.hidden = (uint8_t*)fulmen::scratch(
      0, 2, size_t(hidden_bytes + pairing_bytes(pairs, args.num_experts)));
  job.pairs = pairing_in(job.hidden + hidden_bytes, pairs, args.num_experts);
  group_pairs(args.ids, args.weights, args.rows, args.top_k, args.num_experts, job.pairs, nullptr);
  const int64_t num_active = job.pairs.num_active;
  job.up_wide = task_width(w1, pairs / most(num_active, 1), most(num_active, 1));
  job.x = prepare(args.x, args.dtype, args.rows, args.x_stride, w1, job.up_operand, 0);
  fulmen::parallel(num_active * tasks_for(w1, job.up_wide), up_task, &job);
  fulmen::next_stage();
  DownJob last{};
  last.pairs = &job.pairs;
  last.w = args.w2;
  last.o = operand_for(w2, args.dtype, args.input_bits);
  last.h = prepare(job.hidden, args.dtype, pairs, w1.n, w2, last.o, 0);
  last.is_weighted = true;
  last.rows = args.rows;
  last.out = args.out;
  last.dtype = args.dtype;
  down(last, args.top_k);
  fulmen::count_matrices(num_active);
}

}  // namespace ISA
