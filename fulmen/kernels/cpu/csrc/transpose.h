// Transposed copies of plain matrices: the gradients of weights are products of them.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace ISA {

// to (columns, rows) = the values of up to 16 rows of up to 16 columns that `value(row, column,
// count)` gives; `to` is at its first row and column.
template <class Value>
static inline void transpose_square(int64_t row, int64_t rows, int64_t column, int columns,
                                    void* to, int64_t to_width, fulmen::Dtype dtype,
                                    const Value& value) {
  V block[kLanes];
  for (int i = 0; i < kLanes; ++i) block[i] = i < rows ? value(row + i, column, columns) : zero();
  transpose(block);
  for (int j = 0; j < columns; ++j)
    write(to, (column + j) * to_width + row, int(rows), dtype, block[j]);
}

// Transposes `rows` rows from `row`, all columns. Two squares at a time fill a line of bf16.
template <class Value>
static inline void transpose_rows(int64_t row, int64_t rows, int64_t columns, void* to,
                                  int64_t to_width, fulmen::Dtype dtype, const Value& value) {
  for (int64_t r = row; r < row + rows; r += 2 * kLanes)
    for (int64_t c = 0; c < columns; c += kLanes)
      for (int64_t i = r; i < least(r + 2 * kLanes, row + rows); i += kLanes)
        transpose_square(i, least(kLanes, row + rows - i), c, int(least(kLanes, columns - c)), to,
                         to_width, dtype, value);
}

// to (columns, to_width) = from (rows, from_width) transposed
static inline void transpose(const void* from, int64_t rows, int64_t columns, int64_t from_width,
                             void* to, int64_t to_width, fulmen::Dtype dtype) {
  transpose_rows(0, rows, columns, to, to_width, dtype, [&](int64_t r, int64_t c, int n) {
    return read(from, r * from_width + c, n, dtype);
  });
}

}  // namespace ISA
