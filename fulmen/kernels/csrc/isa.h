// All kernels, compiled for the instruction set that the including file names.
#include "kernels.h"
#include "pool.h"
#include "vec.h"
//
#include "attention.h"
#include "experts.h"
#include "experts_backward.h"
#include "head.h"
#include "lightning.h"
#include "linear.h"
#include "norms.h"
#include "probe.h"

namespace ISA {
static const fulmen::Kernels table = {
    FULMEN_NAME,
    linear,
    pack,
    norm,
    route,
    experts,
    experts_backward,
    head,
    softmax_attention,
    rotate,
    lightning_attention::lightning,
    probe,
};
}  // namespace ISA
