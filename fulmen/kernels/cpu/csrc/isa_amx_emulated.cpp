// The AMX kernels with the tile instructions written out, for tests on machines without them.
#define ISA fulmen_amx_emulated
#define FULMEN_NAME "amx_emulated"
#define FULMEN_AVX512
#define FULMEN_AMX
#define FULMEN_AMX_EMULATED
#include "isa.h"

const fulmen::Kernels* fulmen::kernels_amx_emulated() { return &ISA::table; }
