// Mixture of experts: tokens grouped by expert, both products of all experts in one call.
//
// Up: h = silu(x w1^T) (x w3^T), tasks over experts and panels of the expert's width. Down: tasks
// over panels of the output; each goes through the experts in their order and adds to its columns
// of every token, so a token's sum has one order whatever stands beside it.
#pragma once

#include "kernels.h"
#include "linear.h"
#include "pool.h"
#include "product.h"
#include "vec.h"

namespace ISA {

using fulmen::ExpertsArgs;

struct ExpertsJob {
  const ExpertsArgs* args;
  Operand up_operand, down_operand;
  Rows x, h;
  int64_t* starts;  // (E + 1,) first pair of each expert
  int32_t* active;  // experts that some token chose, in order
  int64_t num_active;
  int32_t* tokens;             // (pairs,) grouped by expert, tokens in order
  float* weights;              // (pairs,)
  uint8_t* hidden;             // (pairs, F) in the model's dtype
  int64_t up_wide, down_wide;  // panels a task takes
};

static inline int64_t tasks_for(const Matrix& w, int64_t wide) {
  return (panels(w) + wide - 1) / wide;
}

// Wide tasks read their rows fewer times; narrow ones keep all threads busy.
static inline int64_t task_width(const Matrix& w, int64_t rows, int64_t others) {
  int64_t wide = rows >= 32 ? 4 : 1;
  while (wide > 1 && tasks_for(w, wide) * others < 2 * fulmen::num_threads()) wide /= 2;
  return wide;
}

static void up_task(void* context, int64_t task, int thread) {
  const ExpertsJob& job = *(const ExpertsJob*)context;
  const ExpertsArgs& args = *job.args;
  const int64_t per_expert = tasks_for(args.w1[0], job.up_wide);
  const int64_t e = job.active[task / per_expert], from = job.starts[e], to = job.starts[e + 1];
  const Matrix &w1 = args.w1[e], &w3 = args.w3[e];
  const int64_t first = task % per_expert * job.up_wide,
                last = least(first + job.up_wide, panels(w1));
  const int64_t size = size_of(args.dtype);
  const int64_t ahead = least(task + fulmen::num_threads(), job.num_active * per_expert - 1);
  const uint8_t* after =
      panel_data(args.w1[job.active[ahead / per_expert]], ahead % per_expert * job.up_wide);
  float* gate = (float*)fulmen::scratch(thread, 1, sizeof(float) * 2 * kSumRows * kPanel);
  float* up = gate + kSumRows * kPanel;
  const uint8_t* x[kSumRows];
  for (int64_t r = from; r < to; r += kSumRows) {
    const int64_t rows = least(kSumRows, to - r);
    for (int64_t i = 0; i < rows; ++i) x[i] = job.x.data + job.tokens[r + i] * job.x.bytes;
    for (int64_t p = first; p < last; ++p) {
      const int64_t block = p * kPanelBlocks;
      const int blocks = int(least(kPanelBlocks, num_blocks(w1) - block));
      panel(x, rows, job.up_operand, w1, block, blocks, gate, panel_data(w3, p));
      panel(x, rows, job.up_operand, w3, block, blocks, up,
            p + 1 < last ? panel_data(w1, p + 1) : after);
      const int columns = int(least(blocks * kLanes, w1.n - block * kLanes));
      for (int64_t i = 0; i < rows; ++i) {
        uint8_t* out = job.hidden + ((r + i) * w1.n + block * kLanes) * size;
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

static void down_task(void* context, int64_t task, int thread) {
  const ExpertsJob& job = *(const ExpertsJob*)context;
  const ExpertsArgs& args = *job.args;
  const int64_t first = task * job.down_wide,
                last = least(first + job.down_wide, panels(args.w2[0]));
  const int64_t width = job.down_wide * kPanel;
  float* sums = (float*)fulmen::scratch(
      thread, 1, sizeof(float) * size_t(kSumRows * kPanel + args.rows * width));
  float* totals = sums + kSumRows * kPanel;
  memset(totals, 0, sizeof(float) * size_t(args.rows * width));
  const uint8_t* h[kSumRows];
  for (int64_t index = 0; index < job.num_active; ++index) {
    const int32_t e = job.active[index];
    const Matrix& w2 = args.w2[e];
    const bool is_last = index + 1 == job.num_active;
    const Matrix& next_w2 = args.w2[job.active[is_last ? 0 : index + 1]];
    const uint8_t* after =
        panel_data(next_w2, is_last ? first + fulmen::num_threads() * job.down_wide : first);
    for (int64_t r = job.starts[e]; r < job.starts[e + 1]; r += kSumRows) {
      const int64_t rows = least(kSumRows, job.starts[e + 1] - r);
      for (int64_t i = 0; i < rows; ++i) h[i] = job.h.data + (r + i) * job.h.bytes;
      for (int64_t p = first; p < last; ++p) {
        const int64_t block = p * kPanelBlocks;
        const int blocks = int(least(kPanelBlocks, num_blocks(w2) - block));
        panel(h, rows, job.down_operand, w2, block, blocks, sums,
              p + 1 < last ? panel_data(w2, p + 1) : after);
        for (int64_t i = 0; i < rows; ++i) {
          float* total = totals + job.tokens[r + i] * width + (p - first) * kPanel;
          const V weight = set1(job.weights[r + i]);
          for (int c = 0; c < blocks * kLanes; c += kLanes)
            store(total + c, fma(weight, load(sums + i * kPanel + c), load(total + c)));
        }
      }
    }
  }
  const int64_t size = size_of(args.dtype);
  const int64_t column = first * kPanel;
  const int columns = int(least(width, args.w2[0].n - column));
  for (int64_t t = 0; t < args.rows; ++t)
    write_row(totals + t * width, columns, fulmen::kNone,
              (uint8_t*)args.out + (t * args.w2[0].n + column) * size, args.dtype);
}

// Pairs of token and choice, grouped by expert.
static inline void group_pairs(const ExpertsArgs& args, int64_t* starts, int32_t* tokens,
                               float* weights, int64_t* places) {
  const int64_t pairs = args.rows * args.top_k;
  for (int e = 0; e <= args.num_experts; ++e) starts[e] = 0;
  for (int64_t i = 0; i < pairs; ++i) ++starts[args.ids[i] + 1];
  for (int e = 0; e < args.num_experts; ++e) starts[e + 1] += starts[e];
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t place = starts[args.ids[i]]++;
    tokens[place] = int32_t(i / args.top_k);
    weights[place] = args.weights[i];
    if (places != nullptr) places[place] = i;
  }
  for (int e = args.num_experts; e > 0; --e) starts[e] = starts[e - 1];
  starts[0] = 0;
}

static void experts(const ExpertsArgs& args) {
  const int64_t pairs = args.rows * args.top_k;
  const int64_t size = size_of(args.dtype);
  const Matrix &w1 = args.w1[0], &w2 = args.w2[0];
  ExpertsJob job{};
  job.args = &args;
  job.up_operand = operand_for(w1, args.dtype, args.input_bits);
  job.down_operand = operand_for(w2, args.dtype, args.input_bits);
  const int64_t hidden_bytes = round_up(pairs * w1.n * size, 64);
  uint8_t* memory = (uint8_t*)fulmen::scratch(
      0, 2, size_t(hidden_bytes + (args.num_experts + 1) * 8 + args.num_experts * 4 + pairs * 8));
  job.hidden = memory;
  job.starts = (int64_t*)(memory + hidden_bytes);
  job.active = (int32_t*)(job.starts + args.num_experts + 1);
  job.tokens = job.active + args.num_experts;
  job.weights = (float*)(job.tokens + pairs);
  group_pairs(args, job.starts, job.tokens, job.weights, nullptr);
  for (int e = 0; e < args.num_experts; ++e)
    if (job.starts[e + 1] > job.starts[e]) job.active[job.num_active++] = e;
  job.up_wide = task_width(w1, pairs / most(job.num_active, 1), most(job.num_active, 1));
  job.down_wide = task_width(w2, pairs / most(job.num_active, 1), 1);
  job.x = prepare(args.x, args.dtype, args.rows, args.x_stride, w1, job.up_operand, 0);
  fulmen::parallel(job.num_active * tasks_for(w1, job.up_wide), up_task, &job);
  fulmen::next_stage();
  job.h = prepare(job.hidden, args.dtype, pairs, w1.n, w2, job.down_operand, 0);
  fulmen::parallel(tasks_for(w2, job.down_wide), down_task, &job);
  fulmen::count_matrices(job.num_active);
}

}  // namespace ISA
