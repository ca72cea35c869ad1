// AMX tiles for bf16 and for integers of many rows, AVX-512 with VNNI and BF16 for the rest.
#define ISA fulmen_amx
#define FULMEN_NAME "amx"
#define FULMEN_AVX512
#define FULMEN_VNNI
#define FULMEN_BF16
#define FULMEN_AMX
#include "isa.h"

const fulmen::Kernels* fulmen::kernels_amx() { return &ISA::table; }
