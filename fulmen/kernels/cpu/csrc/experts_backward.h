// Gradients of the mixture of experts: one task an expert, its products made of the same panels.
//
// With g = x w1^T, u = x w3^T, s = silu(g), h = s u and the gradient d of a token's output:
//   e = d w2, weight' = e . h, dh = weight e, dg = dh u silu'(g), du = dh s
//   dx = dg w1 + du w3,  dw1 = dg^T x,  dw3 = du^T x,  dw2 = (weight d)^T h
#pragma once

#include "experts.h"
#include "norms.h"
#include "transpose.h"

namespace ISA {

using fulmen::ExpertsBackwardArgs;

// Pieces of one thread's scratch.
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
  int64_t* starts;
  int32_t* tokens;
  float* weights;
  int64_t* places;  // index of each pair in (rows, top_k)
  float* dx_pairs;  // (rows * top_k, C)
};

// Packed copy of a matrix of plain values, by this thread alone.
static inline Matrix packed(const void* source, Dtype dtype, int64_t n, int64_t k,
                            int64_t row_stride, int64_t column_stride, Arena& arena) {
  Matrix w{nullptr, dtype == fulmen::kFloat32 ? fulmen::kF32 : fulmen::kBF16, 0, n, k};
  uint8_t* out = arena.take<uint8_t>(num_blocks(w) * block_bytes(w));
  w.data = out;
  PackArgs args{source, dtype, row_stride, column_stride, w, out};
  for (int64_t block = 0; block < num_blocks(w); ++block) pack_task(&args, block, 0);
  return w;
}

// emit(row, column, count, sums) for every row of x (rows of `bytes` in w's operand layout) times
// w.
template <class Emit>
static inline void multiply(const uint8_t* x, int64_t bytes, int64_t rows, const Matrix& w,
                            Dtype dtype, float* sums, const Emit& emit) {
  const Operand o = operand_for(w, dtype, 16);
  const uint8_t* pointers[kSumRows];
  for (int64_t r = 0; r < rows; r += kSumRows) {
    const int64_t some = least(kSumRows, rows - r);
    for (int64_t i = 0; i < some; ++i) pointers[i] = x + (r + i) * bytes;
    for (int64_t block = 0; block < num_blocks(w); block += kPanelBlocks) {
      const int blocks = int(least(kPanelBlocks, num_blocks(w) - block));
      panel(pointers, some, o, w, block, blocks, sums, nullptr);
      const int columns = int(least(blocks * kLanes, w.n - block * kLanes));
      for (int64_t i = 0; i < some; ++i) emit(r + i, block * kLanes, columns, sums + i * kPanel);
    }
  }
}

// One expert and the m tokens that chose it; C and F are the widths, rows are padded as operands
// are.
struct ExpertGradient {
  const BackwardJob& job;
  const ExpertsBackwardArgs& args = *job.args;
  const int64_t e, from = job.starts[e], m = job.starts[e + 1] - from;
  const Dtype dtype = args.dtype;
  const int64_t size = size_of(dtype), C = args.hidden_size, F = args.intermediate_size;
  const int64_t wide_c = padded(C), wide_f = padded(F), wide_m = padded(m);
  Arena arena;

  float* sums = arena.take<float>(kSumRows * kPanel);
  uint8_t *x = zeros(m, wide_c), *d = zeros(m, wide_c),
          *d_transposed = zeros(C, wide_m);  // transposed: weight d
  float *g = arena.take<float>(m * F), *u = arena.take<float>(m * F);
  uint8_t *h = zeros(m, wide_f), *dg = zeros(m, wide_f), *du = zeros(m, wide_f);
  uint8_t *dg_transposed = zeros(F, wide_m), *du_transposed = zeros(F, wide_m);
  uint8_t* const packed_here = arena.next;  // each step packs what it multiplies from here on

  static int64_t bytes(const ExpertsBackwardArgs& args, int64_t m) {
    const int64_t c = round_up(args.hidden_size, 32) + 16,
                  f = round_up(args.intermediate_size, 32) + 16, t = round_up(m, 32);
    return 4 * (5 * c * f + t * (5 * c + 10 * f) + kSumRows * kPanel) + 65536;
  }

  ExpertGradient(const BackwardJob& job, int64_t e, int thread)
      : job(job),
        e(e),
        arena{(uint8_t*)fulmen::scratch(
            thread, 3, size_t(bytes(*job.args, job.starts[e + 1] - job.starts[e])))} {}

  int64_t padded(int64_t k) const { return dtype == fulmen::kFloat32 ? k : round_up(k, 32); }

  uint8_t* zeros(int64_t rows, int64_t width) {
    uint8_t* p = arena.take<uint8_t>(rows * width * size);
    memset(p, 0, size_t(rows * width * size));
    return p;
  }

  void gather() {
    for (int64_t i = 0; i < m; ++i) {
      const int64_t token = job.tokens[from + i];
      memcpy(x + i * wide_c * size, (const uint8_t*)args.x + token * C * size, size_t(C * size));
      memcpy(d + i * wide_c * size, (const uint8_t*)args.dout + token * C * size, size_t(C * size));
    }
    transpose_rows(0, m, C, d_transposed, wide_m, dtype, [&](int64_t r, int64_t c, int n) {
      return mul(set1(job.weights[from + r]), read(d, r * wide_c + c, n, dtype));
    });
  }

  // g, u, h again, and the gradients of g, u and the token's weight
  void hidden() {
    const Matrix w1 = packed(args.w1[e], dtype, F, C, C, 1, arena),
                 w3 = packed(args.w3[e], dtype, F, C, C, 1, arena);
    const Matrix w2 = packed(args.w2[e], dtype, F, C, 1, F, arena);  // (C, F) read by columns: d w2
    auto keep = [this](float* to) {
      return [this, to](int64_t r, int64_t c, int n, const float* s) {
        memcpy(to + r * F + c, s, sizeof(float) * size_t(n));
      };
    };
    multiply(x, wide_c * size, m, w1, dtype, sums, keep(g));
    multiply(x, wide_c * size, m, w3, dtype, sums, keep(u));
    for (int64_t i = 0; i < m; ++i) args.dweights[job.places[from + i]] = 0.0f;
    multiply(d, wide_c * size, m, w2, dtype, sums,
             [&](int64_t r, int64_t c, int n, const float* s) {
               V weight_gradient = zero();
               for (int i = 0; i < n; i += kLanes) {
                 const int some = int(least(kLanes, n - i));
                 const int64_t at = r * F + c + i, place = r * wide_f + c + i;
                 const V gate = load_n(g + at, some), up = load_n(u + at, some),
                         share = sigmoid(gate), swish = mul(gate, share);
                 const V hidden = mul(swish, up), error = load_n(s + i, some);
                 write(h, place, some, dtype, hidden);
                 weight_gradient =
                     fma(error, first_of(some, rounded(hidden, dtype), zero()), weight_gradient);
                 const V dh = mul(set1(job.weights[from + r]), error);
                 const V derivative = mul(share, fma(gate, sub(set1(1.0f), share), set1(1.0f)));
                 write(dg, place, some, dtype, mul(mul(dh, up), derivative));
                 write(du, place, some, dtype, mul(dh, swish));
               }
               args.dweights[job.places[from + r]] += sum(weight_gradient);
             });
    transpose(dg, m, F, wide_f, dg_transposed, wide_m, dtype);
    transpose(du, m, F, wide_f, du_transposed, wide_m, dtype);
  }

  // this expert's share of dx, a row for each of its pairs
  void inputs() {
    arena.next = packed_here;
    const Matrix w1 = packed(args.w1[e], dtype, C, F, 1, C, arena),
                 w3 = packed(args.w3[e], dtype, C, F, 1, C, arena);
    multiply(dg, wide_f * size, m, w1, dtype, sums,
             [&](int64_t r, int64_t c, int n, const float* s) {
               memcpy(job.dx_pairs + job.places[from + r] * C + c, s, sizeof(float) * size_t(n));
             });
    multiply(du, wide_f * size, m, w3, dtype, sums,
             [&](int64_t r, int64_t c, int n, const float* s) {
               float* to = job.dx_pairs + job.places[from + r] * C + c;
               for (int i = 0; i < n; i += kLanes) {
                 const int some = int(least(kLanes, n - i));
                 store_n(to + i, add(load_n(to + i, some), load_n(s + i, some)), some);
               }
             });
  }

  void matrices() {
    arena.next = packed_here;
    const Matrix x_columns = packed(x, dtype, C, m, 1, wide_c, arena),
                 h_columns = packed(h, dtype, F, m, 1, wide_f, arena);
    auto put = [this](void* to, int64_t width) {
      return [this, to, width](int64_t r, int64_t c, int n, const float* s) {
        write_row(s, n, fulmen::kNone, (uint8_t*)to + (r * width + c) * size, dtype);
      };
    };
    multiply(dg_transposed, wide_m * size, F, x_columns, dtype, sums, put(args.dw1[e], C));
    multiply(du_transposed, wide_m * size, F, x_columns, dtype, sums, put(args.dw3[e], C));
    multiply(d_transposed, wide_m * size, C, h_columns, dtype, sums, put(args.dw2[e], F));
  }
};

static void backward_task(void* context, int64_t e, int thread) {
  const BackwardJob& job = *(const BackwardJob*)context;
  const ExpertsBackwardArgs& args = *job.args;
  if (job.starts[e] == job.starts[e + 1]) {
    const size_t bytes =
        size_t(args.intermediate_size) * size_t(args.hidden_size) * size_t(size_of(args.dtype));
    memset(args.dw1[e], 0, bytes);
    memset(args.dw2[e], 0, bytes);
    memset(args.dw3[e], 0, bytes);
    return;
  }
  ExpertGradient expert(job, e, thread);
  expert.gather();
  expert.hidden();
  expert.inputs();
  expert.matrices();
}

static void reduce_task(void* context, int64_t task, int) {
  const BackwardJob& job = *(const BackwardJob*)context;
  const ExpertsBackwardArgs& args = *job.args;
  const int64_t C = args.hidden_size;
  for (int64_t t = task * kNormRows; t < least(args.rows, (task + 1) * kNormRows); ++t)
    for (int64_t c = 0; c < C; c += kLanes) {
      const int n = int(least(kLanes, C - c));
      V total = zero();
      for (int k = 0; k < args.top_k; ++k)
        total = add(total, load_n(job.dx_pairs + (t * args.top_k + k) * C + c, n));
      write(args.dx, t * C + c, n, args.dtype, total);
    }
}

static void experts_backward(const ExpertsBackwardArgs& args) {
  const int64_t pairs = args.rows * args.top_k;
  const int64_t gradient_bytes = round_up(pairs * args.hidden_size * 4, 64);
  uint8_t* memory = (uint8_t*)fulmen::scratch(
      0, 2, size_t(gradient_bytes + (args.num_experts + 1) * 8 + pairs * 16));
  BackwardJob job{};
  job.args = &args;
  job.dx_pairs = (float*)memory;
  job.starts = (int64_t*)(memory + gradient_bytes);
  job.places = job.starts + args.num_experts + 1;
  job.tokens = (int32_t*)(job.places + pairs);
  job.weights = (float*)(job.tokens + pairs);
  ExpertsArgs forward{};
  forward.rows = args.rows;
  forward.top_k = args.top_k;
  forward.num_experts = args.num_experts;
  forward.ids = args.ids;
  forward.weights = args.weights;
  group_pairs(forward, job.starts, job.tokens, job.weights, job.places);
  fulmen::parallel(args.num_experts, backward_task, &job);
  fulmen::parallel((args.rows + kNormRows - 1) / kNormRows, reduce_task, &job);
}

}  // namespace ISA
