// Arguments of the kernels, and the table of kernels of one instruction set.
//
// Pointers are to contiguous memory unless a stride says otherwise; strides count elements. The
// Python side has checked every shape.
#pragma once

#include <stdint.h>

namespace fulmen {

enum Dtype : int { kFloat32 = 0, kBFloat16 = 1 };

// A packed matrix of N output columns and K inputs. Columns stand in blocks of 16, N is
// padded with zeros; the bytes of a block, and its K, are in column order:
//   float32  [K][16]                      float32
//   bf16     [K / 2][16][2]               bf16, K padded to a multiple of 32
//   fp8      [K / 2][16][2]               e4m3, K padded to a multiple of 32 and of the group; then
//            [K / group][16]              float32 scales
//   int8     per group of inputs: [group / 4][16][4] uint8 codes, then [16] float32 scales;
//            a weight is scale (code - 128)
//   int4     per group: [group / 8][16][4] bytes, inputs 8j to 8j + 3 in the low nibbles and 8j + 4
//            to 8j + 7 in the high ones; then [16] half scales and [16] half offsets;
//            a weight is scale code + offset
//   codebook4  per run of four groups, the last perhaps of fewer: [4][16] int8, four times a scale
//            plus the number of a zero point; then of each group [group / 8][16][4] codes as in
//            int4. At the end [16] float32 scales of the columns;
//            a weight is column * scale * (level[code] - zero[number])
enum Format : int { kF32 = 0, kBF16 = 1, kFP8 = 2, kINT8 = 3, kINT4 = 4, kCODEBOOK4 = 5 };

struct Matrix {
  const uint8_t* data;
  Format format;
  int group;
  int64_t n, k;
};

enum Activation : int { kNone = 0, kSilu = 1, kSigmoid = 2 };

// out (rows, n) = activation(x (rows, k) w^T)
struct LinearArgs {
  const void* x;
  Dtype x_dtype;
  int64_t rows;
  int64_t x_stride;
  Matrix w;
  int input_bits;  // 8 or 16, of inputs that meet int8 and int4 weights
  void* out;
  Dtype out_dtype;
  int64_t out_stride;
  Activation activation;
  void* sums;          // (rows, n) in x's dtype, inputs of the activation; null: not wanted
  const void* addend;  // (rows, n) in out's dtype, added before the activation; null: nothing
};

// The gradient of an activation's input, dz = dy activation'(sums).
struct ActivationBackwardArgs {
  const void* dy;  // (rows, n)
  Dtype dy_dtype;
  int64_t rows, n;
  const void* sums;  // (rows, n)
  Activation activation;
  Dtype dtype;  // of sums and dz
  void* dz;     // (rows, n)
};

// The gradient of a matrix: out (n, k) = sum over rows of a[row] (n,) times b[row] (k,).
struct OuterArgs {
  const void* a;
  Dtype a_dtype;
  int64_t a_stride;
  const void* b;
  Dtype b_dtype;
  int64_t b_stride;
  int64_t rows, n, k;
  void* out;
  Dtype out_dtype;
  bool adds;  // to what out holds, which then is float32
};

// Packs float32 or bf16 rows: element (n, k) is at n * row_stride + k * column_stride.
struct PackArgs {
  const void* source;
  Dtype source_dtype;
  int64_t row_stride, column_stride;
  Matrix w;  // kF32 or kBF16
  uint8_t* out;
};

// Rounds a matrix (rows, width) to codebook4: of every group of inputs a scale, a zero point and
// the codes. The scales of the columns, one a row of the matrix, are given.
struct CodebookArgs {
  const float* weight;
  int64_t rows, width, row_stride, column_stride;
  int group;             // at most 128
  const float* columns;  // (rows,)
  uint8_t* codes;        // (rows, width)
  int8_t* scales;        // (rows, groups)
  uint8_t* zeros;        // (rows, groups), numbers of zero points
};

// out = weight * x / sqrt(mean(x^2) + eps), row by row. With a branch, x becomes first
// alpha x + beta branch, kept in stream; with a gate, out is multiplied by its sigmoid.
struct NormArgs {
  Dtype dtype;
  int64_t rows, width;
  const void* x;
  int64_t x_stride;
  const void* weight;  // null: only the stream
  float eps;
  const void* branch;  // null: none
  float alpha, beta;
  void* stream;
  const void* gate;  // null: none
  int64_t gate_stride;
  void* out;
};

// The gradients of NormArgs' inputs, of whatever is wanted.
struct NormBackwardArgs {
  Dtype dtype;
  int64_t rows, width;
  const void* stream;  // the input of the norm: the stream, or x
  int64_t stream_stride;
  const void* weight;
  float eps;
  const void* gate;     // (rows, width), or null
  const void* dout;     // (rows, width)
  const void* dstream;  // gradient of the stream where it is used besides the norm, or null
  float alpha, beta;
  void* dx;       // null: not wanted, as of the others
  void* dbranch;  // null where it is dx, too: alpha and beta are alike
  void* dgate;
  float* dweight;  // (width,)
};

// A token's experts: the top_k of scores + bias, weighted by their scores over the sum of these.
struct RouteArgs {
  const float* logits;  // (rows, num_experts)
  int64_t rows;
  int num_experts, top_k;
  bool is_sigmoid;    // of each logit; else softmax over all
  const float* bias;  // (num_experts,) or null
  float* weights;     // (rows, top_k)
  int64_t* ids;       // (rows, top_k)
};

// The gradient of RouteArgs' logits.
struct RouteBackwardArgs {
  const float* logits;              // (rows, num_experts)
  const int64_t* ids;               // (rows, top_k)
  const float *weights, *dweights;  // (rows, top_k)
  int64_t rows;
  int num_experts, top_k;
  bool is_sigmoid;
  float* dlogits;
};

// out (rows, C) = sum over a token's experts of weight w2(silu(w1 x) w3 x)
struct ExpertsArgs {
  const void* x;
  Dtype dtype;
  int64_t rows, x_stride;
  const int64_t* ids;    // (rows, top_k)
  const float* weights;  // (rows, top_k)
  int top_k, num_experts;
  const Matrix *w1, *w2, *w3;  // one an expert, all alike
  int input_bits;
  float* sums;  // (rows * top_k, 2, F): w1 x and w3 x, grouped by expert; null: not wanted
  void* out;
};

// The gradients of ExpertsArgs' inputs; matrices plain and contiguous, w1 and w3 (F, C), w2 (C, F).
// Those that are not wanted are null.
struct ExpertsBackwardArgs {
  Dtype dtype;
  int64_t rows;
  int hidden_size, intermediate_size, top_k, num_experts;
  const void *x, *dout;  // (rows, C)
  const int64_t* ids;
  const float* weights;
  const float* sums;                              // as the forward pass left them; null: made again
  const void *const *w1, *const *w2, *const *w3;  // one an expert
  void* dx;                                       // (rows, C)
  float* dweights;                                // (rows, top_k)
  void *const *dw1, *const *dw2, *const *dw3;
};

// logits = x w^T. Of each row only log(sum(exp(logits))) is written, the logit of its target, its
// top_k logits and their columns, best first; the entropy of softmax(logits); and one column, drawn
// with the probabilities softmax(scale logits): the first up to which they add up to more than the
// row's uniform number.
struct HeadArgs {
  const void* x;
  Dtype x_dtype;
  int64_t rows, x_stride;
  Matrix w;
  int input_bits;
  const int64_t* targets;  // (rows,) or null
  int top_k;               // at most n
  float* logsumexp;        // (rows,)
  float* target_logits;    // (rows,)
  float* top_logits;       // (rows, top_k)
  int64_t* top_ids;
  float* logits;  // (rows, n), rows logits_stride apart; null: not wanted
  int64_t logits_stride;
  float* entropy;          // (rows,) or null: not wanted
  const float* scales;     // (rows,) 1e-38 to 1e38, 0 where nothing is drawn; null: nowhere
  const double* uniforms;  // (rows,) from 0 to 1
  int64_t* drawn_ids;      // (rows,)
  float* drawn_logits;     // (rows,)
};

// The gradient of the logits of HeadArgs, gradient (onehot(target) - softmax).
struct HeadBackwardArgs {
  const float* logits;  // as the forward pass left them; null: made again of x and w
  int64_t logits_stride;
  const void* x;
  Dtype x_dtype;
  int64_t rows, x_stride;
  Matrix w;
  const int64_t* targets;
  const float *logsumexp, *gradient;  // (rows,)
  Dtype dtype;                        // of the result
  void* error;                        // (rows, n), rows error_stride apart
  int64_t error_stride;
};

// Reads all of data, or if it is null turns over products held in registers.
struct ProbeArgs {
  const uint8_t* data;
  int64_t bytes;
  int64_t iterations;
  bool integer;        // int8 products, else bf16
  int64_t operations;  // done: two a product, over all threads
};

struct AttentionArgs;
struct AttentionBackwardArgs;
struct RotateArgs;
struct LightningArgs;

struct Kernels {
  const char* name;
  void (*linear)(const LinearArgs&);
  void (*activation_backward)(const ActivationBackwardArgs&);
  void (*outer)(const OuterArgs&);
  void (*pack)(const PackArgs&);
  void (*codebook)(const CodebookArgs&);
  void (*norm)(const NormArgs&);
  void (*norm_backward)(const NormBackwardArgs&);
  void (*route)(const RouteArgs&);
  void (*route_backward)(const RouteBackwardArgs&);
  void (*experts)(const ExpertsArgs&);
  void (*experts_backward)(const ExpertsBackwardArgs&);
  void (*head)(const HeadArgs&);
  void (*head_backward)(const HeadBackwardArgs&);
  void (*softmax_attention)(const AttentionArgs&);
  void (*softmax_attention_backward)(const AttentionBackwardArgs&);
  void (*rotate)(const RotateArgs&);
  void (*lightning)(const LightningArgs&);
  void (*probe)(const ProbeArgs&);
};

const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
const Kernels* kernels_avx512_bf16();
const Kernels* kernels_amx();
const Kernels* kernels_amx_emulated();

// The table for this machine, or the one FULMEN_ISA names; null where the machine has not even
// AVX2. Decided on first use. Throws std::runtime_error for a name that is unknown or too much for
// the machine.
const Kernels* kernels();

}  // namespace fulmen
