#include "pool.h"

#include <immintrin.h>
#include <pthread.h>
#include <stdlib.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

namespace fulmen {
namespace {

constexpr int kSpins = 4000;  // some tens of microseconds: the time between two kernels of a layer

constexpr uint32_t kOpen = 1u << 31;

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
};
Buffer buffers[kMaxThreads][5];

// One round of work. Threads take tasks until `next` passes `count`.
struct Round {
  Task fn;
  void* context;
  int64_t count;
  bool is_timed;
};

// The floating-point mode of every task: rounding to nearest, no number flushed to zero, whatever
// the thread that calls has set. Else bits would depend on which thread takes a task.
struct PlainArithmetic {
  unsigned before = _mm_getcsr();
  PlainArithmetic() { _mm_setcsr(0x1f80); }
  ~PlainArithmetic() { _mm_setcsr(before); }
};

struct Pool {
  std::mutex turn;  // held by the kernel that runs
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> generation{0};
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> busy{0};  // ticks of all threads in a round that is timed
  // Helpers inside the round, and whether it still lets helpers in. One that wakes too late stays
  // out, so the caller never waits for a thread that the system has not scheduled.
  std::atomic<uint32_t> gate{0};
  Round round{};
  int sleeping = 0;
  int helpers = 0;  // threads started
  std::atomic<int> wanted{1};

  void work(int thread) {
    const int64_t begin = round.is_timed ? ticks() : 0;
    for (;;) {
      int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= round.count) break;
      round.fn(round.context, task, thread);
    }
    if (round.is_timed) busy.fetch_add(ticks() - begin, std::memory_order_relaxed);
  }

  void help(int thread, uint64_t seen) {
    const PlainArithmetic plain;
    for (;;) {
      int spins = 0;
      while (generation.load(std::memory_order_acquire) == seen && spins < kSpins) {
        _mm_pause();
        ++spins;
      }
      if (generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex);
        ++sleeping;
        wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
        --sleeping;
      }
      seen = generation.load(std::memory_order_acquire);
      if (thread >= wanted.load(std::memory_order_relaxed) || !enter()) continue;
      work(thread);
      gate.fetch_sub(1, std::memory_order_release);
    }
  }

  bool enter() {
    uint32_t inside = gate.load(std::memory_order_relaxed);
    while (inside & kOpen)
      if (gate.compare_exchange_weak(inside, inside + 1, std::memory_order_acquire)) return true;
    return false;
  }

  void start(int threads) {
    while (helpers < threads - 1) {
      int thread = helpers + 1;
      uint64_t seen = generation.load();
      std::thread([this, thread, seen] { help(thread, seen); }).detach();
      ++helpers;
    }
  }

  void run(int64_t count, Task fn, void* context) {
    const PlainArithmetic plain;
    int threads = wanted.load();
    const int64_t begin = meter != nullptr ? ticks() : 0;
    if (threads == 1 || count == 1) {
      for (int64_t task = 0; task < count; ++task) fn(context, task, 0);
      if (meter != nullptr) add_idle(threads, begin, ticks() - begin);
      return;
    }
    start(threads);
    round = {fn, context, count, meter != nullptr};
    busy.store(0, std::memory_order_relaxed);
    next.store(0, std::memory_order_relaxed);
    gate.store(kOpen, std::memory_order_release);
    bool asleep;
    {
      std::lock_guard<std::mutex> lock(mutex);
      generation.fetch_add(1, std::memory_order_release);
      asleep = sleeping > 0;
    }
    if (asleep) wake.notify_all();
    work(0);
    gate.fetch_and(~kOpen, std::memory_order_acq_rel);
    int spins = 0;
    while (gate.load(std::memory_order_acquire) != 0) {
      _mm_pause();
      if (++spins > kSpins) std::this_thread::yield();
    }
    if (meter != nullptr) add_idle(threads, begin, busy.load(std::memory_order_relaxed));
  }

  // Takes note of a round that began then, and in which the threads worked so many ticks together.
  static void add_idle(int threads, int64_t begin, int64_t busy) {
    if (meter->is_preparing) return;
    meter->stages[meter->stage].idle += (ticks() - begin) - busy / threads;
  }
};

std::atomic<Pool*> the_pool{nullptr};

// Threads do not survive fork, and a lock held by one would never open: a child gets a new pool.
void forget_pool() {
  Pool* old = the_pool.load();
  if (old == nullptr) return;
  Pool* fresh = new Pool;
  fresh->wanted.store(old->wanted.load());
  the_pool.store(fresh);
  meter = nullptr;  // of a call that another thread was in
}

int within_limits(int64_t threads) {
  return int(threads < 1 ? 1 : threads > kMaxThreads ? kMaxThreads : threads);
}

Pool& pool() {
  Pool* current = the_pool.load(std::memory_order_acquire);
  if (current != nullptr) return *current;
  static std::once_flag once;
  std::call_once(once, [] {
    Pool* fresh = new Pool;
    fresh->wanted.store(within_limits(int64_t(std::thread::hardware_concurrency())));
    the_pool.store(fresh, std::memory_order_release);
    pthread_atfork(nullptr, nullptr, forget_pool);
  });
  return *the_pool.load(std::memory_order_acquire);
}

}  // namespace

Meter* meter = nullptr;

int64_t ticks() { return int64_t(__rdtsc()); }

Preparing::Preparing() : since(0) {
  if (meter == nullptr) return;
  meter->is_preparing = true;
  since = ticks();
}

Preparing::~Preparing() {
  if (meter == nullptr) return;
  meter->stages[meter->stage].preparing += ticks() - since;
  meter->is_preparing = false;
}

void next_stage() {
  if (meter == nullptr) return;
  const int64_t now = ticks();
  meter->stages[meter->stage++].ticks = now - meter->since;
  meter->since = now;
}

void count_matrices(int64_t count) {
  if (meter != nullptr) meter->num_matrices = count;
}

void parallel(int64_t num_tasks, Task fn, void* context) {
  if (num_tasks > 0) pool().run(num_tasks, fn, context);
}

int num_threads() { return pool().wanted.load(); }

void set_num_threads(int count) {
  Turn turn;
  pool().wanted.store(within_limits(count));
}

Turn::Turn() : held(&pool().turn) { static_cast<std::mutex*>(held)->lock(); }
Turn::~Turn() { static_cast<std::mutex*>(held)->unlock(); }

void* scratch(int thread, int slot, size_t bytes) {
  Buffer& buffer = buffers[thread][slot];
  if (buffer.bytes < bytes) {
    free(buffer.data);
    size_t size = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    buffer.data = aligned_alloc(4096, size);
    if (buffer.data == nullptr) {
      buffer.bytes = 0;
      throw std::bad_alloc();
    }
    buffer.bytes = size;
  }
  return buffer.data;
}

}  // namespace fulmen
