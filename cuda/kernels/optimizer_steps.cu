// adam_step, sgd_step and global_norm: all tensors of a call in one launch. A table of them travels as
// the kernel's parameter; blocks are handed out tensor after tensor, each finds its own by bisection.
// Updates: a thread serves kPerThread neighbouring elements at a time, by vector accesses where
// everything is aligned. What the elements of a parameter share (bias corrections, step size) is
// computed once a block, in double, from step, lr and grad_scale in device memory, so that a captured
// launch can be replayed. The norm: a block leaves one partial sum, one more block adds them in order.
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include "cuda/device/memory.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/calls/optimizer_operands.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 4;
constexpr int kUpdateChunk = 8192;  // elements of a parameter that a block updates
constexpr int kNormChunk = 16384;   // elements that a block adds up
constexpr int kTotalThreads = 512;
constexpr std::size_t kMaxParameterBytes = 32764;  // of a kernel, from sm_70 and CUDA 12.1 on

/// A floating operand of one element, or the number that stands for an absent one.
struct ScalarOperand {
  const void* data = nullptr;
  DType dtype = DType::float32;
  double absent = 0;
};

ScalarOperand scalar_operand(const TensorView& view, double absent) {
  return {view.present ? view.data : nullptr, view.dtype, absent};
}

__device__ __forceinline__ double read_scalar(const void* data, DType dtype) {
  switch (dtype) {
    case DType::float64: return *static_cast<const double*>(data);
    case DType::float16: return widen(*static_cast<const Half*>(data));
    case DType::bfloat16: return widen(*static_cast<const BFloat16*>(data));
    default: return *static_cast<const float*>(data);
  }
}
__device__ __forceinline__ double read_scalar(const ScalarOperand& s) {
  return s.data == nullptr ? s.absent : read_scalar(s.data, s.dtype);
}

/// The entry whose blocks `block` is among: the last one that does not begin after it.
template <class Table>
__device__ __forceinline__ int entry_of(const Table& table, std::int64_t block) {
  int low = 0;
  int high = table.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (table.entries[middle].first_block <= block ? low : high) = middle;
  }
  return low;
}

// --- updates --------------------------------------------------------------------------------------

/// One parameter; kStates state tensors follow it in `before` and `after`, which may be the same.
template <int kStates>
struct UpdateEntry {
  const void* before[kStates + 1];
  void* after[kStates + 1];
  void* copy;  // null: none
  const void* grad;
  const void* step;
  std::int64_t numel;
  std::int64_t first_block;
  DType step_dtype;
  bool decays;
  bool vectors;
};

template <int kStates, class Settings>
struct UpdateTable {
  static constexpr std::size_t kHeaderBytes = 256;
  static constexpr int kCapacity =
      static_cast<int>((kMaxParameterBytes - kHeaderBytes) / sizeof(UpdateEntry<kStates>));
  ScalarOperand lr, grad_scale;
  Settings settings;
  RoundedCopy copies = RoundedCopy::none;
  int count = 0;
  std::int64_t blocks = 0;
  UpdateEntry<kStates> entries[kCapacity];
};

/// `count` elements from `first` on; with vectors, kPerThread of them.
template <class T, class C>
__device__ __forceinline__ void load_elements(const void* source, std::int64_t first, int count,
                                              bool vectors, C (&values)[kPerThread]) {
  const T* data = static_cast<const T*>(source) + first;
  if (vectors) {
    compute_type<T> wide[kPerThread];
    load_widened(data, wide);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) values[i] = static_cast<C>(wide[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i)
    values[i] = i < count ? static_cast<C>(widen(data[i])) : C(0);
}

template <class T>
__device__ __forceinline__ void store_elements(void* target, std::int64_t first, int count,
                                               bool vectors,
                                               const compute_type<T> (&values)[kPerThread]) {
  T* data = static_cast<T*>(target) + first;
  if (vectors) return store_narrowed(data, values);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (i < count) data[i] = convert<T>(values[i]);
  }
}

/// What an update of a P returns, rounded to T.
template <class T, class P>
__device__ __forceinline__ void store_copy(void* target, std::int64_t first, int count,
                                           bool vectors,
                                           const compute_type<P> (&values)[kPerThread]) {
  T* data = static_cast<T*>(target) + first;
  Pack<T, kPerThread> pack;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) pack.item[i] = convert<T>(convert<P>(values[i]));
  if (vectors) return store_pack<T, kPerThread>(data, pack);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (i < count) data[i] = pack.item[i];
  }
}

template <class P, class G, class Update, int kStates, class Settings>
__global__ void __launch_bounds__(kThreads)
    update_kernel(const __grid_constant__ UpdateTable<kStates, Settings> table) {
  using C = compute_type<P>;
  const std::int64_t block = block_index();
  if (block >= table.blocks) return;
  const UpdateEntry<kStates>& entry = table.entries[entry_of(table, block)];
  __shared__ Update shared_update;
  if (threadIdx.x == 0) {
    Settings settings = table.settings;
    if (!entry.decays) settings.weight_decay = 0;
    shared_update = Update::make(settings, read_scalar(entry.step, entry.step_dtype),
                                 read_scalar(table.lr), read_scalar(table.grad_scale));
  }
  __syncthreads();
  const Update update = shared_update;
  const std::int64_t begin = (block - entry.first_block) * kUpdateChunk;
  const std::int64_t rest = entry.numel - begin;
  const int size = rest < kUpdateChunk ? static_cast<int>(rest) : kUpdateChunk;
  for (int at = static_cast<int>(threadIdx.x) * kPerThread; at < size;
       at += kThreads * kPerThread) {
    const std::int64_t first = begin + at;
    const int count = size - at < kPerThread ? size - at : kPerThread;
    const bool vectors = entry.vectors && count == kPerThread;
    C grad[kPerThread];
    C values[kStates + 1][kPerThread];
    load_elements<G>(entry.grad, first, count, vectors, grad);
#pragma unroll
    for (int s = 0; s <= kStates; ++s) {
      load_elements<P>(entry.before[s], first, count, vectors, values[s]);
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if constexpr (kStates == 0) {
        update.apply(values[0][i], grad[i]);
      } else if constexpr (kStates == 1) {
        update.apply(values[0][i], grad[i], values[1][i]);
      } else {
        update.apply(values[0][i], grad[i], values[1][i], values[2][i]);
      }
    }
#pragma unroll
    for (int s = 0; s <= kStates; ++s) {
      store_elements<P>(entry.after[s], first, count, vectors, values[s]);
    }
    if (entry.copy == nullptr) continue;
    if (table.copies == RoundedCopy::bfloat16) {
      store_copy<BFloat16, P>(entry.copy, first, count, vectors, values[0]);
    } else {
      store_copy<Half, P>(entry.copy, first, count, vectors, values[0]);
    }
  }
}

/// Whether kPerThread elements can be accessed at once.
bool allows_vectors(const TensorView& view) {
  const std::size_t bytes = kPerThread * size_of(view.dtype);
  return is_aligned(view.data, bytes < kVectorBytes ? bytes : kVectorBytes);
}

/// The entry of parameter i of the call, but for its first block.
template <int kStates>
UpdateEntry<kStates> make_entry(const KernelArgs& args, const UpdateLayout& layout, int i,
                                bool decays) {
  UpdateEntry<kStates> entry{};
  entry.vectors = true;
  const auto input = [&](int operand) {
    const TensorView& view = args.inputs[static_cast<std::size_t>(operand)];
    entry.vectors = entry.vectors && allows_vectors(view);
    return view.data;
  };
  const auto output = [&](int result) {
    const TensorView& view = args.outputs[static_cast<std::size_t>(result)];
    entry.vectors = entry.vectors && allows_vectors(view);
    return view.data;
  };
  entry.before[0] = input(layout.param(i));
  entry.after[0] = output(layout.new_param(i));
  for (int k = 0; k < kStates; ++k) {
    entry.before[k + 1] = input(layout.state(i, k));
    entry.after[k + 1] = output(layout.new_state(i, k));
  }
  entry.grad = input(layout.grad(i));
  if (layout.copies != RoundedCopy::none) entry.copy = output(layout.copy(i));
  const TensorView& step = args.inputs[static_cast<std::size_t>(layout.step(i))];
  entry.step = step.data;
  entry.step_dtype = step.dtype;
  entry.numel = args.inputs[static_cast<std::size_t>(layout.param(i))].numel();
  entry.decays = decays;
  return entry;
}

/// Launches Update<compute type> for `parameters`, numbers of some that share their dtypes.
template <template <class> class Update, int kStates, class Attrs>
void update_kind(const KernelArgs& args, const char* name, const std::vector<int>& parameters) {
  const auto& attrs = args.attributes<Attrs>();
  const UpdateLayout layout = layout_of(attrs);
  using Settings = decltype(settings_of(attrs, 0));
  using Table = UpdateTable<kStates, Settings>;
  static_assert(sizeof(Table) <= kMaxParameterBytes);
  Table table;
  table.lr = scalar_operand(args.inputs[UpdateLayout::kLr], 0);
  table.grad_scale = scalar_operand(args.inputs[UpdateLayout::kGradScale], 1);
  table.settings = settings_of(attrs, attrs.weight_decay);
  table.copies = attrs.copies;
  const auto dtype = [&](int operand) {
    return args.inputs[static_cast<std::size_t>(operand)].dtype;
  };
  const auto flush = [&] {
    const int first = parameters[0];
    dispatch_update(dtype(layout.param(first)), dtype(layout.grad(first)),
                    [&]<typename P, typename G>() {
                      launch(stream_of(args), name,
                             update_kernel<P, G, Update<compute_type<P>>, kStates, Settings>,
                             table.blocks, kThreads, 0, table);
                    });
    table.count = 0;
    table.blocks = 0;
  };
  for (const int i : parameters) {
    UpdateEntry<kStates> entry =
        make_entry<kStates>(args, layout, i, decay_of(attrs, i) == attrs.weight_decay);
    if (entry.numel == 0) continue;
    entry.first_block = table.blocks;
    table.blocks += ceil_div(entry.numel, kUpdateChunk);
    table.entries[table.count++] = entry;
    if (table.count == Table::kCapacity) flush();
  }
  if (table.count > 0) flush();
}

/// One launch for each pair of dtypes, and more where a table is full.
template <template <class> class Update, int kStates, class Attrs>
void run_updates(const KernelArgs& args, const char* name) {
  const UpdateLayout layout = layout_of(args.attributes<Attrs>());
  std::map<std::pair<DType, DType>, std::vector<int>> kinds;
  const int count = layout.count(static_cast<int>(args.inputs.size()));
  for (int i = 0; i < count; ++i) {
    const auto dtype = [&](int operand) {
      return args.inputs[static_cast<std::size_t>(operand)].dtype;
    };
    kinds[{dtype(layout.param(i)), dtype(layout.grad(i))}].push_back(i);
  }
  for (const auto& [dtypes, parameters] : kinds) {
    update_kind<Update, kStates, Attrs>(args, name, parameters);
  }
}

void run_adam_step(const KernelArgs& args) {
  run_updates<AdamUpdate, 2, AdamAttrs>(args, "adam_step");
}

void run_sgd_step(const KernelArgs& args) {
  if (args.attributes<SgdAttrs>().momentum != 0) {
    run_updates<SgdUpdate, 1, SgdAttrs>(args, "sgd_step");
  } else {
    run_updates<SgdUpdate, 0, SgdAttrs>(args, "sgd_step");
  }
}

// --- global norm ----------------------------------------------------------------------------------

struct NormEntry {
  const void* data;
  std::int64_t numel;
  std::int64_t first_block;
  DType dtype;
  bool vectors;
};

struct NormTable {
  static constexpr std::size_t kHeaderBytes = 64;
  static constexpr int kCapacity =
      static_cast<int>((kMaxParameterBytes - kHeaderBytes) / sizeof(NormEntry));
  double* partials = nullptr;  // one a block
  int count = 0;
  std::int64_t blocks = 0;
  NormEntry entries[kCapacity];
};
static_assert(sizeof(NormTable) <= kMaxParameterBytes);

/// This thread's share of Σ x² over `size` elements.
template <class T, class C>
__device__ __forceinline__ C own_squares(const void* data, std::int64_t begin, int size,
                                         bool vectors) {
  constexpr int kLength = vector_length<T>;
  const T* x = static_cast<const T*>(data) + begin;
  const int packs = vectors ? size / kLength : 0;
  C sum = C(0);
#pragma unroll 4
  for (int pack = static_cast<int>(threadIdx.x); pack < packs; pack += kThreads) {
    compute_type<T> values[kLength];
    load_widened(x + pack * kLength, values);
#pragma unroll
    for (int i = 0; i < kLength; ++i) sum += static_cast<C>(values[i]) * static_cast<C>(values[i]);
  }
  for (int i = packs * kLength + static_cast<int>(threadIdx.x); i < size; i += kThreads) {
    const C value = static_cast<C>(widen(x[i]));
    sum += value * value;
  }
  return sum;
}

/// The same, of elements of the entry's dtype.
template <class C>
__device__ __forceinline__ C own_squares(const NormEntry& entry, std::int64_t begin, int size) {
  switch (entry.dtype) {
    case DType::float64: return own_squares<double, C>(entry.data, begin, size, entry.vectors);
    case DType::float16: return own_squares<Half, C>(entry.data, begin, size, entry.vectors);
    case DType::bfloat16: return own_squares<BFloat16, C>(entry.data, begin, size, entry.vectors);
    default: return own_squares<float, C>(entry.data, begin, size, entry.vectors);
  }
}

template <class C>
__global__ void __launch_bounds__(kThreads)
    sum_of_squares_kernel(const __grid_constant__ NormTable table) {
  __shared__ C scratch[kWarp];
  const std::int64_t block = block_index();
  if (block >= table.blocks) return;
  const NormEntry& entry = table.entries[entry_of(table, block)];
  const std::int64_t begin = (block - entry.first_block) * kNormChunk;
  const std::int64_t rest = entry.numel - begin;
  const int size = rest < kNormChunk ? static_cast<int>(rest) : kNormChunk;
  const C sum = group_reduce(own_squares<C>(entry, begin, size), kThreads, scratch, Sum{});
  double total = static_cast<double>(sum);
  if constexpr (sizeof(C) < sizeof(double)) {
    // Squares of finite numbers overflow float32 where double has room: the block adds up again.
    if (sum > std::numeric_limits<C>::max()) {
      __shared__ double wide[kWarp];
      total = group_reduce(own_squares<double>(entry, begin, size), kThreads, wide, Sum{});
    }
  }
  if (threadIdx.x == 0) table.partials[block] = total;
}

/// The norm from the partial sums, by one block; the coefficient where `coefficient` is not null.
template <class C>
__global__ void __launch_bounds__(kTotalThreads)
    norm_of_partials_kernel(const double* partials, std::int64_t count, double max_norm, C* norm,
                            C* coefficient) {
  __shared__ double scratch[kWarp];
  double sum = 0;
#pragma unroll 4
  for (std::int64_t i = threadIdx.x; i < count; i += kTotalThreads) sum += partials[i];
  sum = group_reduce(sum, kTotalThreads, scratch, Sum{});
  if (threadIdx.x != 0) return;
  const double root = ::sqrt(sum);
  *norm = static_cast<C>(root);
  if (coefficient != nullptr) *coefficient = static_cast<C>(clip_coefficient(root, max_norm));
}

std::int64_t norm_blocks(const KernelArgs& args) {
  std::int64_t blocks = 0;
  for (const TensorView& view : args.inputs) blocks += ceil_div(view.numel(), kNormChunk);
  return blocks;
}

std::size_t norm_workspace(const KernelArgs& args) {
  return static_cast<std::size_t>(norm_blocks(args)) * sizeof(double);
}

template <class C>
void launch_norm(const KernelArgs& args) {
  const Stream stream = stream_of(args);
  NormTable table;
  table.partials = static_cast<double*>(args.workspace);
  const auto flush = [&] {
    launch(stream, "global_norm", sum_of_squares_kernel<C>, table.blocks, kThreads, 0, table);
    table.partials += table.blocks;
    table.count = 0;
    table.blocks = 0;
  };
  for (const TensorView& view : args.inputs) {
    if (view.numel() == 0) continue;
    table.entries[table.count++] = {view.data, view.numel(), table.blocks, view.dtype,
                                    is_aligned(view.data, kVectorBytes)};
    table.blocks += ceil_div(view.numel(), kNormChunk);
    if (table.count == NormTable::kCapacity) flush();
  }
  if (table.count > 0) flush();
  C* coefficient = args.outputs.size() > 1 ? args.outputs[1].as<C>() : nullptr;
  launch(stream, "global_norm", norm_of_partials_kernel<C>, 1, kTotalThreads, 0,
         static_cast<const double*>(args.workspace), norm_blocks(args),
         args.attributes<GlobalNormAttrs>().max_norm, args.outputs[0].as<C>(), coefficient);
}

void run_global_norm(const KernelArgs& args) {
  args.outputs[0].dtype == DType::float64 ? launch_norm<double>(args) : launch_norm<float>(args);
}

}  // namespace

void register_optimizer_kernels() {
  register_kernel("adam_step", DeviceType::cuda, {.name = "cuda.adam_step", .run = run_adam_step});
  register_kernel("sgd_step", DeviceType::cuda, {.name = "cuda.sgd_step", .run = run_sgd_step});
  register_kernel(
      "global_norm", DeviceType::cuda,
      {.name = "cuda.global_norm", .run = run_global_norm, .workspace_bytes = norm_workspace});
}

}  // namespace tenon::cuda
