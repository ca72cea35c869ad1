#define ISA fulmen_avx2
#define FULMEN_NAME "avx2"
#include "isa.h"

const fulmen::Kernels* fulmen::kernels_avx2() { return &ISA::table; }
