// The head without its logits: log of the sum of exponentials, some rows' targets, the best few,
// the entropy, and a column drawn from all.
//
// The vocabulary is cut into segments of fixed width, each a task; a row's segments are merged in
// their order, so threads and company change nothing.
#pragma once

#include "kernels.h"
#include "linear.h"
#include "pool.h"
#include "product.h"
#include "vec.h"

namespace ISA {

using fulmen::HeadArgs;

constexpr int kSegmentPanels = 16;
constexpr int64_t kSegment = kSegmentPanels * kPanel;  // columns

static inline float exp_of(float x) {
  float lanes[kLanes];
  store(lanes, exp(set1(x)));
  return lanes[0];
}

// A running maximum m and sum of exp(x - m).
struct LogSum {
  float most, sum;
};

static inline LogSum merged(LogSum a, LogSum b) {
  if (b.most > a.most) return {b.most, a.sum * exp_of(a.most - b.most) + b.sum};
  if (b.sum == 0) return a;
  return {a.most, a.sum + b.sum * exp_of(b.most - a.most)};
}

// The sum of exp(x - m) (x - m) of two parts, m the larger maximum; those of the parts are x and y.
static inline float merged_dot(LogSum a, float x, LogSum b, float y) {
  if (a.sum == 0) return y;
  if (b.sum == 0) return x;
  const float gap = a.most - b.most;
  if (gap < 0) return exp_of(gap) * (x + a.sum * gap) + y;
  return x + exp_of(-gap) * (y - b.sum * gap);
}

// Keeps the k best of what it is shown, best first; equal values in the order they came, and a NaN
// as if it were -inf: its row's sum says that it was there.
static inline void offer(float value, int64_t id, int k, float* values, int64_t* ids) {
  if (value != value) value = -__builtin_inff();
  if (!(value > values[k - 1]) && ids[k - 1] >= 0) return;
  int place = k - 1;
  while (place > 0 && (ids[place - 1] < 0 || value > values[place - 1])) {
    values[place] = values[place - 1];
    ids[place] = ids[place - 1];
    --place;
  }
  values[place] = value;
  ids[place] = id;
}

struct HeadJob {
  const HeadArgs* args;
  Operand o;
  Rows x;
  int64_t segments;
  LogSum* sums;   // (rows, segments)
  float* values;  // (rows, segments, top_k)
  int64_t* ids;
  float* dots;      // (rows, segments) or null; see merged_dot
  LogSum* weights;  // (rows, panels) or null; of scale times the logits, but most is a logit
};

// The sum of exp(scale (x - top)) over n logits.
static inline float sum_of_weights(const float* logits, int n, float top, float scale) {
  V total = zero();
  for (int i = 0; i < n; i += kLanes) {
    const V weight = exp(mul(sub(load(logits + i), set1(top)), set1(scale)));
    total = add(total, first_of(n - i, weight, zero()));
  }
  return sum(total);
}

static void head_task(void* context, int64_t task, int thread) {
  const HeadJob& job = *(const HeadJob*)context;
  const HeadArgs& args = *job.args;
  const int k = args.top_k;
  const int64_t segment = task % job.segments;
  const int64_t first_row = task / job.segments * kSumRows,
                rows = least(kSumRows, args.rows - first_row);
  const uint8_t* x[kSumRows];
  for (int64_t r = 0; r < rows; ++r) x[r] = job.x.data + (first_row + r) * job.x.bytes;
  float* c = (float*)fulmen::scratch(thread, 1, sizeof(float) * kSumRows * kPanel);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t cell = (first_row + r) * job.segments + segment;
    job.sums[cell] = {-__builtin_inff(), 0.0f};
    if (job.dots != nullptr) job.dots[cell] = 0.0f;
    for (int i = 0; i < k; ++i) {
      job.values[cell * k + i] = -__builtin_inff();
      job.ids[cell * k + i] = -1;
    }
  }
  const int64_t end = least((segment + 1) * kSegment, args.w.n);
  for (int64_t column = segment * kSegment; column < end; column += kPanel) {
    const int n = int(least(kPanel, end - column)), blocks = (n + kLanes - 1) / kLanes;
    const int64_t next =
        column + kPanel < end ? column + kPanel : (segment + fulmen::num_threads()) * kSegment;
    panel(x, rows, job.o, args.w, column / kLanes, blocks, c, panel_data(args.w, next / kPanel));
    for (int64_t r = 0; r < rows; ++r) {
      const float* logits = c + r * kPanel;
      const int64_t row = first_row + r, cell = row * job.segments + segment;
      if (args.logits != nullptr)
        memcpy(args.logits + row * args.logits_stride + column, logits, sizeof(float) * size_t(n));
      const V nothing = set1(-__builtin_inff());
      V most = nothing;
      for (int i = 0; i < n; i += kLanes)
        most = max(first_of(n - i, load(logits + i), nothing), most);
      const float top = largest(most);
      const V base =
          set1(top > -__builtin_inff() ? top : 0.0f);  // where all are -inf, their sum is 0
      V total = zero();
      for (int i = 0; i < n; i += kLanes)
        total = add(total, first_of(n - i, exp(sub(load(logits + i), base)), zero()));
      const LogSum here{top, sum(total)};
      if (job.dots != nullptr) {
        V dot = zero();
        for (int i = 0; i < n; i += kLanes) {
          // exp is 0 from there on; NaN stays NaN, see exp
          const V gap = max(set1(-128.0f), sub(load(logits + i), base));
          dot = add(dot, first_of(n - i, mul(exp(gap), gap), zero()));
        }
        job.dots[cell] = merged_dot(job.sums[cell], job.dots[cell], here, sum(dot));
      }
      job.sums[cell] = merged(job.sums[cell], here);
      const float scale = job.weights != nullptr ? args.scales[row] : 0.0f;
      if (scale != 0.0f) {
        LogSum& kept = job.weights[row * panels(args.w) + column / kPanel];
        kept = here;
        if (scale != 1.0f && here.sum > 0) kept.sum = sum_of_weights(logits, n, top, scale);
      }
      if (k > 0 && (top > job.values[cell * k + k - 1] || job.ids[cell * k + k - 1] < 0))
        for (int i = 0; i < n; ++i)
          offer(logits[i], column + i, k, job.values + cell * k, job.ids + cell * k);
      if (args.targets != nullptr && args.targets[row] >= column && args.targets[row] < column + n)
        args.target_logits[row] = logits[args.targets[row] - column];
    }
  }
}

// Draws a row's column: first its panel, by the sums of the panels, then the column in the panel,
// whose logits are computed again.
static void draw(const HeadJob& job, int64_t row, int thread) {
  const HeadArgs& args = *job.args;
  const float scale = args.scales[row];
  const int64_t all = panels(args.w);
  LogSum* weights = job.weights + row * all;
  float top = -__builtin_inff();
  for (int64_t p = 0; p < all; ++p) top = weights[p].most > top ? weights[p].most : top;
  double total = 0;
  for (int64_t p = 0; p < all; ++p) {
    weights[p].sum *= exp_of((weights[p].most - top) * scale);
    total += weights[p].sum;
  }
  const double wanted = args.uniforms[row] * total;
  int64_t chosen = -1;  // the last panel with any weight, if rounding carries the sum beyond it
  double seen = 0, before = 0;
  for (int64_t p = 0; p < all && seen <= wanted; ++p) {
    if (!(weights[p].sum > 0)) continue;
    chosen = p;
    before = seen;
    seen += weights[p].sum;
  }
  args.drawn_ids[row] = 0;
  args.drawn_logits[row] = __builtin_nanf("");
  if (chosen < 0) return;  // no logit is finite
  float* logits = (float*)fulmen::scratch(thread, 1, sizeof(float) * kSumRows * kPanel);
  const int64_t column = chosen * kPanel;
  const int n = int(least(kPanel, args.w.n - column)), blocks = (n + kLanes - 1) / kLanes;
  const uint8_t* x = job.x.data + row * job.x.bytes;
  panel(&x, 1, job.o, args.w, column / kLanes, blocks, logits, panel_data(args.w, chosen));
  float each[kPanel];
  for (int i = 0; i < n; i += kLanes)
    store(each + i, exp(mul(sub(load(logits + i), set1(weights[chosen].most)), set1(scale))));
  const double factor = exp_of((weights[chosen].most - top) * scale);
  seen = before;
  for (int i = 0; i < n && seen <= wanted; ++i) {
    if (!(each[i] > 0)) continue;
    args.drawn_ids[row] = column + i;
    args.drawn_logits[row] = logits[i];
    seen += each[i] * factor;
  }
}

static void merge_task(void* context, int64_t row, int thread) {
  const HeadJob& job = *(const HeadJob*)context;
  const HeadArgs& args = *job.args;
  const int k = args.top_k;
  LogSum total{-__builtin_inff(), 0.0f};
  float dot = 0.0f;
  for (int i = 0; i < k; ++i) {
    args.top_logits[row * k + i] = -__builtin_inff();
    args.top_ids[row * k + i] = -1;
  }
  for (int64_t s = 0; s < job.segments; ++s) {
    const int64_t cell = row * job.segments + s;
    if (job.dots != nullptr) dot = merged_dot(total, dot, job.sums[cell], job.dots[cell]);
    total = merged(total, job.sums[cell]);
    for (int i = 0; i < k && job.ids[cell * k + i] >= 0; ++i)
      offer(job.values[cell * k + i], job.ids[cell * k + i], k, args.top_logits + row * k,
            args.top_ids + row * k);
  }
  const double log_sum = __builtin_log(double(total.sum));
  args.logsumexp[row] = float(double(total.most) + log_sum);
  if (job.dots != nullptr) {
    const double entropy = log_sum - double(dot) / double(total.sum);
    args.entropy[row] = entropy < 0 ? 0.0f : float(entropy);  // by rounding
  }
  if (job.weights != nullptr && args.scales[row] != 0.0f) draw(job, row, thread);
}

static void head(const HeadArgs& args) {
  HeadJob job{};
  job.args = &args;
  job.o = operand_for(args.w, args.x_dtype, args.input_bits);
  job.segments = (args.w.n + kSegment - 1) / kSegment;
  const int64_t cells = args.rows * job.segments;
  const int64_t num_dots = args.entropy == nullptr ? 0 : cells,
                num_weights = args.scales == nullptr ? 0 : args.rows * panels(args.w);
  const int64_t bytes = cells * (8 + 12 * args.top_k) + 4 * num_dots + 8 * num_weights + 64;
  uint8_t* memory = (uint8_t*)fulmen::scratch(0, 2, size_t(bytes));
  job.sums = (LogSum*)memory;
  job.ids = (int64_t*)(memory + cells * 8);
  job.values = (float*)(job.ids + cells * args.top_k);
  float* rest = job.values + cells * args.top_k;
  if (num_dots > 0) job.dots = rest;
  if (num_weights > 0) job.weights = (LogSum*)(rest + num_dots);
  job.x = prepare(args.x, args.x_dtype, args.rows, args.x_stride, args.w, job.o, 0);
  fulmen::parallel((args.rows + kSumRows - 1) / kSumRows * job.segments, head_task, &job);
  fulmen::parallel(args.rows, merge_task, &job);
}

}  // namespace ISA
