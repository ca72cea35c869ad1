// Gradients of the mixture of experts, of whatever is wanted.
//
// With g = x w1^T, u = x w3^T, s = silu(g), h = s u and the gradient d of a token's output:
//   e = d w2, weight' = e . h, dh = weight e, dg = dh u silu'(g), du = dh s
//   dx = dg w1 + du w3,  dw1 = dg^T x,  dw3 = du^T x,  dw2 = d^T (weight h)
//
// Three rounds of tasks: rows of an expert (e to du, [dg du] beside each other), tokens and panels
// of dx as in the forward pass, and the matrices. g and u come from the forward pass or are made
// again.
#pragma once

#include "experts.h"
#include "norms.h"
#include "outer.h"

namespace ISA {

using fulmen::ExpertsBackwardArgs;

// Pieces of a memory.
struct Arena {
  uint8_t* next;
  template <class T>
  T* take(int64_t count) {
    T* piece = (T*)next;
    next += round_up(count * int64_t(sizeof(T)), 64);
    return piece;
  }
};

struct BackwardJob {
  const ExpertsBackwardArgs* args;
  Pairing pairs;
  int64_t* places;       // index of each pair in (rows, top_k)
  int64_t* first_tasks;  // (num_active + 1,) of the round over rows
  // One an expert: w1 and w3 as they are, w2 for d w2, and [w1 w3] for [dg du] [w1 w3].
  Matrix *w1, *w3, *w2, *both;
  Operand o;         // of x and d
  Rows x, d;         // x only where g and u are made again
  int64_t wide;      // F as rows of operands have it
  uint8_t* hidden;   // (pairs, F): weight h
  uint8_t* changes;  // (pairs, 2 wide): dg and du
};

// Lays out an expert's matrices for the products of the first two rounds.
static void pack_expert_task(void* context, int64_t task, int) {
  const BackwardJob& job = *(const BackwardJob*)context;
  const ExpertsBackwardArgs& args = *job.args;
  const int64_t C = args.hidden_size, F = args.intermediate_size;
  const int64_t e = job.pairs.active[task % job.pairs.num_active];
  auto pack_into = [&](const void* source, int64_t row_stride, int64_t column_stride,
                       const Matrix& part, const Matrix& whole, int64_t offset) {
    const PackArgs given{source, args.dtype, row_stride, column_stride, part, nullptr};
    for (int64_t block = 0; block < num_blocks(part); ++block)
      pack_block(given, block * kLanes, (uint8_t*)whole.data + block * block_bytes(whole) + offset);
  };
  switch (task / job.pairs.num_active) {
    case 0:
      return pack_into(args.w2[e], 1, F, job.w2[e], job.w2[e], 0);
    case 1: {
      if (args.dx == nullptr) return;
      Matrix half = job.both[e];
      half.k = F;
      pack_into(args.w1[e], 1, C, half, job.both[e], 0);
      return pack_into(args.w3[e], 1, C, half, job.both[e], block_bytes(half));
    }
    case 2:
      return pack_into(args.w1[e], C, 1, job.w1[e], job.w1[e], 0);
    case 3:
      return pack_into(args.w3[e], C, 1, job.w3[e], job.w3[e], 0);
  }
}

// Some rows of an expert: the gradients of their weights, of g and of u.
static void changes_task(void* context, int64_t task, int thread) {
  const BackwardJob& job = *(const BackwardJob*)context;
  const ExpertsBackwardArgs& args = *job.args;
  const Pairing& pairs = job.pairs;
  int64_t index = 0;
  while (job.first_tasks[index + 1] <= task) ++index;
  const int64_t e = pairs.active[index], all = pairs.starts[e + 1] - pairs.starts[e];
  const int64_t share = share_of(all), skip = (task - job.first_tasks[index]) * share;
  const int64_t from = pairs.starts[e] + skip, rows = least(share, all - skip);
  const int64_t F = args.intermediate_size, wide = job.wide, size = size_of(args.dtype);
  float* c = (float*)fulmen::scratch(thread, 1, sizeof(float) * 3 * kSumRows * kPanel);
  float *gates = c + kSumRows * kPanel, *ups = gates + kSumRows * kPanel;
  float weight_gradients[kSumRows] = {0};
  const uint8_t *x[kSumRows], *d[kSumRows];
  for (int64_t i = 0; i < rows; ++i) {
    d[i] = job.d.data + pairs.tokens[from + i] * job.d.bytes;
    x[i] = args.sums == nullptr ? job.x.data + pairs.tokens[from + i] * job.x.bytes : nullptr;
  }
  for (int64_t block = 0; block < num_blocks(job.w2[e]); block += kPanelBlocks) {
    const int blocks = int(least(kPanelBlocks, num_blocks(job.w2[e]) - block));
    const int64_t column = block * kLanes;
    const int columns = int(least(blocks * kLanes, F - column));
    panel(d, rows, job.o, job.w2[e], block, blocks, c, nullptr);
    if (args.sums == nullptr) {
      panel(x, rows, job.o, job.w1[e], block, blocks, gates, nullptr);
      panel(x, rows, job.o, job.w3[e], block, blocks, ups, nullptr);
    }
    for (int64_t i = 0; i < rows; ++i) {
      const float* kept = args.sums + (from + i) * 2 * F + column;
      const float* g = args.sums != nullptr ? kept : gates + i * kPanel;
      const float* u = args.sums != nullptr ? kept + F : ups + i * kPanel;
      const V weight = set1(pairs.weights[from + i]);
      V dots = zero();
      for (int at = 0; at < columns; at += kLanes) {
        const int n = int(least(kLanes, columns - at));
        const V gate = load_n(g + at, n), up = load_n(u + at, n), share = sigmoid(gate),
                swish = mul(gate, share), hidden = rounded(mul(swish, up), args.dtype);
        const V error = load(c + i * kPanel + at);  // zeros beyond the last column
        dots = fma(error, hidden, dots);
        const V dh = mul(weight, error);
        const V slope = mul(share, fma(gate, sub(set1(1.0f), share), set1(1.0f)));
        const int64_t place = (from + i) * 2 * wide + column + at;
        write(job.hidden, (from + i) * F + column + at, n, args.dtype, mul(weight, hidden));
        write(job.changes, place, n, args.dtype, mul(mul(dh, up), slope));
        write(job.changes, place + wide, n, args.dtype, mul(dh, swish));
      }
      weight_gradients[i] += sum(dots);
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    if (args.dweights != nullptr) args.dweights[job.places[from + i]] = weight_gradients[i];
    for (int half = 0; half < 2 && wide > F; ++half)
      memset(job.changes + ((from + i) * 2 * wide + half * wide + F) * size, 0,
             size_t((wide - F) * size));
  }
}

static void expert_inputs(const BackwardJob& job) {
  const ExpertsBackwardArgs& args = *job.args;
  DownJob sums{};
  sums.pairs = &job.pairs;
  sums.w = job.both;
  sums.o = operand_for(job.both[0], args.dtype, 16);
  sums.h = {job.changes, 2 * job.wide * size_of(args.dtype)};
  sums.rows = args.rows;
  sums.out = args.dx;
  sums.dtype = args.dtype;
  down(sums, args.top_k);
}

static void expert_matrices(const BackwardJob& job, Outer* jobs) {
  const ExpertsBackwardArgs& args = *job.args;
  const Pairing& pairs = job.pairs;
  const int64_t C = args.hidden_size, F = args.intermediate_size, size = size_of(args.dtype);
  int64_t count = 0;
  for (int e = 0; e < args.num_experts; ++e) {
    const int64_t from = pairs.starts[e], num_rows = pairs.starts[e + 1] - from;
    auto add = [&](const Factor& a, const Factor& b, void* out) {
      if (out == nullptr) return;
      if (num_rows == 0)
        memset(out, 0, size_t(a.columns * b.columns * size));
      else
        jobs[count++] = {a, b, num_rows, out, args.dtype, b.columns, false};
    };
    const int32_t* tokens = pairs.tokens + from;
    const Factor x{(const uint8_t*)args.x, args.dtype, C * size, tokens, C},
        d{(const uint8_t*)args.dout, args.dtype, C * size, tokens, C},
        h{job.hidden + from * F * size, args.dtype, F * size, nullptr, F};
    Factor change{job.changes + from * 2 * job.wide * size, args.dtype, 2 * job.wide * size,
                  nullptr, F};
    add(change, x, args.dw1[e]);
    change.data += job.wide * size;
    add(change, x, args.dw3[e]);
    add(d, h, args.dw2[e]);
  }
  outer_all(jobs, count);
}

static void experts_backward(const ExpertsBackwardArgs& args) {
  const int64_t pairs = args.rows * args.top_k, size = size_of(args.dtype), E = args.num_experts;
  const int64_t C = args.hidden_size, F = args.intermediate_size;
  const fulmen::Format format = args.dtype == fulmen::kFloat32 ? fulmen::kF32 : fulmen::kBF16;
  BackwardJob job{};
  job.args = &args;
  job.wide = args.dtype == fulmen::kFloat32 ? F : round_up(F, 32);
  const Matrix wide_to_narrow{nullptr, format, 0, F, C}, both{nullptr, format, 0, C, 2 * job.wide};
  const int64_t up_bytes = num_blocks(wide_to_narrow) * block_bytes(wide_to_narrow),
                both_bytes = num_blocks(both) * block_bytes(both);
  const bool makes_sums = args.sums == nullptr;
  const int64_t matrices = E * ((makes_sums ? 3 : 1) * up_bytes + both_bytes);
  Arena arena{(uint8_t*)fulmen::scratch(
      0, 2,
      size_t(pairing_bytes(pairs, E) + pairs * (8 + (F + 2 * job.wide) * size) + matrices +
             E * int64_t(4 * sizeof(Matrix) + 3 * sizeof(Outer) + 512) + 4096))};
  job.pairs = pairing_in(arena.take<uint8_t>(pairing_bytes(pairs, E)), pairs, E);
  job.places = arena.take<int64_t>(pairs);
  group_pairs(args.ids, args.weights, args.rows, args.top_k, int(E), job.pairs, job.places);
  job.first_tasks = arena.take<int64_t>(E + 1);
  Outer* outers = arena.take<Outer>(3 * E);
  Matrix** const kinds[] = {&job.w1, &job.w3, &job.w2, &job.both};
  for (Matrix** kind : kinds) {
    *kind = arena.take<Matrix>(E);
    for (int64_t e = 0; e < E; ++e) (*kind)[e] = kind == &job.both ? both : wide_to_narrow;
  }
  for (int64_t e = 0; e < E; ++e) {
    job.w2[e].data = arena.take<uint8_t>(up_bytes);
    job.both[e].data = arena.take<uint8_t>(both_bytes);
    if (!makes_sums) continue;
    job.w1[e].data = arena.take<uint8_t>(up_bytes);
    job.w3[e].data = arena.take<uint8_t>(up_bytes);
  }
  job.hidden = arena.take<uint8_t>(pairs * F * size);
  job.changes = arena.take<uint8_t>(pairs * 2 * job.wide * size);

  int64_t tasks = 0;
  for (int64_t i = 0; i < job.pairs.num_active; ++i) {
    const int64_t e = job.pairs.active[i], rows = job.pairs.starts[e + 1] - job.pairs.starts[e];
    job.first_tasks[i] = tasks;
    tasks += (rows + share_of(rows) - 1) / share_of(rows);
  }
  job.first_tasks[job.pairs.num_active] = tasks;
  job.o = operand_for(wide_to_narrow, args.dtype, 16);
  job.d = prepare(args.dout, args.dtype, args.rows, C, wide_to_narrow, job.o, 0);
  if (makes_sums) job.x = prepare(args.x, args.dtype, args.rows, C, wide_to_narrow, job.o, 4);
  fulmen::parallel((makes_sums ? 4 : 2) * job.pairs.num_active, pack_expert_task, &job);
  fulmen::parallel(tasks, changes_task, &job);
  if (args.dx != nullptr) expert_inputs(job);
  expert_matrices(job, outers);
}

}  // namespace ISA
