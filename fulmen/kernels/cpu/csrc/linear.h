// Linear layers: packing of weights, and rows times a packed matrix.
#pragma once

#include "kernels.h"
#include "pool.h"
#include "product.h"
#include "vec.h"

namespace ISA {

using fulmen::LinearArgs;
using fulmen::PackArgs;

static inline int64_t panels(const Matrix& w) {
  return (num_blocks(w) + kPanelBlocks - 1) / kPanelBlocks;
}

// n values of a row of sums to their place, rounded once.
static inline void write_row(const float* sums, int n, fulmen::Activation activation, void* out,
                             Dtype dtype) {
  for (int i = 0; i < n; i += kLanes) {
    V v = load(sums + i);
    if (activation == fulmen::kSilu) v = mul(v, sigmoid(v));
    if (activation == fulmen::kSigmoid) v = sigmoid(v);
    const int some = int(least(kLanes, n - i));
    if (dtype == fulmen::kFloat32)
      store_n((float*)out + i, v, some);
    else
      store_n((uint16_t*)out + i, v, some);
  }
}

// Rows of x in an operand's layout, made by all threads where they cannot be read as they are.
struct Rows {
  const uint8_t* data;
  int64_t bytes;  // from row to row
};

struct PrepareJob {
  const void* x;
  Dtype dtype;
  int64_t rows, stride, k;
  Operand o;
  int group;
  uint8_t* out;
};

constexpr int kPrepareRows = 2;

static void prepare_task(void* context, int64_t task, int) {
  const PrepareJob& job = *(const PrepareJob*)context;
  for (int64_t r = task * kPrepareRows; r < least(job.rows, (task + 1) * kPrepareRows); ++r) {
    uint8_t* out = job.out + r * job.o.bytes;
    if (job.dtype == fulmen::kFloat32)
      prepare_row((const float*)job.x + r * job.stride, job.k, job.o, job.group, out);
    else
      prepare_row((const uint16_t*)job.x + r * job.stride, job.k, job.o, job.group, out);
  }
}

static Rows prepare(const void* x, Dtype dtype, int64_t rows, int64_t stride, const Matrix& w,
                    const Operand& o, int slot) {
  const int64_t size = size_of(dtype);
  if (is_ready(o, dtype, w.k)) return {(const uint8_t*)x, stride * size};
  const fulmen::Preparing timed;
  PrepareJob job{x,   dtype, rows,    stride,
                 w.k, o,     w.group, (uint8_t*)fulmen::scratch(0, slot, size_t(rows * o.bytes))};
  fulmen::parallel((rows + kPrepareRows - 1) / kPrepareRows, prepare_task, &job);
  return {job.out, o.bytes};
}

struct LinearJob {
  const LinearArgs* args;
  Operand o;
  Rows x;
};

static void linear_task(void* context, int64_t task, int thread) {
  const LinearJob& job = *(const LinearJob*)context;
  const LinearArgs& args = *job.args;
  const int64_t all = panels(args.w);
  const int64_t first_row = task / all * kSumRows, rows = least(kSumRows, args.rows - first_row);
  const int64_t block = task % all * kPanelBlocks;
  const int blocks = int(least(kPanelBlocks, num_blocks(args.w) - block));
  const uint8_t* x[kSumRows];
  for (int64_t r = 0; r < rows; ++r) x[r] = job.x.data + (first_row + r) * job.x.bytes;
  float* c = (float*)fulmen::scratch(thread, 1, sizeof(float) * kSumRows * kPanel);
  panel(x, rows, job.o, args.w, block, blocks, c,
        panel_data(args.w, task % all + fulmen::num_threads()));
  const int64_t column = block * kLanes;
  const int n = int(least(blocks * kLanes, args.w.n - column));
  const int64_t size = size_of(args.out_dtype);
  for (int64_t r = 0; r < rows; ++r) {
    uint8_t* out = (uint8_t*)args.out + ((first_row + r) * args.out_stride + column) * size;
    if (args.addend != nullptr)
      for (int i = 0; i < n; i += kLanes) {
        const V addend = read(args.addend, (first_row + r) * args.w.n + column + i,
                              int(least(kLanes, n - i)), args.out_dtype);
        float* sum = c + r * kPanel + i;
        store(sum, add(load(sum), addend));
      }
    write_row(c + r * kPanel, n, args.activation, out, args.out_dtype);
    if (args.sums == nullptr) continue;
    const int64_t sum_size = size_of(args.x_dtype);
    uint8_t* sums = (uint8_t*)args.sums + ((first_row + r) * args.w.n + column) * sum_size;
    write_row(c + r * kPanel, n, fulmen::kNone, sums, args.x_dtype);
  }
}

static void linear(const LinearArgs& args) {
  LinearJob job{&args, operand_for(args.w, args.x_dtype, args.input_bits), {}};
  job.x = prepare(args.x, args.x_dtype, args.rows, args.x_stride, args.w, job.o, 0);
  const int64_t row_blocks = (args.rows + kSumRows - 1) / kSumRows;
  fulmen::parallel(row_blocks * panels(args.w), linear_task, &job);
}

// ---- packing -----------------------------------------------------------------------------------

static inline float element(const PackArgs& args, int64_t n, int64_t k) {
  if (n >= args.w.n || k >= args.w.k) return 0.0f;
  const int64_t i = n * args.row_stride + k * args.column_stride;
  return args.source_dtype == fulmen::kFloat32 ? ((const float*)args.source)[i]
                                               : widen(((const uint16_t*)args.source)[i]);
}

// out (count, 16) = the first `count` words, of four bytes, of sixteen rows `stride` bytes apart
static inline void interleave(const uint8_t* from, int64_t stride, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    V rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
      rows[lane] = load((const float*)(from + lane * stride) + i);
    transpose(rows);
    for (int lane = 0; lane < kLanes; ++lane) store(out + (i + lane) * kLanes, rows[lane]);
  }
  for (; i < count; ++i)
    for (int lane = 0; lane < kLanes; ++lane)
      memcpy(out + i * kLanes + lane, from + lane * stride + 4 * i, 4);
}

// Sixteen outputs from column `n` on: the bytes of one block.
static void pack_block(const PackArgs& args, int64_t n, uint8_t* out) {
  const int64_t k_end = padded_k(args.w);
  const bool is_f32 = args.w.format == fulmen::kF32;
  const bool as_stored =
      n + kLanes <= args.w.n && (args.source_dtype == fulmen::kFloat32) == is_f32;
  const uint8_t* source = (const uint8_t*)args.source + n * args.row_stride * (is_f32 ? 4 : 2);
  int64_t k = 0;
  if (as_stored && args.column_stride == 1) {  // whole words of each output lie side by side
    const int64_t words = is_f32 ? args.w.k : args.w.k / 2;
    interleave(source, args.row_stride * (is_f32 ? 4 : 2), words, (float*)out);
    k = is_f32 ? words : 2 * words;
  } else if (as_stored && args.row_stride == 1 && is_f32) {  // the outputs lie side by side
    for (; k < args.w.k; ++k)
      store((float*)out + k * kLanes, load((const float*)source + k * args.column_stride));
  } else if (as_stored && args.row_stride == 1) {  // two inputs of sixteen outputs at a time
    for (; k + 2 <= args.w.k; k += 2) {
      const uint16_t* first = (const uint16_t*)source + k * args.column_stride;
      uint32_t* pairs = (uint32_t*)out + k / 2 * kLanes;
      for (int lane = 0; lane < kLanes; ++lane)
        pairs[lane] = first[lane] | uint32_t(first[args.column_stride + lane]) << 16;
    }
  }
  if (is_f32) {
    for (; k < k_end; ++k)
      for (int lane = 0; lane < kLanes; ++lane)
        ((float*)out)[k * kLanes + lane] = element(args, n + lane, k);
    return;
  }
  for (; k < k_end; k += 2)
    for (int lane = 0; lane < kLanes; ++lane) {
      uint16_t* to = (uint16_t*)out + k * kLanes + 2 * lane;
      to[0] = narrow(element(args, n + lane, k));
      to[1] = narrow(element(args, n + lane, k + 1));
    }
}

static void pack_task(void* context, int64_t block, int) {
  const PackArgs& args = *(const PackArgs*)context;
  pack_block(args, block * kLanes, args.out + block * block_bytes(args.w));
}

static void pack(const PackArgs& args) {
  PackArgs job = args;
  fulmen::parallel(num_blocks(args.w), pack_task, &job);
}

}  // namespace ISA
