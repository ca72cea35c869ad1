// The gradient of the logits behind log-probabilities of targets. The logits come from the forward
// pass, or are made again panel by panel and never written.
#pragma once

#include "head.h"
#include "linear.h"

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
  float* c = (float*)fulmen::scratch(thread, 1, sizeof(float) * kSumRows * kPanel);
  if (args.logits == nullptr) {
    const uint8_t* x[kSumRows];
    for (int64_t r = 0; r < rows; ++r) x[r] = job.x.data + (first_row + r) * job.x.bytes;
    panel(x, rows, job.o, args.w, block, blocks, c, nullptr);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = first_row + r, target = args.targets[row] - column;
    const float* logits =
        args.logits == nullptr ? c + r * kPanel : args.logits + row * args.logits_stride + column;
    const V logsumexp = set1(args.logsumexp[row]), gradient = set1(args.gradient[row]);
    float errors[kPanel];
    for (int i = 0; i < columns; i += kLanes) {
      const V logit = load_n(logits + i, int(least(kLanes, columns - i)));
      store(errors + i, mul(sub(zero(), exp(sub(logit, logsumexp))), gradient));
    }
    if (target >= 0 && target < columns) errors[target] += args.gradient[row];
    for (int i = 0; i < columns; i += kLanes)
      write(args.error, row * args.error_stride + column + i, int(least(kLanes, columns - i)),
            args.dtype, load(errors + i));
  }
}

static void head_backward(const HeadBackwardArgs& args) {
  HeadBackwardJob job{&args, operand_for(args.w, args.x_dtype, 16), {}};
  if (args.logits == nullptr)
    job.x = prepare(args.x, args.x_dtype, args.rows, args.x_stride, args.w, job.o, 0);
  fulmen::parallel((args.rows + kSumRows - 1) / kSumRows * panels(args.w), head_backward_task,
                   &job);
}

}  // namespace ISA
