// Packing, tiling and the epilogue of CPU matrix products. Loop order and panel shapes follow
// K. Goto, R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication", TOMS 34, 2008.
#include "tensor/cpu/gemm.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "tensor/cpu/rows.h"
#include "tensor/parallel.h"

namespace tenon::cpu {
namespace {

/// Depth of the products that stay in registers: a panel of B of this depth fits the L1 cache.
constexpr std::int64_t kDepthBlock = 256;
/// Bytes of packed A or B at a time; larger operands are processed in blocks.
constexpr std::int64_t kPackedBytes = std::int64_t{8} << 20;
/// Packing tasks hold about this many elements.
constexpr std::int64_t kPackGrain = 32768;
/// Up to this many rows, reading B unpacked is faster than packing it.
constexpr std::int64_t kFewRows = 8;

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Rows and columns of C that one task computes; multiples of the panel sizes.
struct TileShape {
  std::int64_t rows;
  std::int64_t columns;
};

/// Large tiles reuse packed panels more; small ones keep many cores busy on small matrices.
TileShape tile_shape(std::int64_t batches, std::int64_t rows, std::int64_t columns) {
  constexpr TileShape kLarge{96, 128};
  constexpr TileShape kSmall{48, 64};
  constexpr std::int64_t kEnoughTiles = 32;
  const std::int64_t tiles = divide_up(rows, kLarge.rows) * divide_up(columns, kLarge.columns);
  return tiles >= divide_up(kEnoughTiles, batches) ? kLarge : kSmall;
}

/// Which part of a problem is packed at once: some batches, or a block of rows and columns of one.
struct Block {
  std::int64_t batches;
  std::int64_t rows;
  std::int64_t columns;
};

Block packed_block(const MatrixProduct& p, std::int64_t batches, std::int64_t rows, TileShape tile,
                   std::int64_t element_bytes) {
  const std::int64_t limit = kPackedBytes / element_bytes;
  const std::int64_t depth = std::max<std::int64_t>(p.depth, 1);
  const auto fitting = [&](std::int64_t extent, std::int64_t unit) {
    const std::int64_t whole = divide_up(extent, unit) * unit;
    return std::min(whole, std::max<std::int64_t>(limit / depth / unit, 1) * unit);
  };
  const std::int64_t block_rows = fitting(rows, tile.rows);
  const std::int64_t block_columns = fitting(p.columns, tile.columns);
  const bool whole_matrix = block_rows >= rows && block_columns >= p.columns;
  const std::int64_t matrix = std::max(block_rows, block_columns) * depth;
  const std::int64_t together = whole_matrix ? std::max<std::int64_t>(limit / matrix, 1) : 1;
  return {std::min(batches, together), block_rows, block_columns};
}

/// One matrix operand as packing sees it: lines (rows of A, columns of B) of `depth` elements.
struct Lines {
  const void* data;
  const Extents& batch;
  const Extents& batch_strides;
  Extents sizes;
  Extents strides;
  std::int64_t depth_stride;
};

/// Packs lines [first, first + count) of batches [batch0, batch0 + batches) into panels of kWidth:
/// out (batches, panels, depth, kWidth). Neighbouring lines share cache lines, so panels take turns
/// every kStretch of the depth.
template <int kWidth, class T>
void pack(const Lines& lines, std::int64_t batch0, std::int64_t batches, std::int64_t first,
          std::int64_t count, std::int64_t depth, compute_type<T>* out) {
  constexpr std::int64_t kStretch = 32;
  const std::int64_t panels = divide_up(count, kWidth);
  const bool neighbours = lines.sizes.size() == 1 && lines.strides[0] == 1;
  const std::int64_t stretch = neighbours ? kStretch : std::max<std::int64_t>(depth, 1);
  const std::int64_t stretches = divide_up(depth, stretch);
  const std::int64_t grain = std::max<std::int64_t>(kPackGrain / (kWidth * stretch + 1), 1);
  parallel_ranges(batches * stretches * panels, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t panel = i % panels;
      const std::int64_t k = i / panels % stretches * stretch;
      const std::int64_t batch = i / panels / stretches;
      const std::int64_t line = panel * kWidth;
      const int present = static_cast<int>(std::min<std::int64_t>(kWidth, count - line));
      std::int64_t offsets[kWidth];
      for (int l = 0; l < present; ++l) {
        offsets[l] = offset_of(first + line + l, lines.sizes, lines.strides);
      }
      const T* matrix = static_cast<const T*>(lines.data) + k * lines.depth_stride +
                        offset_of(batch0 + batch, lines.batch, lines.batch_strides);
      pack_panel<kWidth, T>(matrix, offsets, present, std::min(stretch, depth - k),
                            lines.depth_stride,
                            out + ((batch * panels + panel) * depth + k) * kWidth);
    }
  });
}

/// write_tile where rows of C are neighbours in memory and columns are not: by columns, so that stores
/// run along memory.
template <class T>
void write_tile_by_columns(const MatrixProduct& p, std::int64_t row0, std::int64_t rows,
                           std::int64_t columns, const compute_type<T>* tile,
                           std::int64_t tile_columns, const compute_type<T>* bias, T* c) {
  using C = compute_type<T>;
  thread_local Scratch scratch;
  C* line = scratch.get<C>(rows);
  const std::int64_t stretch = p.rows[p.rows.size() - 1];
  for (std::int64_t column = 0; column < columns; ++column) {
    const C shift = bias != nullptr ? bias[column] : C{0};
    for (std::int64_t r = 0; r < rows; ++r) {
      line[r] = tile[r * tile_columns + column];
      if (bias != nullptr) line[r] += shift;
    }
    for (std::int64_t r = 0; r < rows;) {
      const std::int64_t count = std::min(rows - r, stretch - (row0 + r) % stretch);
      store_row(line + r, count, c + column * p.c_column + offset_of(row0 + r, p.rows, p.c_rows),
                1);
      r += count;
    }
  }
}

/// The same of A where the problem writes its rows.
template <class C>
void write_panels(const MatrixProduct& p, std::int64_t batch0, std::int64_t batches,
                  std::int64_t first, std::int64_t count, C* out) {
  const std::int64_t panels = divide_up(count, kPanelRows);
  const std::int64_t panel_size = p.depth * kPanelRows;
  const std::int64_t grain = std::max<std::int64_t>(kPackGrain / (panel_size + 1), 1);
  parallel_ranges(batches * panels, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t row = i % panels * kPanelRows;
      const int present = static_cast<int>(std::min<std::int64_t>(kPanelRows, count - row));
      p.write_rows(p.context, batch0 + i / panels, first + row, present, out + i * panel_size);
    }
  });
}

/// Adds the bias to a tile (rows, columns) held in float or double, and rounds it into C.
template <class T>
void write_tile(const MatrixProduct& p, std::int64_t batch, std::int64_t row0, std::int64_t rows,
                std::int64_t column0, std::int64_t columns, compute_type<T>* tile,
                std::int64_t tile_columns) {
  using C = compute_type<T>;
  thread_local Scratch bias_scratch;
  C* bias = nullptr;
  if (p.bias != nullptr) {
    bias = bias_scratch.get<C>(tile_columns);
    load_row(static_cast<const T*>(p.bias) + column0 * p.bias_column, p.bias_column, columns, bias);
  }
  T* c = static_cast<T*>(p.c) + offset_of(batch, p.batch, p.c_batch) + column0 * p.c_column;
  if (p.c_column != 1 && p.c_rows[p.c_rows.size() - 1] == 1) {
    return write_tile_by_columns<T>(p, row0, rows, columns, tile, tile_columns, bias, c);
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    C* row = tile + r * tile_columns;
    if (bias != nullptr) add_row(row, bias, columns);
    store_row(row, columns, c + offset_of(row0 + r, p.rows, p.c_rows), p.c_column);
  }
}

/// out (tile.rows, tile.columns) = packed panels of A times packed panels of B.
template <class C>
void multiply_tile(const C* a, const C* b, std::int64_t depth, TileShape tile, C* out) {
  if (depth == 0) std::fill_n(out, tile.rows * tile.columns, C{0});
  for (std::int64_t k = 0; k < depth; k += kDepthBlock) {
    multiply_panels<C>({.a = a + k * kPanelRows,
                        .a_panel = depth * kPanelRows,
                        .a_row = 1,
                        .a_depth = kPanelRows,
                        .b = b + k * kPanelColumns<C>,
                        .b_panel = depth * kPanelColumns<C>,
                        .depth = std::min(kDepthBlock, depth - k),
                        .rows = tile.rows,
                        .columns = tile.columns,
                        .out = out,
                        .out_row = tile.columns,
                        .accumulate = k > 0});
  }
}

/// Computes the tiles of one packed block, whose first element is (batch0, row0, column0).
template <class T>
void multiply_block(const MatrixProduct& p, TileShape tile, Block size, std::int64_t batch0,
                    std::int64_t row0, std::int64_t column0, const compute_type<T>* a,
                    const compute_type<T>* b) {
  using C = compute_type<T>;
  const std::int64_t tile_rows = divide_up(size.rows, tile.rows);
  const std::int64_t tile_columns = divide_up(size.columns, tile.columns);
  const std::int64_t a_matrix = divide_up(size.rows, kPanelRows) * kPanelRows * p.depth;
  const std::int64_t b_matrix =
      divide_up(size.columns, kPanelColumns<C>) * kPanelColumns<C> * p.depth;
  parallel_for(size.batches * tile_rows * tile_columns, [&](std::int64_t task) {
    const std::int64_t batch = task / (tile_rows * tile_columns);
    const std::int64_t row = task / tile_columns % tile_rows * tile.rows;
    const std::int64_t column = task % tile_columns * tile.columns;
    const std::int64_t rows = std::min(tile.rows, size.rows - row);
    const std::int64_t columns = std::min(tile.columns, size.columns - column);
    thread_local Scratch scratch;
    C* out = scratch.get<C>(tile.rows * tile.columns);
    const TileShape whole_panels{divide_up(rows, kPanelRows) * kPanelRows,
                                 divide_up(columns, kPanelColumns<C>) * kPanelColumns<C>};
    multiply_tile(a + batch * a_matrix + row * p.depth, b + batch * b_matrix + column * p.depth,
                  p.depth, whole_panels, out);
    write_tile<T>(p, batch0 + batch, row0 + row, rows, column0 + column, columns, out,
                  whole_panels.columns);
  });
}

template <class T>
void multiply_packed(const MatrixProduct& p, std::int64_t batches, std::int64_t rows) {
  using C = compute_type<T>;
  const Lines a{p.a, p.batch, p.a_batch, p.rows, p.a_rows, p.a_depth};
  const Lines b{p.b, p.batch, p.b_batch, {p.columns}, {p.b_column}, p.b_depth};
  const TileShape tile = tile_shape(batches, rows, p.columns);
  const Block block = packed_block(p, batches, rows, tile, sizeof(C));
  thread_local Scratch a_scratch;
  thread_local Scratch b_scratch;
  C* packed_a = a_scratch.get<C>(block.batches * block.rows * p.depth);
  C* packed_b = b_scratch.get<C>(block.batches * block.columns * p.depth);
  for (std::int64_t batch = 0; batch < batches; batch += block.batches) {
    Block size{std::min(block.batches, batches - batch), 0, 0};
    for (std::int64_t column = 0; column < p.columns; column += block.columns) {
      size.columns = std::min(block.columns, p.columns - column);
      pack<kPanelColumns<C>, T>(b, batch, size.batches, column, size.columns, p.depth, packed_b);
      for (std::int64_t row = 0; row < rows; row += block.rows) {
        size.rows = std::min(block.rows, rows - row);
        if (p.write_rows != nullptr) {
          write_panels(p, batch, size.batches, row, size.rows, packed_a);
        } else {
          pack<kPanelRows, T>(a, batch, size.batches, row, size.rows, p.depth, packed_a);
        }
        multiply_block<T>(p, tile, size, batch, row, column, packed_a, packed_b);
      }
    }
  }
}

template <class C>
C dot(const C* x, const C* y, std::int64_t n) {
  constexpr int kWidth = kLanes<C>;
  Vec<C> sums[4] = {};
  std::int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    for (int lane = 0; lane < 4; ++lane) {
      sums[lane] += load(x + i + lane * kWidth) * load(y + i + lane * kWidth);
    }
  }
  C total = horizontal_sum<C>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < n; ++i) total += x[i] * y[i];
  return total;
}

/// One to kFewRows rows, of one batch, against columns of unit stride: each column is read once.
template <class T>
void multiply_few_rows(const MatrixProduct& p, std::int64_t rows) {
  using C = compute_type<T>;
  constexpr std::int64_t kColumnsPerTask = 32;
  thread_local Scratch a_scratch;
  C* const a = a_scratch.get<C>(rows * p.depth);
  for (std::int64_t r = 0; r < rows; ++r) {
    load_row(static_cast<const T*>(p.a) + offset_of(r, p.rows, p.a_rows), p.a_depth, p.depth,
             a + r * p.depth);
  }
  parallel_ranges(p.columns, kColumnsPerTask, [&](std::int64_t begin, std::int64_t end) {
    thread_local Scratch column_scratch;
    C tile[kFewRows * kColumnsPerTask];
    for (std::int64_t column = begin; column < end; ++column) {
      const T* source = static_cast<const T*>(p.b) + column * p.b_column;
      const C* values = nullptr;
      if constexpr (std::is_same_v<T, C>) {
        values = source;
      } else {
        C* converted = column_scratch.get<C>(p.depth);
        load_row(source, 1, p.depth, converted);
        values = converted;
      }
      for (std::int64_t r = 0; r < rows; ++r) {
        tile[r * kColumnsPerTask + column - begin] = dot(a + r * p.depth, values, p.depth);
      }
    }
    write_tile<T>(p, 0, 0, rows, begin, end - begin, tile, kColumnsPerTask);
  });
}

/// Cᵀ = Bᵀ·Aᵀ of a single matrix without bias.
MatrixProduct transposed(const MatrixProduct& p) {
  MatrixProduct t;
  t.a = p.b;
  t.b = p.a;
  t.c = p.c;
  t.rows = {p.columns};
  t.a_rows = {p.b_column};
  t.c_rows = {p.c_column};
  t.columns = p.rows[0];
  t.depth = p.depth;
  t.a_depth = p.b_depth;
  t.b_depth = p.a_depth;
  t.b_column = p.a_rows[0];
  t.c_column = p.c_rows[0];
  return t;
}

/// out[k · width + i] = lines[i][k] for 8 lines and 8 steps of the depth.
void transpose_8x8(const float* const* lines, float* out, std::int64_t width) {
  using V = Vec<float>;
  static_assert(kLanes<float> == 8);
  V pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    const V a = load(lines[i]), b = load(lines[i + 1]);
    pairs[i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[i + 1] = __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int k = 0; k < 2; ++k) {
      const V a = pairs[i + k], b = pairs[i + k + 2];
      fours[i + 2 * k] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
      fours[i + 2 * k + 1] = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int k = 0; k < 4; ++k) {
    const V a = fours[k], b = fours[k + 4];
    store(out + k * width, __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11));
    store(out + (k + 4) * width, __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15));
  }
}

/// pack_panel of whole vectors of lines whose elements are neighbours; the depth that is done.
template <int kWidth>
std::int64_t pack_by_transposing(const float* data, const std::int64_t* offsets,
                                 std::int64_t depth, float* out) {
  const std::int64_t whole = depth / 8 * 8;
  for (int i = 0; i < kWidth; i += 8) {
    const float* lines[8];
    for (int l = 0; l < 8; ++l) lines[l] = data + offsets[i + l];
    for (std::int64_t k = 0; k < whole; k += 8) {
      transpose_8x8(lines, out + k * kWidth + i, kWidth);
      for (const float*& line : lines) line += 8;
    }
  }
  return whole;
}

}  // namespace

template <int kWidth, class T>
void pack_panel(const T* data, const std::int64_t* offsets, int count, std::int64_t depth,
                std::int64_t depth_stride, compute_type<T>* out) {
  using C = compute_type<T>;
  constexpr std::int64_t kChunk = 128;
  bool adjacent = count == kWidth;
  for (int i = 1; i < count && adjacent; ++i) adjacent = offsets[i] == offsets[0] + i;
  if (adjacent) {
    for (std::int64_t k = 0; k < depth; ++k) {
      const T* source = data + offsets[0] + k * depth_stride;
      if constexpr (std::is_same_v<T, C>) {
        std::memcpy(out + k * kWidth, source, kWidth * sizeof(C));  // unlike copy_n no call
      } else {
        load_row(source, 1, kWidth, out + k * kWidth);
      }
    }
    return;
  }
  std::int64_t done = 0;
  if constexpr (std::is_same_v<T, float> && kWidth % kLanes<float> == 0) {
    if (count == kWidth && depth_stride == 1) {
      done = pack_by_transposing<kWidth>(data, offsets, depth, out);
    }
  }
  if (done == depth) return;
  C lines[kWidth][kChunk];
  std::fill_n(&lines[0][0], kWidth * kChunk, C{0});
  for (std::int64_t k = done; k < depth; k += kChunk) {
    const std::int64_t size = std::min(kChunk, depth - k);
    for (int i = 0; i < count; ++i) {
      load_row(data + offsets[i] + k * depth_stride, depth_stride, size, lines[i]);
    }
    for (std::int64_t j = 0; j < size; ++j) {
      for (int i = 0; i < kWidth; ++i) out[(k + j) * kWidth + i] = lines[i][j];
    }
  }
}

template <class T>
void gemm(const MatrixProduct& p) {
  const std::int64_t batches = p.batch.product();
  const std::int64_t rows = p.rows.product();
  if (batches == 0 || rows == 0 || p.columns == 0) return;
  const bool stored = p.write_rows == nullptr && batches == 1;
  if (stored && rows <= kFewRows && p.b_depth == 1) return multiply_few_rows<T>(p, rows);
  if (stored && p.columns <= kFewRows && p.a_depth == 1 && p.rows.size() == 1 &&
      p.bias == nullptr) {
    return multiply_few_rows<T>(transposed(p), p.columns);
  }
  multiply_packed<T>(p, batches, rows);
}

#define TENON_INSTANTIATE_GEMM(T)                                                           \
  template void gemm<T>(const MatrixProduct&);                                              \
  template void pack_panel<kPanelRows, T>(const T*, const std::int64_t*, int, std::int64_t, \
                                          std::int64_t, compute_type<T>*);                  \
  template void pack_panel<kPanelColumns<compute_type<T>>, T>(                              \
      const T*, const std::int64_t*, int, std::int64_t, std::int64_t, compute_type<T>*);
TENON_INSTANTIATE_GEMM(float)
TENON_INSTANTIATE_GEMM(double)
TENON_INSTANTIATE_GEMM(Half)
TENON_INSTANTIATE_GEMM(BFloat16)

}  // namespace tenon::cpu
