// AVX-512 F, BW, DQ, VL: no VNNI, no BF16.
#define ISA fulmen_avx512
#define FULMEN_NAME "avx512"
#define FULMEN_AVX512
#include "isa.h"

const fulmen::Kernels* fulmen::kernels_avx512() { return &ISA::table; }
