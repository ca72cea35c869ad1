// Limits of the machine, for benchmarks: bytes read, and products from registers.
#pragma once

#include "kernels.h"
#include "pool.h"
#include "product.h"
#include "vec.h"

namespace ISA {

using fulmen::ProbeArgs;

constexpr int64_t kProbeBytes = 1 << 20;

static void read_task(void* context, int64_t task, int) {
  ProbeArgs& args = *(ProbeArgs*)context;
  const uint8_t* from = args.data + task * kProbeBytes;
  const int64_t bytes = least(kProbeBytes, args.bytes - task * kProbeBytes);
  I sums[4] = {izero(), izero(), izero(), izero()};
  for (int64_t i = 0; i + 256 <= bytes; i += 256)
    for (int j = 0; j < 4; ++j)
      sums[j] = add(sums[j], load((const int32_t*)(from + i) + j * kLanes));
  for (int j = 1; j < 4; ++j) sums[0] = add(sums[0], sums[j]);
  int32_t lanes[kLanes];
  store(lanes, sums[0]);
  if (lanes[0] == 0x5eed5eed) args.operations = 1;  // keeps the loads
}

// Every thread turns over products of the fastest kind; operations counts two a product.
static void dot_task(void* context, int64_t, int) {
  ProbeArgs& args = *(ProbeArgs*)context;
#ifdef FULMEN_AMX
  configure(32);
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  tile_zero<4>(), tile_zero<5>(), tile_zero<6>(), tile_zero<7>();
  for (int64_t i = 0; i < args.iterations; ++i) {
    if (args.integer)
      tile_dot_int8<0, 4, 6>(), tile_dot_int8<1, 4, 7>(), tile_dot_int8<2, 5, 6>(),
          tile_dot_int8<3, 5, 7>();
    else
      tile_dot_bf16<0, 4, 6>(), tile_dot_bf16<1, 4, 7>(), tile_dot_bf16<2, 5, 6>(),
          tile_dot_bf16<3, 5, 7>();
  }
  release_tiles();
#else
  alignas(64) static const int32_t some[kLanes] = {1, 2,  3,  4,  5,  6,  7,  8,
                                                   9, 10, 11, 12, 13, 14, 15, 16};
  V floats[12];
  I integers[12];
  for (int j = 0; j < 12; ++j) floats[j] = zero(), integers[j] = izero();
  const Pairs pairs = load_pairs(some);
  const Quads quads = load_quads(some);
  for (int64_t i = 0; i < args.iterations; ++i) {
    if (args.integer)
      for (int j = 0; j < 12; ++j) integers[j] = dot(integers[j], quads, quads);
    else
      for (int j = 0; j < 12; ++j) floats[j] = dot(floats[j], pairs, pairs);
  }
  float lanes[kLanes];
  int32_t codes[kLanes];
  for (int j = 1; j < 12; ++j)
    floats[0] = add(floats[0], floats[j]), integers[0] = add(integers[0], integers[j]);
  store(lanes, floats[0]);
  store(codes, integers[0]);
  if (lanes[0] == 0.5f || codes[0] == 0x5eed5eed) args.operations = 1;  // keeps the products
#endif
}

static void probe(const ProbeArgs& given) {
  ProbeArgs& args = const_cast<ProbeArgs&>(given);
  if (args.data != nullptr) {
    fulmen::parallel((args.bytes + kProbeBytes - 1) / kProbeBytes, read_task, &args);
    return;
  }
  const int threads = fulmen::num_threads();
  fulmen::parallel(threads, dot_task, &args);
#ifdef FULMEN_AMX
  const int64_t each = 4 * 16 * 16 * 2 * (args.integer ? 64 : 32);
#else
  const int64_t each = 12 * 2 * kLanes * (args.integer ? 4 : 2);
#endif
  args.operations = args.iterations * threads * each;
}

}  // namespace ISA
