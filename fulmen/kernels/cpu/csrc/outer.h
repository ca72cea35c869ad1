// Gradients of matrices: out (n, k) = sum over rows of a[row] (n,) times b[row] (k,).
//
// The rows are read where they lie, chosen by number if need be; nothing is transposed or packed
// beforehand. A task makes some columns of a times some of b: it lays out a block of rows of both
// in its cache, adds their products to its sums, and goes on to the next block. An output is one
// chain over the rows in their order, whatever the tasks, so it does not depend on the threads.
#pragma once

#include "kernels.h"
#include "pool.h"
#include "product.h"
#include "vec.h"

namespace ISA {

using fulmen::OuterArgs;

constexpr int kOuterSteps = 128;            // of a block: rows of float32, or pairs of rows of bf16
constexpr int kOuterA = 96, kOuterB = 256;  // columns of a task
constexpr int kOuterTall = 6;               // columns of a beside each other in a tile

// Columns of one side, row by row.
struct Factor {
  const uint8_t* data;  // of the first column
  Dtype dtype;
  int64_t bytes;        // from row to row
  const int32_t* rows;  // numbers of the rows to take; null: all
  int64_t columns;

  const uint8_t* row(int64_t r) const { return data + (rows == nullptr ? r : rows[r]) * bytes; }
};

struct Outer {
  Factor a, b;
  int64_t num_rows;
  void* out;
  Dtype dtype;        // of out
  int64_t stride;     // elements of out from row to row
  bool adds;          // to what out holds, which then is float32
  int64_t first = 0;  // its first task among those of all
  int64_t a_parts = 1, b_parts = 1;

  int64_t tasks() const { return a_parts * b_parts; }
};

// Rows `first` to `first + count` of some columns as words of four bytes, in groups of kWidth
// columns: to[group][step][kWidth]. A word is a float32, or with `pairs` a bf16 of each of two
// rows. Columns beyond the last are zeros.
constexpr int64_t group_words(int width) { return kOuterSteps * width + kLanes; }

template <int kWidth>
static inline void lay_out(const Factor& from, int64_t first, int64_t count, int64_t column,
                           int64_t columns, bool pairs, uint32_t* to) {
  alignas(64) uint32_t words[kOuterB + kLanes];
  memset(words + columns, 0, sizeof(uint32_t) * kLanes);
  const int64_t groups = (columns + kWidth - 1) / kWidth, steps = pairs ? (count + 1) / 2 : count;
  for (int64_t step = 0; step < steps; ++step) {
    const void* row = words;
    if (pairs) {
      const uint16_t* low = (const uint16_t*)from.row(first + 2 * step) + column;
      if (2 * step + 1 < count) {
        const uint16_t* high = (const uint16_t*)from.row(first + 2 * step + 1) + column;
        for (int64_t i = 0; i < columns; ++i) words[i] = low[i] | uint32_t(high[i]) << 16;
      } else {
        for (int64_t i = 0; i < columns; ++i) words[i] = low[i];
      }
    } else if (from.dtype == fulmen::kBFloat16) {
      const uint16_t* values = (const uint16_t*)from.row(first + step) + column;
      for (int64_t i = 0; i < columns; ++i) words[i] = uint32_t(values[i]) << 16;
    } else {
      row = (const float*)from.row(first + step) + column;
      if (columns % kWidth != 0) {
        memcpy(words, row, sizeof(uint32_t) * size_t(columns));
        row = words;
      }
    }
    for (int64_t g = 0; g < groups; ++g)
      memcpy(to + g * group_words(kWidth) + step * kWidth, (const uint32_t*)row + g * kWidth,
             sizeof(uint32_t) * kWidth);
  }
}

// c (6, 16 B) += a b over some steps; c's rows are kPanel apart.
template <int B, bool kPairs>
static __attribute__((noinline)) void outer_tile(const uint32_t* a, const uint32_t* b,
                                                 int64_t steps, float* c) {
  V sums[kOuterTall][B];
#pragma GCC unroll 8
  for (int r = 0; r < kOuterTall; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < B; ++j) sums[r][j] = load(c + r * kPanel + j * kLanes);
  for (int64_t i = 0; i < steps; ++i) {
    if constexpr (kPairs) {
      Pairs right[B];
#pragma GCC unroll 8
      for (int j = 0; j < B; ++j) right[j] = load_pairs(b + j * group_words(kLanes) + i * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kOuterTall; ++r) {
        const Pairs left = set1_pair(a + i * kOuterTall + r);
#pragma GCC unroll 8
        for (int j = 0; j < B; ++j) sums[r][j] = dot(sums[r][j], left, right[j]);
      }
    } else {
      V right[B];
#pragma GCC unroll 8
      for (int j = 0; j < B; ++j)
        right[j] = load((const float*)(b + j * group_words(kLanes) + i * kLanes));
#pragma GCC unroll 8
      for (int r = 0; r < kOuterTall; ++r) {
        const V left = set1(((const float*)a)[i * kOuterTall + r]);
#pragma GCC unroll 8
        for (int j = 0; j < B; ++j) sums[r][j] = fma(left, right[j], sums[r][j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kOuterTall; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < B; ++j) store(c + r * kPanel + j * kLanes, sums[r][j]);
}

#ifdef FULMEN_AVX512
constexpr int kOuterBlocks = 4;
#else
constexpr int kOuterBlocks = 1;
#endif

template <bool kPairs>
static inline void outer_block(const uint32_t* a, int64_t groups, const uint32_t* b, int64_t blocks,
                               int64_t steps, float* c) {
  const int64_t panel = groups * kOuterTall * kPanel;
  for (int64_t block = 0; block < blocks;) {
    const int in_panel = int(block % kPanelBlocks);
    const bool wide = in_panel == 0 && block + kOuterBlocks <= blocks;
    const uint32_t* right = b + block * group_words(kLanes);
    float* to = c + block / kPanelBlocks * panel + in_panel * kLanes;
    for (int64_t g = 0; g < groups; ++g) {
      const uint32_t* left = a + g * group_words(kOuterTall);
      float* sums = to + g * kOuterTall * kPanel;
      if (wide)
        outer_tile<kOuterBlocks, kPairs>(left, right, steps, sums);
      else
        outer_tile<1, kPairs>(left, right, steps, sums);
    }
    block += wide ? kOuterBlocks : 1;
  }
}

#ifdef FULMEN_AMX

constexpr int64_t kTileWords = kOuterSteps + kLanes;  // of a column of a, which is a row of tiles

// Tiles want the steps of a column of a side by side: to[column][step], steps to a multiple of 16.
static inline void lay_out_columns(const Factor& from, int64_t first, int64_t count, int64_t column,
                                   int64_t columns, uint32_t* grouped, uint32_t* to) {
  lay_out<kLanes>(from, first, count, column, columns, true, grouped);
  const int64_t steps = (count + 1) / 2;
  for (int64_t g = 0; g * kLanes < columns; ++g)
    for (int64_t step = 0; step < steps; step += kLanes) {
      V square[kLanes];
      for (int64_t i = 0; i < kLanes; ++i)
        square[i] =
            step + i < steps
                ? load((const float*)(grouped + g * group_words(kLanes) + (step + i) * kLanes))
                : zero();
      transpose(square);
      for (int64_t j = 0; j < kLanes; ++j)
        store((float*)(to + (g * kLanes + j) * kTileWords + step), square[j]);
    }
}

static inline void outer_tiles(const uint32_t* a, int64_t columns, int64_t stored_columns,
                               uint32_t* b, int64_t blocks, int64_t steps, float* c) {
  const int64_t padded = round_up(steps, kLanes);
  for (int64_t block = 0; block < blocks; ++block)
    memset(b + block * group_words(kLanes) + steps * kLanes, 0,
           sizeof(uint32_t) * size_t((padded - steps) * kLanes));
  const uint8_t* rows[kOuterA];
  for (int64_t r = 0; r < columns; ++r) rows[r] = (const uint8_t*)(a + r * kTileWords);
  NextWeights none(nullptr, 0, 0, 0, 1);
  for (int64_t block = 0; block < blocks; block += kPanelBlocks)
    bf16_block(rows, columns, int(least(kPanelBlocks, blocks - block)), 0,
               (const uint8_t*)(b + block * group_words(kLanes)), 4 * group_words(kLanes),
               2 * padded, c + block / kPanelBlocks * stored_columns * kPanel, none);
}

#endif

// Some columns of a times some of b, over all rows.
static void outer_task(const Outer& job, int64_t task, int thread) {
  const int64_t a_width = round_up((job.a.columns + job.a_parts - 1) / job.a_parts, kOuterTall),
                b_width = round_up((job.b.columns + job.b_parts - 1) / job.b_parts, kLanes);
  const int64_t a_first = task % job.a_parts * a_width, b_first = task / job.a_parts * b_width;
  const int64_t a_columns = least(a_width, job.a.columns - a_first),
                b_columns = least(b_width, job.b.columns - b_first);
  if (a_columns <= 0 || b_columns <= 0) return;
  const int64_t groups = (a_columns + kOuterTall - 1) / kOuterTall,
                blocks = (b_columns + kLanes - 1) / kLanes;
  const int64_t stored = groups * kOuterTall;  // columns of a in the sums
  const bool pairs =
      !kWidensPairs && job.a.dtype == fulmen::kBFloat16 && job.b.dtype == fulmen::kBFloat16;

  constexpr int64_t a_words = kOuterA / kOuterTall * group_words(kOuterTall),
                    b_words = kOuterB / kLanes * group_words(kLanes);
#ifdef FULMEN_AMX
  constexpr int64_t tile_words = kOuterA * kTileWords + kOuterA / kLanes * group_words(kLanes);
#else
  constexpr int64_t tile_words = 0;
#endif
  uint32_t* a = (uint32_t*)fulmen::scratch(
      thread, 3, sizeof(uint32_t) * size_t(a_words + b_words + tile_words + kOuterA * kOuterB));
  uint32_t* b = a + a_words;
  float* c = (float*)(b + b_words);
  memset(c, 0,
         sizeof(float) * size_t(stored * ((blocks + kPanelBlocks - 1) / kPanelBlocks) * kPanel));
  const int64_t step_rows = pairs ? 2 : 1;
  for (int64_t row = 0; row < job.num_rows; row += kOuterSteps * step_rows) {
    const int64_t count = least(kOuterSteps * step_rows, job.num_rows - row),
                  steps = (count + step_rows - 1) / step_rows;
    lay_out<kLanes>(job.b, row, count, b_first, b_columns, pairs, b);
#ifdef FULMEN_AMX
    if (pairs) {
      uint32_t* columns = (uint32_t*)c + kOuterA * kOuterB;
      lay_out_columns(job.a, row, count, a_first, a_columns, columns + kOuterA * kTileWords,
                      columns);
      outer_tiles(columns, a_columns, stored, b, blocks, steps, c);
      continue;
    }
#endif
    lay_out<kOuterTall>(job.a, row, count, a_first, a_columns, pairs, a);
    if (pairs)
      outer_block<true>(a, groups, b, blocks, steps, c);
    else
      outer_block<false>(a, groups, b, blocks, steps, c);
  }

  const int64_t size = size_of(job.dtype);
  for (int64_t r = 0; r < a_columns; ++r) {
    uint8_t* out = (uint8_t*)job.out + ((a_first + r) * job.stride + b_first) * size;
    for (int64_t i = 0; i < b_columns; i += kLanes) {
      const int n = int(least(kLanes, b_columns - i));
      V v = load(c + (i / kPanel * stored + r) * kPanel + i % kPanel);
      if (job.adds) v = add(load_n((const float*)out + i, n), v);
      write(out, i, n, job.dtype, v);
    }
  }
}

struct OuterJobs {
  const Outer* jobs;
  int64_t count;
};

static void outer_jobs_task(void* context, int64_t task, int thread) {
  const OuterJobs& all = *(const OuterJobs*)context;
  int64_t low = 0, high = all.count;  // the job whose tasks hold this one
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (all.jobs[middle].first <= task ? low : high) = middle;
  }
  outer_task(all.jobs[low], task - all.jobs[low].first, thread);
}

// Makes all of these at once. Few are cut into more tasks, so that no thread waits for the last.
static void outer_all(Outer* jobs, int64_t count) {
  const int64_t threads = fulmen::num_threads(), wanted = threads == 1 ? 1 : 3 * threads;
  int64_t tasks = 0;
  for (int64_t i = 0; i < count; ++i) {
    Outer& job = jobs[i];
    const int64_t n = job.a.columns, k = job.b.columns;
    job.a_parts = (n + kOuterA - 1) / kOuterA;
    job.b_parts = (k + kOuterB - 1) / kOuterB;
    while (job.tasks() * count < wanted && k / job.b_parts >= 2 * kPanel) job.b_parts *= 2;
    while (job.tasks() * count < wanted && n / job.a_parts >= 8 * kOuterTall) job.a_parts *= 2;
    job.first = tasks;
    tasks += job.tasks();
  }
  OuterJobs all{jobs, count};
  fulmen::parallel(tasks, outer_jobs_task, &all);
}

static void outer(const OuterArgs& args) {
  Outer job{{(const uint8_t*)args.a, args.a_dtype, args.a_stride * size_of(args.a_dtype), nullptr,
             args.n},
            {(const uint8_t*)args.b, args.b_dtype, args.b_stride * size_of(args.b_dtype), nullptr,
             args.k},
            args.rows,
            args.out,
            args.out_dtype,
            args.k,
            args.adds};
  outer_all(&job, 1);
}

}  // namespace ISA
