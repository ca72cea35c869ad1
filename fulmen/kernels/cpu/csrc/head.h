// The head without its logits: log of the sum of exponentials, some rows' targets, the best few.
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
};

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
      job.sums[cell] = merged(job.sums[cell], {top, sum(total)});
      if (k > 0 && (top > job.values[cell * k + k - 1] || job.ids[cell * k + k - 1] < 0))
        for (int i = 0; i < n; ++i)
          offer(logits[i], column + i, k, job.values + cell * k, job.ids + cell * k);
      if (args.targets != nullptr && args.targets[row] >= column && args.targets[row] < column + n)
        args.target_logits[row] = logits[args.targets[row] - column];
    }
  }
}

static void merge_task(void* context, int64_t row, int) {
  const HeadJob& job = *(const HeadJob*)context;
  const HeadArgs& args = *job.args;
  const int k = args.top_k;
  LogSum total{-__builtin_inff(), 0.0f};
  for (int i = 0; i < k; ++i) {
    args.top_logits[row * k + i] = -__builtin_inff();
    args.top_ids[row * k + i] = -1;
  }
  for (int64_t s = 0; s < job.segments; ++s) {
    const int64_t cell = row * job.segments + s;
    total = merged(total, job.sums[cell]);
    for (int i = 0; i < k && job.ids[cell * k + i] >= 0; ++i)
      offer(job.values[cell * k + i], job.ids[cell * k + i], k, args.top_logits + row * k,
            args.top_ids + row * k);
  }
  args.logsumexp[row] = float(double(total.most) + __builtin_log(double(total.sum)));
}

static void head(const HeadArgs& args) {
  HeadJob job{};
  job.args = &args;
  job.o = operand_for(args.w, args.x_dtype, args.input_bits);
  job.segments = (args.w.n + kSegment - 1) / kSegment;
  const int64_t cells = args.rows * job.segments;
  uint8_t* memory = (uint8_t*)fulmen::scratch(0, 2, size_t(cells * (8 + 12 * args.top_k) + 64));
  job.sums = (LogSum*)memory;
  job.ids = (int64_t*)(memory + cells * 8);
  job.values = (float*)(job.ids + cells * args.top_k);
  job.x = prepare(args.x, args.x_dtype, args.rows, args.x_stride, args.w, job.o, 0);
  fulmen::parallel((args.rows + kSumRows - 1) / kSumRows * job.segments, head_task, &job);
  fulmen::parallel(args.rows, merge_task, &job);
}

}  // namespace ISA
