// The parts of softmax attention that need no vectors: storing pages and computing angles.
#include <math.h>
#include <string.h>

#include <algorithm>

#include "attention_args.h"
#include "pool.h"

namespace fulmen {
namespace {

constexpr int64_t kTokens = 64;  // of a task

float wide(float x) { return x; }
float wide(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}

// Stores an element as it is, or as code round(x / scale).
template <class T>
struct AsItIs {
  using Stored = T;
  AsItIs(const T*, int64_t, float*, int64_t) {}
  T operator()(T x) const { return x; }
};

template <class T>
struct AsCode {
  using Stored = int8_t;
  // The largest of a row becomes 127. A row with infinity or NaN has scale NaN, which stays
  // visible.
  AsCode(const T* row, int64_t dim, float* scales, int64_t place) {
    float largest = 0.0f, zero_or_nan = 0.0f;
    for (int64_t d = 0; d < dim; ++d) {
      largest = std::max(largest, fabsf(wide(row[d])));
      zero_or_nan += 0.0f * wide(row[d]);
    }
    finite = zero_or_nan == 0.0f;
    scales[place] = finite ? largest / 127.0f : NAN;
    scale = finite && largest > 1e-36f ? scales[place] : INFINITY;  // less is 0
  }
  int8_t operator()(T x) const {
    constexpr float integral =
        12582912.0f;  // 1.5 2^23: adding it rounds to an integer, ties to even
    return finite ? int8_t((wide(x) / scale + integral) - integral) : 0;
  }
  float scale;
  bool finite;
};

template <class T, class Store>
void write_some(const WriteArgs& args, int64_t task) {
  using Stored = typename Store::Stored;
  constexpr int64_t pair = sizeof(T) == 2 ? 2 : 1;
  const int64_t head = task % args.num_kv_heads, first = task / args.num_kv_heads * kTokens;
  const int64_t count = std::min(kTokens, args.num_tokens - first);
  const int64_t dim = args.head_dim, padded = padded_dim(dim);
  for (int64_t t = first; t < first + count; ++t) {
    const int64_t slot = args.slots[t], row = slot % kPage;
    const int64_t page = slot / kPage * args.num_kv_heads + head;
    const T* k =
        static_cast<const T*>(args.k) + t * args.k_token_stride + head * args.k_head_stride;
    const T* v =
        static_cast<const T*>(args.v) + t * args.v_token_stride + head * args.v_head_stride;
    Stored* k_to = static_cast<Stored*>(args.k_pages) + page * padded * kPage + row * pair;
    Stored* v_to = static_cast<Stored*>(args.v_pages) + page * padded * kPage +
                   row / pair * padded * pair + row % pair;
    const Store k_store(k, dim, args.k_scales, page * kPage + row),
        v_store(v, dim, args.v_scales, page * kPage + row);
    for (int64_t d = 0; d < dim; ++d) k_to[d / pair * kPage * pair + d % pair] = k_store(k[d]);
    for (int64_t d = 0; d < dim; ++d) v_to[d * pair] = v_store(v[d]);
  }
}

void write_task(void* context, int64_t task, int) {
  const WriteArgs& args = *static_cast<const WriteArgs*>(context);
  const bool codes = args.k_scales != nullptr;
  if (args.dtype == kBFloat16) {
    codes ? write_some<uint16_t, AsCode<uint16_t>>(args, task)
          : write_some<uint16_t, AsItIs<uint16_t>>(args, task);
  } else {
    codes ? write_some<float, AsCode<float>>(args, task)
          : write_some<float, AsItIs<float>>(args, task);
  }
}

// In double precision, so that what remains is one rounding to float32.
void angle_task(void* context, int64_t task, int) {
  const AngleArgs& args = *static_cast<const AngleArgs*>(context);
  const int64_t end = std::min((task + 1) * kTokens, args.num_tokens);
  for (int64_t t = task * kTokens; t < end; ++t) {
    for (int64_t j = 0; j < args.half; ++j) {
      const float angle = float(args.positions[t]) * args.frequencies[j];
      args.cos[t * args.half + j] = float(::cos(double(angle)));
      args.sin[t * args.half + j] = float(::sin(double(angle)));
    }
  }
}

int64_t tasks(int64_t num_tokens) { return (num_tokens + kTokens - 1) / kTokens; }

}  // namespace

void write_pages(const WriteArgs& args) {
  parallel(tasks(args.num_tokens) * args.num_kv_heads, write_task, const_cast<WriteArgs*>(&args));
}

void rotary_angles(const AngleArgs& args) {
  parallel(tasks(args.num_tokens), angle_task, const_cast<AngleArgs*>(&args));
}

}  // namespace fulmen
