// Gradient of an activation's input; two products do the rest of a linear layer's gradients.
#pragma once

#include "linear.h"

namespace ISA {

using fulmen::ActivationBackwardArgs;

constexpr int64_t kBackwardRows = 64;  // of a task

static inline V derivative(V sum, fulmen::Activation activation) {
  const V share = sigmoid(sum), rest = sub(set1(1.0f), share);
  return mul(share, activation == fulmen::kSilu ? fma(sum, rest, set1(1.0f)) : rest);
}

static void activation_backward_task(void* context, int64_t task, int) {
  const ActivationBackwardArgs& args = *(const ActivationBackwardArgs*)context;
  const int64_t row = task * kBackwardRows, rows = least(kBackwardRows, args.rows - row);
  for (int64_t i = row * args.n; i < (row + rows) * args.n; i += kLanes) {
    const int n = int(least(kLanes, (row + rows) * args.n - i));
    const V slope = derivative(read(args.sums, i, n, args.dtype), args.activation);
    write(args.dz, i, n, args.dtype, mul(read(args.dy, i, n, args.dy_dtype), slope));
  }
}

static void activation_backward(const ActivationBackwardArgs& args) {
  ActivationBackwardArgs job = args;
  fulmen::parallel((args.rows + kBackwardRows - 1) / kBackwardRows, activation_backward_task, &job);
}

}  // namespace ISA
