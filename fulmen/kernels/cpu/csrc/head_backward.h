// The gradient of the logits behind log-probabilities of targets: the logits are made again, panel
// by panel, and only their gradient is written, as it is and transposed.
#pragma once

#include "head.h"
#include "linear.h"
#include "transpose.h"

namespace ISA {

using fulmen::HeadBackwardArgs;

struct HeadBackwardJob {
  const HeadBackwardArgs* args;
  Operand o;
  Rows x;
};

static void head_backward_task(void* context, int64_t task, int thread) {
  const HeadBackwardJob& job = *(const HeadBackwardJob*)context;
  const HeadBackwardArgs& args = *job.args;
  const int64_t all = panels(args.w), block = task % all * kPanelBlocks, column = block * kLanes;
  const int64_t first_row = task / all * kSumRows, rows = least(kSumRows, args.rows - first_row);
  const int blocks = int(least(kPanelBlocks, num_blocks(args.w) - block));
  const int columns = int(least(blocks * kLanes, args.w.n - column));
  const uint8_t* x[kSumRows];
  for (int64_t r = 0; r < rows; ++r) x[r] = job.x.data + (first_row + r) * job.x.bytes;
  float* c = (float*)fulmen::scratch(thread, 1, sizeof(float) * kSumRows * kPanel);
  panel(x, rows, job.o, args.w, block, blocks, c, nullptr);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = first_row + r, target = args.targets[row] - column;
    const V logsumexp = set1(args.logsumexp[row]), gradient = set1(args.gradient[row]);
    float* logits = c + r * kPanel;
    for (int i = 0; i < columns; i += kLanes)
      store(logits + i, mul(sub(zero(), exp(sub(load(logits + i), logsumexp))), gradient));
    if (target >= 0 && target < columns) logits[target] += args.gradient[row];
  }
  const int64_t size = size_of(args.dtype);
  uint8_t* error = (uint8_t*)args.error + (first_row * args.w.n + column) * size;
  uint8_t* transposed = (uint8_t*)args.error_transposed + (column * args.stride + first_row) * size;
  transpose_rows(0, rows, columns, transposed, args.stride, args.dtype,
                 [&](int64_t r, int64_t i, int n) {
                   const V value = load(c + r * kPanel + i);
                   write(error, r * args.w.n + i, n, args.dtype, value);
                   return value;
                 });
}

static void head_backward(const HeadBackwardArgs& args) {
  HeadBackwardJob job{&args, operand_for(args.w, args.x_dtype, 16), {}};
  job.x = prepare(args.x, args.x_dtype, args.rows, args.x_stride, args.w, job.o, 0);
  fulmen::parallel((args.rows + kSumRows - 1) / kSumRows * panels(args.w), head_backward_task,
                   &job);
}

}  // namespace ISA
