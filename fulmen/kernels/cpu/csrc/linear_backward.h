// Gradient of an activation's input, as it is and transposed; two products do the rest of a linear
// layer's gradients.
#pragma once

#include "linear.h"
#include "transpose.h"

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
  transpose_rows(row, rows, args.n, args.dz_transposed, args.stride, args.dtype,
                 [&](int64_t r, int64_t c, int n) {
                   const int64_t place = r * args.n + c;
                   V dz = read(args.dy, place, n, args.dy_dtype);
                   if (args.sums != nullptr)
                     dz = mul(dz,
                              derivative(read(args.sums, place, n, args.dtype), args.activation));
                   if (args.dz != nullptr) write(args.dz, place, n, args.dtype, dz);
                   return dz;
                 });
}

static void activation_backward(const ActivationBackwardArgs& args) {
  ActivationBackwardArgs job = args;
  fulmen::parallel((args.rows + kBackwardRows - 1) / kBackwardRows, activation_backward_task, &job);
}

}  // namespace ISA
