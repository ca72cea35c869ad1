// Instruction sets by name, for people. Not in kernels.h: files compiled for one set include that,
// and must instantiate nothing of the standard library.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace fulmen {

// The sets that the kernels were compiled for, best first, and whether this machine has each.
std::vector<std::pair<std::string, bool>> instruction_sets();

}  // namespace fulmen
