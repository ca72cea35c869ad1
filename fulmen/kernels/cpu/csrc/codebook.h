// The search for the scales, zero points and codes of codebook4: 16 columns side by side, each in a
// lane, group by group. kernels/codebook.py is the definition, and gives the same bits.
#pragma once

#include <float.h>

#include "integer.h"
#include "kernels.h"
#include "pool.h"
#include "vec.h"

namespace ISA {

using fulmen::CodebookArgs;

constexpr int kMostInputs = 128;  // of a group
constexpr float kMostScale = 31;
constexpr int kFirstRange = 24, kLastRange = 34;  // of 32: shares of the range that a group needs

// The limits between neighbouring levels as a tree: those of node i are nodes 2 i and 2 i + 1, so
// four comparisons find the nearest of 16 levels. Node 0 is unused.
struct LevelTree {
  Table limits, levels;
};

static LevelTree tree_of_levels() {
  float levels[16], limits[16] = {0};
  for (int i = 0; i < 16; ++i) levels[i] = kLevels[i];
  for (int node = 1; node < 16; ++node) {
    const int depth = 31 - __builtin_clz(unsigned(node)), width = 16 >> depth;
    const int right = (node - (1 << depth)) * width + width / 2;
    limits[node] = (levels[right - 1] + levels[right]) / 2;
  }
  return {load_table(limits), load_table(levels)};
}

// the code of the level nearest to x, of two as near the higher; 0 for NaN
static inline I nearest(const LevelTree& tree, V x) {
  I node = set1(int32_t(1));
  node = child_of(node, x, pick_low(tree.limits, node));
  node = child_of(node, x, pick_low(tree.limits, node));
  node = child_of(node, x, pick_low(tree.limits, node));
  node = child_of(node, x, pick_high(tree.limits, node));
  return sub(node, set1(int32_t(16)));
}

struct Codebook {
  V error, scale, zero;  // the error in units of the column's scale, squared
};

// Keeps scale and zero in the lanes where they err less on the group y than the best so far. The
// parts of a sum are those of every fourth input, in order.
static inline void keep_if_better(const LevelTree& tree, const float (*y)[kLanes], int inputs,
                                  V scale, V zero, Codebook& best) {
  const V inverse = div(set1(1.0f), scale);
  V parts[4] = {ISA::zero(), ISA::zero(), ISA::zero(), ISA::zero()};
  for (int j = 0; j < inputs; ++j) {
    const V x = add(mul(load(y[j]), inverse), zero);
    const V off = sub(pick(tree.levels, nearest(tree, x)), x);
    parts[j % 4] = add(parts[j % 4], mul(off, off));
  }
  const V total = add(add(parts[0], parts[1]), add(parts[2], parts[3]));
  const V error = mul(mul(scale, scale), total);
  best.scale = where_less(error, best.error, scale, best.scale);
  best.zero = where_less(error, best.error, zero, best.zero);
  best.error = where_less(error, best.error, error, best.error);
}

static Codebook best_of(const LevelTree& tree, const float (*y)[kLanes], int inputs) {
  V high = zero(), low = zero(), parts[4] = {zero(), zero(), zero(), zero()};
  for (int j = 0; j < inputs; ++j) {
    const V x = load(y[j]);
    high = max(x, high);
    low = max(sub(zero(), x), low);
    parts[j % 4] = add(parts[j % 4], mul(x, x));
  }
  Codebook best = {add(add(parts[0], parts[1]), add(parts[2], parts[3])), zero(), zero()};
  best.zero = set1(kFirstZero);
  for (int side = 0; side < 2; ++side)
    for (int number = 0; number < 4; ++number) {
      const float sign = side == 0 ? 1 : -1;
      const float below = kFirstZero + kZeroStep * float(number), above = kLevels[15] - below;
      const V up = set1(sign > 0 ? above : below), down = set1(sign > 0 ? below : above);
      const V needed = max(div(high, up), div(low, down));
      for (int range = kFirstRange; range <= kLastRange; ++range) {
        const V scale = round(mul(needed, set1(float(range) / 32)));
        const V held = min(max(scale, set1(1.0f)), set1(kMostScale));
        keep_if_better(tree, y, inputs, mul(held, set1(sign)), set1(below), best);
      }
    }
  return best;
}

// Columns whose scale is no normal number, of weights below some 1e-35, count as zeros.
static inline float inverse_of(float scale) { return scale >= FLT_MIN ? 1.0f / scale : 0.0f; }

static void codebook_task(void* context, int64_t task, int) {
  const CodebookArgs& args = *(const CodebookArgs*)context;
  const int64_t groups = (args.width + args.group - 1) / args.group;
  const int64_t row = task / groups * kLanes, g = task % groups, first = g * args.group;
  const int rows = int(least(kLanes, args.rows - row));
  const int inputs = int(least(args.group, args.width - first));
  float y[kMostInputs][kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const float* x = args.weight + (row + i) * args.row_stride + first * args.column_stride;
    const float inverse = i < rows ? inverse_of(args.columns[row + i]) : 0.0f;
    for (int j = 0; j < inputs; ++j)
      y[j][i] = i < rows ? x[j * args.column_stride] * inverse : 0.0f;
  }
  const LevelTree tree = tree_of_levels();
  const Codebook best = best_of(tree, y, inputs);
  float scale[kLanes], zero[kLanes];
  store(scale, best.scale);
  store(zero, best.zero);
  for (int i = 0; i < rows; ++i) {
    args.scales[(row + i) * groups + g] = int8_t(scale[i]);
    args.zeros[(row + i) * groups + g] = uint8_t((zero[i] - kFirstZero) / kZeroStep);
  }
  // A group of scale 0 holds zeros, whatever its codes.
  const V one = where_less(abs(best.scale), set1(0.5f), set1(1.0f), best.scale);
  const V inverse = div(set1(1.0f), one);
  for (int j = 0; j < inputs; ++j) {
    int32_t codes[kLanes];
    store(codes, nearest(tree, add(mul(load(y[j]), inverse), best.zero)));
    for (int i = 0; i < rows; ++i)
      args.codes[(row + i) * args.width + first + j] = uint8_t(codes[i]);
  }
}

static void codebook(const CodebookArgs& args) {
  CodebookArgs job = args;
  const int64_t groups = (args.width + args.group - 1) / args.group;
  fulmen::parallel((args.rows + kLanes - 1) / kLanes * groups, codebook_task, &job);
}

}  // namespace ISA
