// A small pool of threads for the kernels. The caller works too; a helper that finds nothing to do
// spins for some microseconds, then sleeps, so that a busy Python thread keeps its core.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace fulmen {

constexpr int kMaxThreads = 256;

// Runs fn(context, task, thread) for every task below num_tasks, in any order, on any thread
// (0 to num_threads() - 1). Returns when all are done. Not to be called from inside a task.
using Task = void (*)(void* context, int64_t task, int thread);
void parallel(int64_t num_tasks, Task fn, void* context);

int num_threads();
void set_num_threads(int count);

// Kernels run one at a time; who calls parallel() or scratch() holds a turn.
struct Turn {
  Turn();
  ~Turn();
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  void* held;
};

// Working memory of one thread, 64-byte aligned, kept between calls; grows, never shrinks. Only one
// at a time: a second call by the same thread may move the first. Slot is 0, 1, 2 or 3 for
// memories that live side by side.
void* scratch(int thread, int slot, size_t bytes);

}  // namespace fulmen
