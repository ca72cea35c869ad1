// All kernels, compiled for the instruction set that the including file names.
#include "kernels.h"
#include "pool.h"
#include "vec.h"
//
#include "attention.h"
#include "attention_backward.h"
#include "codebook.h"
#include "experts.h"
#include "experts_backward.h"
#include "head.h"
#include "head_backward.h"
#include "lightning.h"
#include "linear.h"
#include "linear_backward.h"
#include "norms.h"
#include "norms_backward.h"
#include "outer.h"
#include "probe.h"

namespace ISA {
static const fulmen::Kernels table = {
    FULMEN_NAME,
    linear,
    activation_backward,
    outer,
    pack,
    codebook,
    norm,
    norm_backward,
    route,
    route_backward,
    experts,
    experts_backward,
    head,
    head_backward,
    softmax_attention,
    softmax_attention_backward,
    rotate,
    lightning_attention::lightning,
    probe,
};
}  // namespace ISA
