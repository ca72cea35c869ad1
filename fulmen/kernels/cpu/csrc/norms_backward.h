// Gradients of RMSNorm, the residual before it and the gate after it; and of the choice of experts.
//
// With n = r s, r = 1 / sqrt(mean(s^2) + eps), out = share weight n and the gradient d of out:
//   dn = d share weight,  ds = r (dn - n mean(dn n)) + what reaches s without the norm
//   dx = alpha ds,  dbranch = beta ds,  dweight = sum over rows of d share n
#pragma once

#include "norms.h"

namespace ISA {

using fulmen::NormBackwardArgs;
using fulmen::RouteBackwardArgs;

static inline float sigmoid_of(float x) {
  float lanes[kLanes];
  store(lanes, sigmoid(set1(x)));
  return lanes[0];
}

constexpr int64_t kNormBackwardRows = 64;  // of a task, whose part of dweight is added up apart

struct NormBackwardJob {
  const NormBackwardArgs* args;
  float* parts;  // (tasks, width)
  int64_t tasks;
};

static void norm_backward_task(void* context, int64_t task, int thread) {
  const NormBackwardJob& job = *(const NormBackwardJob*)context;
  const NormBackwardArgs& args = *job.args;
  const int64_t width = args.width, size = size_of(args.dtype), begin = task * kNormBackwardRows;
  float* part = job.parts + task * width;
  float* dn = (float*)fulmen::scratch(thread, 1, size_t(round_up(width, kLanes)) * sizeof(float));
  if (args.dweight != nullptr) memset(part, 0, size_t(width) * sizeof(float));
  for (int64_t row = begin; row < least(args.rows, begin + kNormBackwardRows); ++row) {
    const uint8_t* s = (const uint8_t*)args.stream + row * args.stream_stride * size;
    V squares = zero(), dots = zero();
    for (int64_t i = 0; i < width; i += kLanes) {
      const V v = read(s, i, int(least(kLanes, width - i)), args.dtype);
      squares = fma(v, v, squares);
    }
    const V scale = set1(1.0f / __builtin_sqrtf(sum(squares) / float(width) + args.eps));
    for (int64_t i = 0; i < width; i += kLanes) {
      const int n = int(least(kLanes, width - i));
      const int64_t place = row * width + i;
      const V unit = mul(read(s, i, n, args.dtype), scale),
              weight = read(args.weight, i, n, args.dtype);
      V d = read(args.dout, place, n, args.dtype);
      if (args.gate != nullptr) {
        const V share = sigmoid(read(args.gate, place, n, args.dtype));
        const V rest = mul(share, sub(set1(1.0f), share));
        if (args.dgate != nullptr)
          write(args.dgate, place, n, args.dtype, mul(mul(d, rest), mul(weight, unit)));
        d = mul(d, share);
      }
      if (args.dweight != nullptr) store_n(part + i, fma(d, unit, load_n(part + i, n)), n);
      d = mul(d, weight);
      store(dn + i, d);
      dots = fma(d, unit, dots);
    }
    if (args.dx == nullptr && args.dbranch == nullptr) continue;
    const V mean = set1(sum(dots) / float(width)), alpha = set1(args.alpha), beta = set1(args.beta);
    for (int64_t i = 0; i < width; i += kLanes) {
      const int n = int(least(kLanes, width - i));
      const int64_t place = row * width + i;
      const V unit = mul(read(s, i, n, args.dtype), scale);
      V ds = mul(scale, sub(load(dn + i), mul(unit, mean)));
      if (args.dstream != nullptr) ds = add(ds, read(args.dstream, place, n, args.dtype));
      if (args.dx != nullptr) write(args.dx, place, n, args.dtype, mul(alpha, ds));
      if (args.dbranch != nullptr) write(args.dbranch, place, n, args.dtype, mul(beta, ds));
    }
  }
}

static void norm_weights_task(void* context, int64_t task, int) {
  const NormBackwardJob& job = *(const NormBackwardJob*)context;
  const int64_t width = job.args->width, i = task * kLanes;
  const int n = int(least(kLanes, width - i));
  V total = zero();
  for (int64_t t = 0; t < job.tasks; ++t) total = add(total, load_n(job.parts + t * width + i, n));
  store_n(job.args->dweight + i, total, n);
}

static void norm_backward(const NormBackwardArgs& args) {
  NormBackwardJob job{&args, nullptr, (args.rows + kNormBackwardRows - 1) / kNormBackwardRows};
  job.parts = (float*)fulmen::scratch(0, 2, size_t(job.tasks * args.width) * sizeof(float));
  fulmen::parallel(job.tasks, norm_backward_task, &job);
  if (args.dweight != nullptr)
    fulmen::parallel((args.width + kLanes - 1) / kLanes, norm_weights_task, &job);
}

// A weight is w = s / W, W the sum of the chosen scores s. Of a softmax the denominator cancels, so
// with g the gradient of the weights and m = sum of g w:
//   softmax  dlogit = w (g - m),   sigmoid  dlogit = (g - m) / W s (1 - s);   0 for all not chosen
static void route_backward_task(void* context, int64_t task, int) {
  const RouteBackwardArgs& args = *(const RouteBackwardArgs*)context;
  for (int64_t t = task * kRouteRows; t < least(args.rows, (task + 1) * kRouteRows); ++t) {
    const float* logits = args.logits + t * args.num_experts;
    float* out = args.dlogits + t * args.num_experts;
    const float *w = args.weights + t * args.top_k, *g = args.dweights + t * args.top_k;
    const int64_t* ids = args.ids + t * args.top_k;
    memset(out, 0, sizeof(float) * size_t(args.num_experts));
    float mean = 0.0f, total = 0.0f;
    for (int k = 0; k < args.top_k; ++k) {
      mean += g[k] * w[k];
      if (args.is_sigmoid) total += sigmoid_of(logits[ids[k]]);
    }
    for (int k = 0; k < args.top_k; ++k) {
      const float score = args.is_sigmoid ? sigmoid_of(logits[ids[k]]) : 0.0f;
      out[ids[k]] = (g[k] - mean) * (args.is_sigmoid ? score * (1.0f - score) / total : w[k]);
    }
  }
}

static void route_backward(const RouteBackwardArgs& args) {
  RouteBackwardArgs job = args;
  fulmen::parallel((args.rows + kRouteRows - 1) / kRouteRows, route_backward_task, &job);
}

}  // namespace ISA
