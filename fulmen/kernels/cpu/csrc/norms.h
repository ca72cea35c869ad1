// Row by row: RMSNorm, the residual before it, the gate after it, and the choice of experts.
#pragma once

#include "kernels.h"
#include "pool.h"
#include "vec.h"

namespace ISA {

using fulmen::Dtype;
using fulmen::NormArgs;
using fulmen::RouteArgs;

static inline V rounded(V v, Dtype dtype) {
  if (dtype == fulmen::kFloat32) return v;
  uint16_t half[kLanes];
  store(half, v);
  return load(half);
}

constexpr int kNormRows = 2;

static void norm_task(void* context, int64_t task, int) {
  const NormArgs& args = *(const NormArgs*)context;
  const int64_t size = size_of(args.dtype), width = args.width;
  for (int64_t r = task * kNormRows; r < least(args.rows, (task + 1) * kNormRows); ++r) {
    const uint8_t* x = (const uint8_t*)args.x + r * args.x_stride * size;
    uint8_t* out = (uint8_t*)args.out + r * width * size;
    if (args.branch != nullptr) {
      const uint8_t* branch = (const uint8_t*)args.branch + r * width * size;
      uint8_t* stream = (uint8_t*)args.stream + r * width * size;
      for (int64_t i = 0; i < width; i += kLanes) {
        const int n = int(least(kLanes, width - i));
        V added = mul(set1(args.beta), read(branch, i, n, args.dtype));
        write(stream, i, n, args.dtype, fma(set1(args.alpha), read(x, i, n, args.dtype), added));
      }
      x = stream;
      if (args.weight == nullptr) continue;
    }
    V squares = zero();
    for (int64_t i = 0; i < width; i += kLanes) {
      V v = read(x, i, int(least(kLanes, width - i)), args.dtype);
      squares = fma(v, v, squares);
    }
    const V scale = set1(1.0f / __builtin_sqrtf(sum(squares) / float(width) + args.eps));
    const uint8_t* gate =
        args.gate == nullptr ? nullptr : (const uint8_t*)args.gate + r * args.gate_stride * size;
    for (int64_t i = 0; i < width; i += kLanes) {
      const int n = int(least(kLanes, width - i));
      V v = mul(read(args.weight, i, n, args.dtype),
                rounded(mul(read(x, i, n, args.dtype), scale), args.dtype));
      if (gate != nullptr) v = mul(v, sigmoid(read(gate, i, n, args.dtype)));
      write(out, i, n, args.dtype, v);
    }
  }
}

static void norm(const NormArgs& args) {
  NormArgs job = args;
  fulmen::parallel((args.rows + kNormRows - 1) / kNormRows, norm_task, &job);
}

constexpr int kRouteRows = 4;

// scores of one token, sigmoid or softmax, then the best of scores + bias; ties to the lower index
static inline void route_row(const RouteArgs& args, int64_t t, float* scores, float* choice) {
  const float* logits = args.logits + t * args.num_experts;
  const int n = args.num_experts;
  if (args.is_sigmoid) {
    for (int e = 0; e < n; e += kLanes)
      store_n(scores + e, sigmoid(load_n(logits + e, n - e)), n - e);
  } else {
    V most = set1(-__builtin_inff());
    for (int e = 0; e < n; e += kLanes)
      most = max(most, first_of(n - e, load_n(logits + e, n - e), most));
    const V top = set1(largest(most));
    V total = zero();
    for (int e = 0; e < n; e += kLanes) {
      V p = first_of(n - e, exp(sub(load_n(logits + e, n - e), top)), zero());
      store_n(scores + e, p, n - e);
      total = add(total, p);
    }
    const V denominator = set1(sum(total));
    for (int e = 0; e < n; e += kLanes)
      store_n(scores + e, div(load_n(scores + e, n - e), denominator), n - e);
  }
  for (int e = 0; e < n; ++e)
    choice[e] = args.bias == nullptr ? scores[e] : scores[e] + args.bias[e];
  float total = 0.0f;
  float* weights = args.weights + t * args.top_k;
  int64_t* ids = args.ids + t * args.top_k;
  for (int k = 0; k < args.top_k; ++k) {
    int best = -1;
    for (int e = 0; e < n; ++e) {
      bool taken = false;  // a NaN is no candidate until nothing else is left
      for (int j = 0; j < k; ++j) taken = taken || ids[j] == e;
      if (!taken && (best < 0 || choice[e] > choice[best] ||
                     (choice[best] != choice[best] && choice[e] == choice[e])))
        best = e;
    }
    ids[k] = best;
    weights[k] = scores[best];
    total += scores[best];
  }
  for (int k = 0; k < args.top_k; ++k) weights[k] /= total;
}

static void route_task(void* context, int64_t task, int thread) {
  const RouteArgs& args = *(const RouteArgs*)context;
  float* scores = (float*)fulmen::scratch(thread, 1, sizeof(float) * 2 * size_t(args.num_experts));
  for (int64_t t = task * kRouteRows; t < least(args.rows, (task + 1) * kRouteRows); ++t)
    route_row(args, t, scores, scores + args.num_experts);
}

static void route(const RouteArgs& args) {
  RouteArgs job = args;
  fulmen::parallel((args.rows + kRouteRows - 1) / kRouteRows, route_task, &job);
}

}  // namespace ISA
