// For a block of queries, whose scores for all keys stay in the cache:
//
//   P  = softmax(Q·Kᵀ·scale + mask)      D  = dropout mask, 1/(1-p) where kept
//   dV += (P∘D)ᵀ·dO                      dS = P∘(D∘(dO·Vᵀ) - Σ dO∘O)
//   dQ = dS·K·scale                      dK += dSᵀ·Q·scale
//
// One task runs, in order, the blocks of all queries that read one head of the keys or, where those heads are
// few, a slice of them: then the slices' dK and dV are added up in order. How many slices there are depends
// on the shape alone.
#include "tensor/cpu/attention_backward.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "tensor/cpu/attention_tiles.h"
#include "tensor/parallel.h"

namespace tenon::cpu {
namespace {

constexpr std::int64_t kEnoughTasks = 16;

struct Problem : AttentionProblem {
  TensorView gradient, output;
  TensorView d_query, d_key, d_value;
  TensorView d_mask;  // broadcast to the scores' rank; present only when it is wanted

  std::int64_t blocks() const { return round_up(queries, kQueryBlock) / kQueryBlock; }
};

Problem make_problem(const KernelArgs& args) {
  const auto& attrs = args.attributes<AttentionBackwardAttrs>();
  Problem p{attention_problem("scaled_dot_product_attention_backward", args, attrs,
                              args.inputs.subspan(1, 3), args.inputs[5]),
            args.inputs[0],
            args.inputs[4],
            args.outputs[0],
            args.outputs[1],
            args.outputs[2],
            {}};
  if (args.outputs.size() > 3) p.d_mask = broadcast_mask(args.outputs[3], p.mask.sizes);
  return p;
}

/// Strides of a task's buffers, in values. Scores have room for whole panels of keys as columns and,
/// read as columns of the transposed matrix, as rows.
template <class C>
struct Sizes {
  explicit Sizes(const AttentionProblem& p)
      : scores(round_up(p.keys + kPanelRows - 1, kPanelColumns<C>)),
        key_rows(round_up(p.keys, kPanelRows)),
        depth(round_up(p.depth, kPanelColumns<C>)),
        value_depth(round_up(p.value_depth, kPanelColumns<C>)) {}
  std::int64_t scores;
  std::int64_t key_rows;
  std::int64_t depth, value_depth;
};

/// The packed operands of one head; panels of keys multiply along the head, the others along keys.
template <class C>
struct PackedHead {
  C* keys;         // (keys, depth) by keys
  C* values;       // (keys, value_depth) by keys
  C* key_columns;  // (keys, depth) by columns of the head
};

template <class T>
PackedHead<compute_type<T>> pack_head(const Problem& p, std::int64_t key_head, bool with_columns) {
  using C = compute_type<T>;
  thread_local Scratch keys, values, key_columns;
  const Sizes<C> sizes(p);
  const T* key = p.key.as<const T>() + p.key_offset(p.key, key_head);
  const T* value = p.value.as<const T>() + p.key_offset(p.value, key_head);
  const PackedHead<C> packed{keys.get<C>(sizes.scores * p.depth),
                             values.get<C>(sizes.scores * p.value_depth),
                             key_columns.get<C>(sizes.depth * p.keys)};
  pack_lines<T>(key, p.keys, p.key.stride(-2), p.depth, p.key.stride(-1), packed.keys);
  pack_lines<T>(value, p.keys, p.value.stride(-2), p.value_depth, p.value.stride(-1),
                packed.values);
  if (with_columns) {
    pack_lines<T>(key, p.depth, p.key.stride(-1), p.keys, p.key.stride(-2), packed.key_columns);
  }
  return packed;
}

/// The queries of one block, and what is computed of them.
template <class C>
struct QueryBlock {
  std::int64_t head = 0, first = 0, rows = 0, keys = 0;  // keys: that any of its queries sees
  C* query;                                              // (kQueryBlock, depth), times the scale
  C* gradient;                                           // (kQueryBlock, value_depth)
  C* weights;                                            // (kQueryBlock, scores): P∘D
  C* d_scores;                                           // (kQueryBlock, scores): dS
  double delta[kQueryBlock];                             // Σ dO∘O of each row
};

template <class C>
QueryBlock<C> allocate_block(const Problem& p) {
  thread_local Scratch query, gradient, weights, d_scores;
  const Sizes<C> sizes(p);
  QueryBlock<C> block;
  block.query = query.get<C>(kQueryBlock * p.depth);
  block.gradient = gradient.get<C>(kQueryBlock * p.value_depth);
  block.weights = weights.get<C>(kQueryBlock * sizes.scores);
  block.d_scores = d_scores.get<C>(kQueryBlock * sizes.scores);
  return block;
}

/// Loads the block's rows of query, grad and output; rows that fill the last panel are zero.
template <class T>
void load_block(const Problem& p, QueryBlock<compute_type<T>>& block) {
  using C = compute_type<T>;
  thread_local Scratch scratch;
  C* products = scratch.get<C>(p.value_depth);
  const std::int64_t panel_rows = round_up(block.rows, kPanelRows);
  std::fill(block.query + block.rows * p.depth, block.query + panel_rows * p.depth, C{0});
  std::fill(block.gradient + block.rows * p.value_depth,
            block.gradient + panel_rows * p.value_depth, C{0});
  const auto row_of = [&](const TensorView& view, std::int64_t i) {
    return view.as<const T>() + p.offset(view, block.head) + (block.first + i) * view.stride(-2);
  };
  for (std::int64_t i = 0; i < block.rows; ++i) {
    C* query = block.query + i * p.depth;
    C* gradient = block.gradient + i * p.value_depth;
    load_row(row_of(p.query, i), p.query.stride(-1), p.depth, query);
    scale_row(query, p.depth, static_cast<C>(p.scale));
    load_row(row_of(p.gradient, i), p.gradient.stride(-1), p.value_depth, gradient);
    load_row(row_of(p.output, i), p.output.stride(-1), p.value_depth, products);
    for (std::int64_t j = 0; j < p.value_depth; ++j) products[j] *= gradient[j];
    block.delta[i] = row_sum(products, p.value_depth);
  }
}

/// Row i: scores to P∘D, and dO·Vᵀ to dS.
template <class T>
void finish_row(const Problem& p, QueryBlock<compute_type<T>>& block, std::int64_t i) {
  using C = compute_type<T>;
  constexpr C kLowest = -std::numeric_limits<C>::infinity();
  const Sizes<C> sizes(p);
  const std::int64_t n = block.keys;
  const std::int64_t query = block.first + i;
  C* weights = block.weights + i * sizes.scores;
  C* d_scores = block.d_scores + i * sizes.scores;
  const std::int64_t seen = p.visible_keys(query + 1);
  std::fill(weights + seen, weights + n, kLowest);
  if (p.mask.present) mask_row<T>(p, block.head, query, 0, seen, weights);
  pad_row(weights, n);
  const C max = row_max(weights, n);
  const double sum = exp_row(weights, n, max == kLowest ? C{0} : max);
  const std::int64_t end = round_up(n + kPanelRows - 1, kPanelColumns<C>);
  if (p.mask.present && sum == 0) {  // the query sees no key
    std::fill(weights, weights + end, C{0});
    std::fill(d_scores, d_scores + end, C{0});
    return;
  }
  const auto factor = static_cast<C>(1 / sum);
  const auto delta = static_cast<C>(block.delta[i]);
  if (!p.dropout.active) {
    for (std::int64_t j = 0; j < n; ++j) {
      weights[j] *= factor;
      d_scores[j] = weights[j] * (d_scores[j] - delta);
    }
  } else {
    thread_local Scratch scratch;
    C* kept = scratch.get<C>(n);
    std::fill_n(kept, n, C{1});
    dropout_row(kept, n, p.dropout, static_cast<C>(p.dropout.scale), block.head * p.queries + query,
                0);
    for (std::int64_t j = 0; j < n; ++j) {
      const C probability = weights[j] * factor;
      const C d_probability = kept[j] != C{0} ? d_scores[j] * kept[j] : C{0};
      d_scores[j] = probability * (d_probability - delta);
      weights[j] = probability * kept[j];
    }
  }
  std::fill(weights + n, weights + end, C{0});
  std::fill(d_scores + n, d_scores + end, C{0});
}

/// Computes P∘D and dS of the queries [first, first + kQueryBlock) of a head.
template <class T>
void compute_scores(const Problem& p, const PackedHead<compute_type<T>>& packed, std::int64_t head,
                    std::int64_t first, QueryBlock<compute_type<T>>& block) {
  using C = compute_type<T>;
  const Sizes<C> sizes(p);
  block.head = head;
  block.first = first;
  block.rows = std::min(kQueryBlock, p.queries - first);
  block.keys = p.visible_keys(first + block.rows);
  load_block<T>(p, block);
  const std::int64_t rows = round_up(block.rows, kPanelRows);
  const std::int64_t columns = round_up(block.keys, kPanelColumns<C>);
  // [rows,depth] x [keys,depth]^T and [rows,value_depth] x [keys,value_depth]^T -> [rows,keys]
  multiply<C>({block.query, p.depth}, packed.keys, p.depth * kPanelColumns<C>, p.depth, rows,
              columns, block.weights, sizes.scores, false);
  multiply<C>({block.gradient, p.value_depth}, packed.values, p.value_depth * kPanelColumns<C>,
              p.value_depth, rows, columns, block.d_scores, sizes.scores, false);
  for (std::int64_t i = 0; i < block.rows; ++i) finish_row<T>(p, block, i);
}

/// sums (key_rows, columns) += scoresᵀ·rows for rows (block.rows, columns) of query or gradient.
template <class C>
void add_key_sums(const QueryBlock<C>& block, const C* scores, std::int64_t stride, const C* rows,
                  std::int64_t columns, C* sums) {
  thread_local Scratch scratch;
  const std::int64_t panel_columns = round_up(columns, kPanelColumns<C>);
  C* packed = scratch.get<C>(panel_columns * block.rows);
  pack_lines<C>(rows, columns, 1, block.rows, columns, packed);
  multiply<C>({scores, 1, stride}, packed, block.rows * kPanelColumns<C>, block.rows,
              round_up(block.keys, kPanelRows), panel_columns, sums, panel_columns, true);
}

/// dQ of the block: dS·K·scale.
template <class T>
void write_query_gradient(const Problem& p, const PackedHead<compute_type<T>>& packed,
                          const QueryBlock<compute_type<T>>& block) {
  using C = compute_type<T>;
  thread_local Scratch scratch;
  const Sizes<C> sizes(p);
  C* sums = scratch.get<C>(kQueryBlock * sizes.depth);
  // [rows,keys] x [keys,depth] -> [rows,depth]
  multiply<C>({block.d_scores, sizes.scores}, packed.key_columns, p.keys * kPanelColumns<C>,
              block.keys, round_up(block.rows, kPanelRows), sizes.depth, sums, sizes.depth, false);
  T* target = p.d_query.as<T>() + p.offset(p.d_query, block.head);
  for (std::int64_t i = 0; i < block.rows; ++i) {
    C* row = sums + i * sizes.depth;
    scale_row(row, p.depth, static_cast<C>(p.scale));
    store_row(row, p.depth, target + (block.first + i) * p.d_query.stride(-2),
              p.d_query.stride(-1));
  }
}

/// dK and dV of one task, before they are rounded.
template <class C>
struct KeySums {
  C* key;    // (key_rows, depth)
  C* value;  // (key_rows, value_depth)
};

/// Runs blocks [begin, end) of those that read a head of the keys: writes their dQ, adds to dK and dV.
template <class T>
void run_blocks(const Problem& p, std::int64_t key_head, std::int64_t begin, std::int64_t end,
                const KeySums<compute_type<T>>& sums) {
  using C = compute_type<T>;
  const Sizes<C> sizes(p);
  const PackedHead<C> packed = pack_head<T>(p, key_head, true);
  QueryBlock<C> block = allocate_block<C>(p);
  std::fill_n(sums.key, sizes.key_rows * sizes.depth, C{0});
  std::fill_n(sums.value, sizes.key_rows * sizes.value_depth, C{0});
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t head = key_head * p.group + i / p.blocks();
    compute_scores<T>(p, packed, head, i % p.blocks() * kQueryBlock, block);
    write_query_gradient<T>(p, packed, block);
    // [rows,keys]^T x [rows,depth] -> [keys,depth]
    add_key_sums(block, block.d_scores, sizes.scores, block.query, p.depth, sums.key);
    add_key_sums(block, block.weights, sizes.scores, block.gradient, p.value_depth, sums.value);
  }
}

template <class T>
void store_rows(const Problem& p, std::int64_t key_head, const compute_type<T>* rows,
                std::int64_t stride, std::int64_t columns, const TensorView& target) {
  T* data = target.as<T>() + p.key_offset(target, key_head);
  for (std::int64_t i = 0; i < p.keys; ++i) {
    store_row(rows + i * stride, columns, data + i * target.stride(-2), target.stride(-1));
  }
}

template <class T>
void store_key_sums(const Problem& p, std::int64_t head, const KeySums<compute_type<T>>& sums) {
  const Sizes<compute_type<T>> sizes(p);
  store_rows<T>(p, head, sums.key, sizes.depth, p.depth, p.d_key);
  store_rows<T>(p, head, sums.value, sizes.value_depth, p.value_depth, p.d_value);
}

/// dQ, dK and dV of all heads.
template <class T>
void run_heads(const Problem& p) {
  using C = compute_type<T>;
  const std::int64_t heads = p.key_heads.product();
  const std::int64_t blocks = p.group * p.blocks();
  const std::int64_t wanted = (kEnoughTasks + heads - 1) / heads;
  const std::int64_t per_slice = (blocks + wanted - 1) / wanted;
  const std::int64_t slices = (blocks + per_slice - 1) / per_slice;
  const Sizes<C> sizes(p);
  const std::int64_t key_size = sizes.key_rows * sizes.depth;
  const std::int64_t task_size = key_size + sizes.key_rows * sizes.value_depth;
  if (slices == 1) {
    parallel_for(heads, [&](std::int64_t head) {
      thread_local Scratch scratch;
      C* data = scratch.get<C>(task_size);
      run_blocks<T>(p, head, 0, blocks, {data, data + key_size});
      store_key_sums<T>(p, head, {data, data + key_size});
    });
    return;
  }
  thread_local Scratch scratch;
  C* data = scratch.get<C>(heads * slices * task_size);
  parallel_for(heads * slices, [&](std::int64_t task) {
    const std::int64_t begin = task % slices * per_slice;
    C* sums = data + task * task_size;
    run_blocks<T>(p, task / slices, begin, std::min(blocks, begin + per_slice),
                  {sums, sums + key_size});
  });
  parallel_for(heads, [&](std::int64_t head) {
    C* total = data + head * slices * task_size;
    for (std::int64_t i = 1; i < slices; ++i) add_row(total, total + i * task_size, task_size);
    store_key_sums<T>(p, head, {total, total + key_size});
  });
}

/// The heads that share one matrix of the mask, and the matrices.
struct MaskGroups {
  Extents sizes, head_strides, mask_strides;  // axes along which matrices differ
  Extents shared_sizes, shared_strides;       // axes along which one is repeated
};

MaskGroups group_heads(const Problem& p) {
  MaskGroups groups;
  const Extents strides = contiguous_strides(p.heads);
  for (int axis = 0; axis < p.heads.size(); ++axis) {
    if (p.d_mask.strides[axis] == 0) {
      groups.shared_sizes.push_back(p.heads[axis]);
      groups.shared_strides.push_back(strides[axis]);
    } else {
      groups.sizes.push_back(p.heads[axis]);
      groups.head_strides.push_back(strides[axis]);
      groups.mask_strides.push_back(p.d_mask.strides[axis]);
    }
  }
  return groups;
}

/// Adds the dS of one block of queries to sums: a row for all of them, or one each; a column for all
/// keys, or one each.
template <class C>
void add_scores(const Problem& p, const QueryBlock<C>& block, double* sums) {
  const Sizes<C> sizes(p);
  const bool one_row = p.d_mask.stride(-2) == 0;
  const bool one_column = p.d_mask.stride(-1) == 0;
  const std::int64_t columns = one_column ? 1 : p.keys;
  for (std::int64_t i = 0; i < block.rows; ++i) {
    const C* d_scores = block.d_scores + i * sizes.scores;
    double* row = sums + (one_row ? 0 : i * columns);
    if (one_column) {
      row[0] += row_sum(d_scores, block.keys);
    } else {
      for (std::int64_t j = 0; j < block.keys; ++j) row[j] += static_cast<double>(d_scores[j]);
    }
  }
}

/// The gradient of an additive mask: dS summed over the heads, rows and columns that share an element.
/// One task is a block of the mask's rows.
template <class T>
void run_mask(const Problem& p) {
  using C = compute_type<T>;
  const MaskGroups groups = group_heads(p);
  const bool one_row = p.d_mask.stride(-2) == 0;
  const std::int64_t columns = p.d_mask.stride(-1) == 0 ? 1 : p.keys;
  const std::int64_t tasks = one_row ? 1 : p.blocks();   // of one matrix
  const std::int64_t blocks = one_row ? p.blocks() : 1;  // of one task
  parallel_for(groups.sizes.product() * tasks, [&](std::int64_t task) {
    const std::int64_t matrix = task / tasks;
    const std::int64_t first_block = task % tasks;
    const std::int64_t first_head = offset_of(matrix, groups.sizes, groups.head_strides);
    std::vector<double> sums(static_cast<std::size_t>((one_row ? 1 : kQueryBlock) * columns), 0.0);
    QueryBlock<C> block = allocate_block<C>(p);
    for (std::int64_t i = 0; i < groups.shared_sizes.product(); ++i) {
      const std::int64_t head =
          first_head + offset_of(i, groups.shared_sizes, groups.shared_strides);
      const PackedHead<C> packed = pack_head<T>(p, head / p.group, false);
      for (std::int64_t b = first_block; b < first_block + blocks; ++b) {
        compute_scores<T>(p, packed, head, b * kQueryBlock, block);
        add_scores(p, block, sums.data());
      }
    }
    T* target = p.d_mask.as<T>() + offset_of(matrix, groups.sizes, groups.mask_strides);
    const std::int64_t row0 = one_row ? 0 : first_block * kQueryBlock;
    const std::int64_t rows = one_row ? 1 : std::min(kQueryBlock, p.queries - row0);
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < columns; ++j) {
        target[(row0 + i) * p.d_mask.stride(-2) + j * p.d_mask.stride(-1)] =
            static_cast<T>(static_cast<C>(sums[static_cast<std::size_t>(i * columns + j)]));
      }
    }
  });
}

}  // namespace

void attention_backward(const KernelArgs& args) {
  const Problem p = make_problem(args);
  const bool dropped = p.dropout.active && p.dropout.scale == 0;
  if (p.heads.product() == 0 || p.queries == 0 || p.keys == 0 || dropped) {
    for (const TensorView& output : args.outputs) {  // dense, whatever the order of its axes
      if (output.numel() == 0) continue;
      std::memset(output.data, 0, static_cast<std::size_t>(output.numel()) * size_of(output.dtype));
    }
    return;
  }
  dispatch_float(p.query.dtype, [&]<typename T>() {
    run_heads<T>(p);
    if (p.d_mask.present) run_mask<T>(p);
  });
}

}  // namespace tenon::cpu
