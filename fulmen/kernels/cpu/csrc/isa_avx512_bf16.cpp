// AVX-512 with VNNI and BF16.
#define ISA fulmen_avx512_bf16
#define FULMEN_NAME "avx512_bf16"
#define FULMEN_AVX512
#define FULMEN_VNNI
#define FULMEN_BF16
#include "isa.h"

const fulmen::Kernels* fulmen::kernels_avx512_bf16() { return &ISA::table; }
