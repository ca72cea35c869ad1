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
// at a time: a second call by the same thread may move the first. Slot is 0 to 4 for memories that
// live side by side.
void* scratch(int thread, int slot, size_t bytes);

// Where the time of a kernel goes, in ticks of the processor's clock. A kernel of two products, one
// after the other, has two stages.
struct Meter {
  struct Stage {
    int64_t ticks = 0;      // from its first moment to its last
    int64_t preparing = 0;  // of these: its inputs are laid out for the product
    int64_t idle = 0;       // the rest: a thread has nothing to do, the mean over threads
  };
  Stage stages[2];
  int stage = 0;
  int64_t num_matrices = 0;  // experts that were multiplied
  bool is_preparing = false;
  int64_t since = 0;
};

// The meter of the kernel that runs; null: nobody looks. Who holds the turn sets it.
extern Meter* meter;

// While it lives, the kernel lays out its inputs.
struct Preparing {
  Preparing();
  ~Preparing();
  int64_t since;
};

// The kernel goes on to its second product.
void next_stage();

// The kernel has multiplied so many matrices in each stage.
void count_matrices(int64_t count);

int64_t ticks();

}  // namespace fulmen
