// Instruction sets of this machine, and the choice of one for the process.
#include <cpuid.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <stdexcept>
#include <string>

#include "cpu.h"
#include "kernels.h"

namespace fulmen {
namespace {

uint64_t xcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t(high) << 32) | low;
}

struct Cpu {
  bool avx2 = false, avx512 = false, avx512_bf16 = false, amx = false;
};

// Linux grants the tile registers to a process that asks (arch_prctl, ARCH_REQ_XCOMP_PERM).
bool tiles_granted() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

Cpu detect() {
  Cpu cpu;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return cpu;
  const bool osxsave = c & (1u << 27), fma = c & (1u << 12), f16c = c & (1u << 29);
  if (!osxsave) return cpu;
  const uint64_t saved = xcr0();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return cpu;
  const uint32_t leaves = a;
  cpu.avx2 = (saved & 6) == 6 && (b & (1u << 5)) && (b & (1u << 8)) && fma && f16c;  // with BMI2
  const uint32_t f_dq_bw_vl = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);
  cpu.avx512 = cpu.avx2 && (saved & 0xe6) == 0xe6 && (b & f_dq_bw_vl) == f_dq_bw_vl;
  const bool vnni = c & (1u << 11);
  const bool tiles = (d & (1u << 24)) && (d & (1u << 25)) && (d & (1u << 22));  // tile, int8, bf16
  bool bf16 = false;
  if (leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) bf16 = a & (1u << 5);
  cpu.avx512_bf16 = cpu.avx512 && vnni && bf16;
  cpu.amx = cpu.avx512_bf16 && tiles && (saved & 0x60000) == 0x60000 && tiles_granted();
#ifdef FULMEN_EMULATED  // tests/kernels/emulated
  cpu.avx512 = cpu.avx512_bf16 = cpu.avx2;
  cpu.amx = false;
#endif
  return cpu;
}

struct InstructionSet {
  const char* name;
  bool here;
  const Kernels* (*table)();
};

// All sets the kernels were compiled for, best first.
std::array<InstructionSet, 5> sets_of_this_machine() {
  const Cpu cpu = detect();
  return {{
      {"amx", cpu.amx, kernels_amx},
      {"avx512_bf16", cpu.avx512_bf16, kernels_avx512_bf16},
      {"avx512", cpu.avx512, kernels_avx512},
      {"avx2", cpu.avx2, kernels_avx2},
      {"amx_emulated", cpu.avx512, kernels_amx_emulated},  // never chosen: it needs avx512 too
  }};
}

const Kernels* choose() {
  const auto sets = sets_of_this_machine();
  const char* wanted = getenv("FULMEN_ISA");
  if (wanted == nullptr || *wanted == 0) {
    for (const auto& set : sets)
      if (set.here) return set.table();
    return nullptr;
  }
  if (strcmp(wanted, "none") == 0) return nullptr;
  for (const auto& set : sets) {
    if (strcmp(wanted, set.name) != 0) continue;
    if (!set.here)
      throw std::runtime_error("FULMEN_ISA is " + std::string(wanted) +
                               ", which this machine does not have");
    return set.table();
  }
  throw std::runtime_error("FULMEN_ISA is " + std::string(wanted) +
                           ", known are amx, avx512_bf16, avx512, avx2, amx_emulated and none");
}

}  // namespace

const Kernels* kernels() {
  static const Kernels* chosen = choose();
  return chosen;
}

std::vector<std::pair<std::string, bool>> instruction_sets() {
  std::vector<std::pair<std::string, bool>> sets;
  for (const auto& set : sets_of_this_machine()) sets.emplace_back(set.name, set.here);
  return sets;
}

}  // namespace fulmen
