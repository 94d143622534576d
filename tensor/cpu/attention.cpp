// One task is a block of queries of one head. K and V are packed once per head, in parallel, into
// the panels of the matrix product; scores of a block of queries and keys stay in the cache.
#include "tensor/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "tensor/cpu/attention_tiles.h"
#include "tensor/parallel.h"

namespace tenon::cpu {
namespace {

constexpr std::int64_t kKeyBlock = 128;  // a multiple of every kPanelColumns and of 8
/// Bytes of packed K and V at a time, of one of their heads at least.
constexpr std::int64_t kPackedBytes = std::int64_t{8} << 20;

struct Problem : AttentionProblem {
  TensorView output;
  TensorView lse, keep_bits;  // row-major; absent in the op that returns the output alone

  /// Where the decisions for keys from `first_key` on go; null: nowhere.
  std::uint8_t* bits_of(std::int64_t row, std::int64_t first_key) const {
    if (!keep_bits.present || keep_bits.size(-1) == 0) return nullptr;
    return keep_bits.as<std::uint8_t>() + row * keep_bits.size(-1) + first_key / 8;
  }
};

/// Packed K and V of some of their heads: K as panels (keys, depth, kPanelColumns), V as panels
/// (value_depth, keys, kPanelColumns).
template <class C>
struct PackedHeads {
  std::int64_t first = 0;
  std::int64_t key_size = 0, value_size = 0;  // values per head
  C* keys = nullptr;
  C* values = nullptr;
};

template <class T>
void pack_heads(const Problem& p, const PackedHeads<compute_type<T>>& packed, std::int64_t heads) {
  parallel_for(2 * heads, [&](std::int64_t task) {
    const std::int64_t head = packed.first + task / 2;
    if (task % 2 == 0) {
      pack_lines<T>(p.key.as<const T>() + p.key_offset(p.key, head), p.keys, p.key.stride(-2),
                    p.depth, p.key.stride(-1), packed.keys + task / 2 * packed.key_size);
    } else {
      pack_lines<T>(p.value.as<const T>() + p.key_offset(p.value, head), p.value_depth,
                    p.value.stride(-1), p.keys, p.value.stride(-2),
                    packed.values + task / 2 * packed.value_size);
    }
  });
}

/// What a task keeps between blocks of keys: rows in whole panels, the scale applied to `query`.
template <class C>
struct QueryBlock {
  std::int64_t head, first, rows;
  std::int64_t value_columns;  // value_depth in whole panels
  C* query;                    // (kQueryBlock, depth)
  C* scores;                   // (kQueryBlock, kKeyBlock)
  C* sums;                     // (kQueryBlock, value_columns): Σ exp(score - max)·value
  C max[kQueryBlock];          // running maximum of each row's scores
  double sum[kQueryBlock];     // Σ exp(score - max), before dropout
};

/// Turns the scores of row i into exp(score - max), masked and with dropout, and brings the row's
/// running maximum, sum and weighted values up to date. `n` keys from `first_key`.
template <class T>
void update_row(const Problem& p, QueryBlock<compute_type<T>>& block, std::int64_t i,
                std::int64_t first_key, std::int64_t n) {
  using C = compute_type<T>;
  constexpr C kLowest = -std::numeric_limits<C>::infinity();
  C* scores = block.scores + i * kKeyBlock;
  const std::int64_t query = block.first + i;
  std::int64_t visible = n;
  if (p.causal) {
    visible = std::clamp<std::int64_t>(query - first_key + 1, 0, n);
    std::fill(scores + visible, scores + n, kLowest);
  }
  if (p.mask.present) mask_row<T>(p, block.head, query, first_key, visible, scores);
  pad_row(scores, n);
  const C max = std::max(block.max[i], row_max(scores, n));
  const C finite_max = max == kLowest ? C{0} : max;  // nothing visible yet: every exp is 0
  const C rescale = block.max[i] == max ? C{1} : std::exp(block.max[i] - finite_max);
  block.max[i] = max;
  block.sum[i] = block.sum[i] * static_cast<double>(rescale) + exp_row(scores, n, finite_max);
  if (rescale != C{1}) {
    scale_row(block.sums + i * block.value_columns, block.value_columns, rescale);
  }
  if (p.dropout.active) {
    const std::int64_t row = block.head * p.queries + query;
    dropout_row(scores, n, p.dropout, C{1}, row, first_key, p.bits_of(row, first_key));
  }
}

/// Fills `block` for its queries and runs over all keys that they see.
template <class T>
void attend(const Problem& p, const PackedHeads<compute_type<T>>& packed,
            QueryBlock<compute_type<T>>& block) {
  using C = compute_type<T>;
  const T* query = p.query.as<const T>() + p.offset(p.query, block.head);
  const std::int64_t panel_rows = round_up(block.rows, kPanelRows);
  std::fill_n(block.query, panel_rows * p.depth, C{0});
  for (std::int64_t i = 0; i < block.rows; ++i) {
    C* row = block.query + i * p.depth;
    load_row(query + (block.first + i) * p.query.stride(-2), p.query.stride(-1), p.depth, row);
    scale_row(row, p.depth, static_cast<C>(p.scale));
  }
  std::fill_n(block.sums, panel_rows * block.value_columns, C{0});
  std::fill_n(block.max, kQueryBlock, -std::numeric_limits<C>::infinity());
  std::fill_n(block.sum, kQueryBlock, 0.0);

  const std::int64_t local_head = block.head / p.group - packed.first;
  const C* keys = packed.keys + local_head * packed.key_size;
  const C* values = packed.values + local_head * packed.value_size;
  const std::int64_t end = p.visible_keys(block.first + block.rows);
  for (std::int64_t first = 0; first < end; first += kKeyBlock) {
    const std::int64_t n = std::min(kKeyBlock, end - first);
    multiply<C>({block.query, p.depth}, keys + first * p.depth, p.depth * kPanelColumns<C>, p.depth,
                panel_rows, round_up(n, kPanelColumns<C>), block.scores, kKeyBlock, false);
    for (std::int64_t i = 0; i < block.rows; ++i) update_row<T>(p, block, i, first, n);
    multiply<C>({block.scores, kKeyBlock}, values + first * kPanelColumns<C>,
                p.keys * kPanelColumns<C>, n, panel_rows, block.value_columns, block.sums,
                block.value_columns, true);
  }
}

template <class T>
void write_rows(const Problem& p, const QueryBlock<compute_type<T>>& block) {
  using C = compute_type<T>;
  T* output = p.output.as<T>() + p.offset(p.output, block.head);
  for (std::int64_t i = 0; i < block.rows; ++i) {
    C* row = block.sums + i * block.value_columns;
    // Without a mask a sum of 0 means scores that overflowed, which are NaN as softmax's.
    const bool unseen = p.keys == 0 || (p.mask.present && block.sum[i] == 0);
    const bool empty = unseen || (p.dropout.active && p.dropout.scale == 0);
    const double factor = empty ? 0 : p.dropout.scale / block.sum[i];
    if (empty) std::fill_n(row, p.value_depth, C{0});
    scale_row(row, p.value_depth, static_cast<C>(factor));
    store_row(row, p.value_depth, output + (block.first + i) * p.output.stride(-2),
              p.output.stride(-1));
    if (!p.lse.present) continue;
    p.lse.as<C>()[block.head * p.queries + block.first + i] =
        block.max[i] + static_cast<C>(std::log(block.sum[i]));
  }
}

/// Runs all heads that read the `key_heads` packed ones.
template <class T>
void attend_heads(const Problem& p, const PackedHeads<compute_type<T>>& packed,
                  std::int64_t key_heads) {
  using C = compute_type<T>;
  const std::int64_t blocks = round_up(p.queries, kQueryBlock) / kQueryBlock;
  parallel_for(key_heads * p.group * blocks, [&](std::int64_t task) {
    thread_local Scratch query_scratch, score_scratch, sum_scratch;
    // The last blocks of queries see most keys under a causal mask; they go first.
    const std::int64_t first = (blocks - 1 - task % blocks) * kQueryBlock;
    QueryBlock<C> block;
    block.head = packed.first * p.group + task / blocks;
    block.first = first;
    block.rows = std::min(kQueryBlock, p.queries - first);
    block.value_columns = round_up(p.value_depth, kPanelColumns<C>);
    block.query = query_scratch.get<C>(kQueryBlock * p.depth);
    block.scores = score_scratch.get<C>(kQueryBlock * kKeyBlock);
    block.sums = sum_scratch.get<C>(kQueryBlock * block.value_columns);
    attend<T>(p, packed, block);
    write_rows<T>(p, block);
  });
}

}  // namespace

void attention(const KernelArgs& args) {
  Problem p{
      attention_problem("scaled_dot_product_attention", args, args.attributes<AttentionAttrs>(),
                        args.inputs.first(3), args.inputs[3]),
      args.outputs[0],
      {},
      {}};
  if (args.outputs.size() > 1) {
    p.lse = args.outputs[1];
    p.keep_bits = args.outputs[2];
    const std::int64_t bytes = p.keep_bits.numel();
    if (bytes > 0) std::memset(p.keep_bits.data, 0xff, static_cast<std::size_t>(bytes));
  }
  const std::int64_t heads = p.heads.product();
  if (heads * p.queries == 0 || (p.value_depth == 0 && !p.lse.present)) return;
  dispatch_float(p.output.dtype, [&]<typename T>() {
    using C = compute_type<T>;
    PackedHeads<C> packed;
    packed.key_size = round_up(p.keys, kPanelColumns<C>) * p.depth;
    packed.value_size = round_up(p.value_depth, kPanelColumns<C>) * p.keys;
    const auto bytes =
        static_cast<std::int64_t>(sizeof(C)) * (packed.key_size + packed.value_size) + 1;
    const std::int64_t key_heads = p.key_heads.product();
    const std::int64_t most = std::clamp<std::int64_t>(kPackedBytes / bytes, 1, key_heads);
    thread_local Scratch key_scratch, value_scratch;
    packed.keys = key_scratch.get<C>(most * packed.key_size);
    packed.values = value_scratch.get<C>(most * packed.value_size);
    for (std::int64_t head = 0; head < key_heads; head += most) {
      const std::int64_t count = std::min(most, key_heads - head);
      packed.first = head;
      pack_heads<T>(p, packed, count);
      attend_heads<T>(p, packed, count);
    }
  });
}

}  // namespace tenon::cpu
