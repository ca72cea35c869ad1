// Lightning attention: causal linear attention that fades by lambda at each token.
//
// A task is one head of one sequence, chunk by chunk of 64 tokens counted from position 0. A token
// in row i of its chunk is
//
//   out_i = lambda^(i+1) (q_i KV)  +  sum over j = 0..i of (q_i k_j) lambda^(i-j) v_j
//
// where KV is the state at the chunk's start, and at its end
//
//   KV = lambda^64 KV  +  sum over j = 0..63 of (lambda^(63-j) k_j) v_j^T.
//
// A row's bits depend on its operands alone: lanes run over outputs (keys for the scores,
// value dimensions elsewhere), never over what is summed. So each output is one chain of fused
// multiply-adds in a fixed order, however many rows and vectors a tile takes together, and a row
// never touches a later one.
#pragma once

#include "lightning_args.h"
#include "pool.h"
#include "vec.h"

namespace ISA {
namespace lightning_attention {

using fulmen::LightningArgs;
using fulmen::Tokens;

constexpr int64_t kChunk = 64;

// A tile is rows x vectors of sums, all in registers: enough chains to hide the latency of a fused
// multiply-add, and few loads for each. Rows left over, and the one row of decode, go one by one.
// Each tile is a function of its own, or the compiler spills its pointers.
#ifdef FULMEN_AVX512
constexpr int kTallRows = 4, kRows = 4, kVectors = 4, kVectorsOfOneRow = 8;
#else  // a vector is two of 16 registers; sixteen rows are six, six and four
constexpr int kTallRows = 6, kRows = 4, kVectors = 1, kVectorsOfOneRow = 4;
#endif

template <int R, int C>
static inline __attribute__((always_inline)) void clear(V (&sums)[R][C]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sums[r][c] = zero();
}

// sums += a (R, n) b (n, 16 C), n in order
template <int R, int C>
static inline __attribute__((always_inline)) void add_product(V (&sums)[R][C], const float* a,
                                                              int64_t a_stride, const float* b,
                                                              int64_t b_stride, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    V row[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) row[c] = load(b + i * b_stride + kLanes * c);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V x = set1(a[r * a_stride + i]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sums[r][c] = fma(x, row[c], sums[r][c]);
    }
  }
}

// The rows of the next chunk, asked for a few at a time while this one is computed: the rows of one
// head are far apart in memory, which no hardware foresees. (Without it a long prompt takes half as
// long again.)
struct Ahead {
  const char* rows[4];
  int64_t strides[4];
  int64_t bytes, count;  // of a row, of rows
  int num = 0;

  Ahead(int64_t bytes, int64_t count) : bytes(bytes), count(count) {}

  template <class T>
  void add(const T* first, int64_t stride) {
    rows[num] = (const char*)first;
    strides[num++] = stride * int64_t(sizeof(T));
  }

  void ask() {
    for (int n = 0; n < 2 && count > 0; ++n, --count)
      for (int i = 0; i < num; ++i) {
        for (int64_t byte = 0; byte < bytes; byte += 64) _mm_prefetch(rows[i] + byte, _MM_HINT_T0);
        rows[i] += strides[i];
      }
  }
};

template <int R, int C, class Work>
static void cover_with(const Work& work, Ahead& ahead, int64_t row, int64_t end, int64_t vector,
                       int64_t vectors) {
  for (; vector + C <= vectors; vector += C)
    for (int64_t r = row; r < end; r += R) {
      work.template tile<R, C>(r, vector);
      ahead.ask();
    }
  if constexpr (C > 1) cover_with<R, C / 2>(work, ahead, row, end, vector, vectors);
}

// Calls work.tile for rows `row` to `end` and all vectors; a panel of vectors stays in the cache
// while the rows go by.
template <class Work>
static void cover(const Work& work, Ahead& ahead, int64_t row, int64_t end, int64_t vectors) {
  const int64_t some = row + (end - row) / kTallRows * kTallRows,
                rest = some + (end - some) / kRows * kRows;
  cover_with<kTallRows, kVectors>(work, ahead, row, some, 0, vectors);
  cover_with<kRows, kVectors>(work, ahead, some, rest, 0, vectors);
  cover_with<1, kVectorsOfOneRow>(work, ahead, rest, end, 0, vectors);
}

// The chunk at hand of one head, in float32. Rows are padded with zeros to whole vectors.
struct Chunk {
  int64_t dim;          // D
  int64_t width;        // D padded: the length of a row
  float* q;             // (64, width)
  float* keys;          // (width, 64): k transposed
  float* v;             // (64, width)
  float* scores;        // (64, 64)
  float* state;         // (dim, width): KV, rows are key dimensions
  bool has_state;       // false in the first chunk of a sequence, where KV is zero
  float fade[80];       // fade[63 - n] = lambda^n, then zeros
  const float* decays;  // lambda^n, n = 0..64

  static int64_t floats(int64_t width) {
    return 3 * kChunk * width + kChunk * kChunk + width * width;
  }
};

// scores (i, j) = (q_i k_j) lambda^(i-j); of no meaning where j > i
struct Scores {
  const Chunk& chunk;

  template <int R, int C>
  __attribute__((noinline)) void tile(int64_t row, int64_t vector) const {
    V sums[R][C];
    clear(sums);
    add_product(sums, chunk.q + row * chunk.width, chunk.width, chunk.keys + kLanes * vector,
                kChunk, chunk.dim);
    for (int r = 0; r < R; ++r) {
      const float* fade = chunk.fade + (kChunk - 1) - (row + r) + kLanes * vector;
      float* out = chunk.scores + (row + r) * kChunk + kLanes * vector;
      for (int c = 0; c < C; ++c) store(out + kLanes * c, mul(sums[r][c], load(fade + kLanes * c)));
    }
  }
};

template <class T>
struct Outputs {
  const Chunk& chunk;
  T* out;  // of row 0
  int64_t stride;

  template <int R, int C>
  __attribute__((noinline)) void tile(int64_t row, int64_t vector) const {
    V sums[R][C];
    clear(sums);
    const float* v = chunk.v + kLanes * vector;
    const float* scores = chunk.scores + row * kChunk;
    if (chunk.has_state) {
      add_product(sums, chunk.q + row * chunk.width, chunk.width, chunk.state + kLanes * vector,
                  chunk.width, chunk.dim);
      for (int r = 0; r < R; ++r) {
        const V decay = set1(chunk.decays[row + r + 1]);
        for (int c = 0; c < C; ++c) sums[r][c] = mul(decay, sums[r][c]);
      }
    }
    add_product(sums, scores, kChunk, v, chunk.width, row + 1);
    // Rows after the first see one value more each.
    for (int j = 1; j < R; ++j)
      for (int r = j; r < R; ++r)
        for (int c = 0; c < C; ++c)
          sums[r][c] = fma(set1(scores[r * kChunk + row + j]),
                           load(v + (row + j) * chunk.width + kLanes * c), sums[r][c]);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) {
        const int64_t column = kLanes * (vector + c);
        T* to = out + (row + r) * stride + column;
        if (column + kLanes <= chunk.dim)
          store(to, sums[r][c]);
        else
          store_n(to, sums[r][c], int(chunk.dim - column));
      }
  }
};

// KV at the end of a full chunk, once `keys` are faded to it
struct States {
  const Chunk& chunk;

  template <int R, int C>
  __attribute__((noinline)) void tile(int64_t row, int64_t vector) const {
    V sums[R][C];
    clear(sums);
    add_product(sums, chunk.keys + row * kChunk, kChunk, chunk.v + kLanes * vector, chunk.width,
                kChunk);
    const V decay = set1(chunk.decays[kChunk]);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) {
        float* state = chunk.state + (row + r) * chunk.width + kLanes * (vector + c);
        // The first chunk has no state: the memory holds anything.
        store(state, chunk.has_state ? fma(decay, load(state), sums[r][c]) : sums[r][c]);
      }
  }
};

// Sixteen values of a row, from `column`; zeros at and beyond `dim`.
template <class T>
static inline V load_columns(const T* row, int64_t column, int64_t dim) {
  return column + kLanes <= dim ? load(row + column) : load_n(row + column, int(dim - column));
}

// Rows of a chunk: those before `first` lie in the tail, the others in the packed tokens.
template <class T>
struct Rows {
  const T* tail;
  const T* tokens;  // of row `first`
  int64_t stride, first, dim;

  const T* operator()(int64_t row) const {
    return row < first ? tail + row * dim : tokens + (row - first) * stride;
  }
};

// out (end, width) = the rows from `begin`
template <class T>
static void widen_rows(const Rows<T>& rows, int64_t begin, int64_t end, float* out, int64_t width) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t column = 0; column < width; column += kLanes)
      store(out + row * width + column, load_columns(rows(row), column, rows.dim));
}

// out (width, 64) = the rows transposed; columns up to the next multiple of 16 are zeros
template <class T>
static void transpose_rows(const Rows<T>& rows, int64_t end, float* out, int64_t width) {
  for (int64_t row = 0; row < end; row += kLanes)
    for (int64_t column = 0; column < width; column += kLanes) {
      V block[kLanes];
      for (int64_t i = 0; i < kLanes; ++i)
        block[i] = row + i < end ? load_columns(rows(row + i), column, rows.dim) : zero();
      transpose(block);
      for (int64_t i = 0; i < kLanes; ++i) store(out + (column + i) * kChunk + row, block[i]);
    }
}

template <class T>
static void store_rows(const Rows<T>& rows, int64_t begin, int64_t end, T* tail) {
  for (int64_t row = begin; row < end; ++row)
    memcpy(tail + row * rows.dim, rows(row), size_t(rows.dim) * sizeof(T));
}

// The new tokens of one chunk: `row` to `end`. At the chunk's end the state moves on.
template <class T>
static void run_chunk(Chunk& chunk, Ahead& ahead, const Rows<T>& q, const Rows<T>& k,
                      const Rows<T>& v, T* out, int64_t out_stride, int64_t row, int64_t end) {
  const int64_t vectors = chunk.width / kLanes;
  widen_rows(q, row, end, chunk.q, chunk.width);
  transpose_rows(k, end, chunk.keys, chunk.width);
  widen_rows(v, 0, end, chunk.v, chunk.width);
  // Keys beyond the sixteen that hold the diagonal take no part.
  for (int64_t begin = row; begin < end;) {
    const int64_t block = begin / kLanes, stop = least(end, (block + 1) * kLanes);
    cover(Scores{chunk}, ahead, begin, stop, block + 1);
    begin = stop;
  }
  cover(Outputs<T>{chunk, out - row * out_stride, out_stride}, ahead, row, end, vectors);
  if (end < kChunk) return;
  for (int64_t d = 0; d < chunk.dim; ++d)
    for (int64_t j = 0; j < kChunk; j += kLanes) {
      float* keys = chunk.keys + d * kChunk + j;
      store(keys, mul(load(keys), load(chunk.fade + j)));
    }
  cover(States{chunk}, ahead, 0, chunk.dim, vectors);
  chunk.has_state = true;
}

template <class T>
static void run_head(const LightningArgs& args, int64_t sequence, int64_t head, float* memory) {
  const int64_t dim = args.head_dim, width = round_up(dim, kLanes);
  const int64_t begin = args.cu_seqlens[sequence], length = args.cu_seqlens[sequence + 1] - begin;
  const int64_t past = args.context_lens == nullptr ? 0 : args.context_lens[sequence];

  float* slot_state = nullptr;
  T *k_tail = nullptr, *v_tail = nullptr;
  if (args.kv_state != nullptr) {
    const int64_t place = args.slots[sequence] * args.num_heads + head;
    slot_state = args.kv_state + place * dim * dim;
    k_tail = (T*)args.k_tail + place * kChunk * dim;
    v_tail = (T*)args.v_tail + place * kChunk * dim;
    if (past == 0) memset(slot_state, 0, size_t(dim * dim) * sizeof(float));
  }

  Chunk chunk;
  chunk.dim = dim;
  chunk.width = width;
  chunk.q = memory;
  chunk.keys = chunk.q + kChunk * width;
  chunk.v = chunk.keys + kChunk * width;
  chunk.scores = chunk.v + kChunk * width;
  chunk.has_state = past >= kChunk;
  chunk.decays = args.decays + head * (kChunk + 1);
  memset(chunk.fade, 0, sizeof chunk.fade);
  for (int64_t n = 0; n < kChunk; ++n) chunk.fade[kChunk - 1 - n] = chunk.decays[n];
  // A state of whole vectors is worked on in its slot, any other in a padded copy.
  const bool in_slot = slot_state != nullptr && width == dim;
  chunk.state = in_slot ? slot_state : chunk.scores + kChunk * kChunk;
  if (chunk.has_state && !in_slot)
    widen_rows(Rows<float>{nullptr, slot_state, dim, 0, dim}, 0, dim, chunk.state, width);

  auto first = [&](const Tokens& x) { return (const T*)x.data + begin * x.token + head * x.head; };
  const T *q = first(args.q), *k = first(args.k), *v = first(args.v);
  T* out = (T*)args.out + begin * args.out_token + head * args.out_head;
  for (int64_t token = 0; token < length;) {
    const int64_t row = (past + token) % kChunk, end = least(kChunk, row + length - token);
    const int64_t next = token + end - row;
    const Rows<T> q_rows{nullptr, q + token * args.q.token, args.q.token, row, dim};
    const Rows<T> k_rows{k_tail, k + token * args.k.token, args.k.token, row, dim};
    const Rows<T> v_rows{v_tail, v + token * args.v.token, args.v.token, row, dim};
    Ahead ahead(dim * int64_t(sizeof(T)), least(kChunk, length - next));
    ahead.add(q + next * args.q.token, args.q.token);
    ahead.add(k + next * args.k.token, args.k.token);
    ahead.add(v + next * args.v.token, args.v.token);
    ahead.add(out + next * args.out_token, args.out_token);
    run_chunk(chunk, ahead, q_rows, k_rows, v_rows, out + token * args.out_token, args.out_token,
              row, end);
    if (end < kChunk && k_tail != nullptr) {
      store_rows(k_rows, row, end, k_tail);
      store_rows(v_rows, row, end, v_tail);
    }
    token = next;
  }
  if (slot_state != nullptr && !in_slot && chunk.has_state)
    for (int64_t d = 0; d < dim; ++d)
      memcpy(slot_state + d * dim, chunk.state + d * width, size_t(dim) * sizeof(float));
}

struct Work {
  const LightningArgs& args;
  int64_t heads;  // in a task
};

static void run_task(void* context, int64_t task, int thread) {
  const Work& work = *(const Work*)context;
  const LightningArgs& args = work.args;
  float* memory = (float*)fulmen::scratch(
      thread, 0, size_t(Chunk::floats(round_up(args.head_dim, kLanes))) * sizeof(float));
  const int64_t all = args.num_sequences * args.num_heads;
  for (int64_t i = task * work.heads; i < least(all, (task + 1) * work.heads); ++i) {
    const int64_t sequence = i / args.num_heads, head = i % args.num_heads;
    if (args.dtype == fulmen::kBFloat16)
      run_head<uint16_t>(args, sequence, head, memory);
    else
      run_head<float>(args, sequence, head, memory);
  }
}

static void lightning(const LightningArgs& args) {
  int64_t longest = 0;
  for (int64_t n = 0; n < args.num_sequences; ++n)
    longest = most(longest, args.cu_seqlens[n + 1] - args.cu_seqlens[n]);
  const int64_t all = args.num_sequences * args.num_heads;
  // A head of a long sequence is a task; in decode, where it is a microsecond, a task is some
  // heads, and there are about four tasks a thread, so that a late one delays the others little.
  const int64_t share = longest < kChunk ? all / (4 * fulmen::num_threads()) : 1;
  Work work{args, most(1, least(8, share))};
  fulmen::parallel((all + work.heads - 1) / work.heads, run_task, &work);
}

}  // namespace lightning_attention

using lightning_attention::lightning;

}  // namespace ISA
