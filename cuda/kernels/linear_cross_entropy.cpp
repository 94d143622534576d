// linear_cross_entropy, with gradients or without, a chunk of rows at a time:
//
//   logits = input·weightᵀ                     (rows, classes), in workspace
//   losses, logits := their gradient           one kernel, in place
//   input gradient = logits·weight             (rows, depth)
//   weight gradient += logitsᵀ·input           (classes, depth), in float32
//
// so that logits are written and read once, and memory does not grow with the number of rows.
#include "cuda/kernels/linear_cross_entropy.h"

#include <algorithm>

#include "cuda/check.h"
#include "cuda/gemm.h"
#include "cuda/kernels/cross_entropy.h"
#include "cuda/kernels/gemm_wgmma.h"
#include "cuda/kernels/register.h"
#include "tensor/op.h"
#include "tensor/ops/attributes.h"
#include "tensor/ops/norm_attributes.h"

namespace tenon::cuda {
namespace {

constexpr std::size_t kAlignment = 256;
constexpr std::int64_t kMaxLogitsBytes = std::int64_t{448} << 20;
constexpr std::int64_t kRowTile = 128;  // of the products

std::size_t aligned(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

std::int64_t size_in_bytes(DType dtype) { return static_cast<std::int64_t>(size_of(dtype)); }

LossSizes sizes_of(const KernelArgs& args) {
  return {args.inputs[0].sizes[0], args.inputs[0].sizes[1], args.inputs[1].sizes[0],
          args.inputs[0].dtype, args.outputs.size() > 1};
}

/// One call: its operands, and where its workspace has what.
class ChunkedLoss {
 public:
  explicit ChunkedLoss(const KernelArgs& args)
      : args_(args),
        attrs_(args.attributes<CrossEntropyAttrs>()),
        sizes_(sizes_of(args)),
        plan_(plan_linear_cross_entropy(sizes_)),
        stream_(stream_of(args)),
        workspace_(static_cast<std::byte*>(args.workspace)) {}

  void run() const {
    const auto* targets = args_.inputs[2].as<const std::int64_t>();
    if (counted() != nullptr) {
      launch_count_targets(stream_, kName, targets, sizes_.rows, attrs_.ignore_index, counted());
    }
    for (std::int64_t first = 0; first < sizes_.rows; first += plan_.rows_of_chunk) {
      const std::int64_t rows = std::min(plan_.rows_of_chunk, sizes_.rows - first);
      compute_logits(first, rows);
      compute_losses(first, rows, targets + first);
      if (!sizes_.with_gradients) continue;
      compute_input_gradient(first, rows);
      add_weight_gradient(first, rows);
    }
    launch_total_loss(stream_, kName, workspace_ + plan_.losses, sizes_.rows, counted(),
                      args_.outputs[0].dtype, args_.outputs[0].data);
    if (plan_.sums_in_float) round_weight_gradient();
  }

 private:
  static constexpr const char* kName = "linear_cross_entropy";

  double* counted() const {
    return attrs_.reduction == Reduction::mean ? reinterpret_cast<double*>(workspace_) : nullptr;
  }
  void* logits() const { return workspace_ + plan_.logits; }
  /// Row `first` of a matrix with `depth` columns.
  void* rows_at(const TensorView& matrix, std::int64_t first) const {
    return matrix.as<std::byte>() + first * sizes_.depth * size_in_bytes(sizes_.dtype);
  }
  const void* weight() const { return args_.inputs[1].data; }

  /// [rows,K] x [C,K]^T -> [rows,C]
  void compute_logits(std::int64_t first, std::int64_t rows) const {
    GemmProblem p;
    p.dtype = sizes_.dtype;
    p.m = rows;
    p.n = sizes_.classes;
    p.k = sizes_.depth;
    p.a = {.data = rows_at(args_.inputs[0], first), .leading = sizes_.depth};
    p.b = {.data = weight(), .transposed = true, .leading = sizes_.depth};
    p.d = logits();
    p.d_leading = plan_.pitch;
    const bool own = gemm_wgmma_prefers(p) && gemm_wgmma_takes(p, device_limits(stream_.device));
    own ? gemm_wgmma(stream_, kName, p) : gemm(stream_, p);
  }

  void compute_losses(std::int64_t first, std::int64_t rows, const std::int64_t* targets) const {
    const std::size_t loss_bytes = size_of(args_.outputs[0].dtype);
    LossRows p;
    p.logits = logits();
    p.pitch = plan_.pitch;
    p.targets = targets;
    p.rows = rows;
    p.classes = sizes_.classes;
    p.ignore_index = attrs_.ignore_index;
    p.smoothing = attrs_.label_smoothing;
    p.losses = workspace_ + plan_.losses + static_cast<std::size_t>(first) * loss_bytes;
    p.gradients = sizes_.with_gradients ? logits() : nullptr;
    p.counted = counted();
    launch_loss_rows(stream_, kName, sizes_.dtype, p);
  }

  /// [rows,C] x [C,K] -> [rows,K]
  void compute_input_gradient(std::int64_t first, std::int64_t rows) const {
    GemmProblem p;
    p.dtype = sizes_.dtype;
    p.m = rows;
    p.n = sizes_.depth;
    p.k = sizes_.classes;
    p.a = {.data = logits(), .leading = plan_.pitch};
    p.b = {.data = weight(), .leading = sizes_.depth};
    p.d = rows_at(args_.outputs[1], first);
    p.d_leading = sizes_.depth;
    gemm(stream_, p);
  }

  void* weight_sum() const {
    return plan_.sums_in_float ? workspace_ + plan_.weight_sum : args_.outputs[2].data;
  }

  /// [rows,C]^T x [rows,K] -> [C,K], added to what earlier chunks gave.
  void add_weight_gradient(std::int64_t first, std::int64_t rows) const {
    GemmProblem p;
    p.dtype = sizes_.dtype;
    if (plan_.sums_in_float) p.result_dtype = DType::float32;
    p.m = sizes_.classes;
    p.n = sizes_.depth;
    p.k = rows;
    p.a = {.data = logits(), .transposed = true, .leading = plan_.pitch};
    p.b = {.data = rows_at(args_.inputs[0], first), .leading = sizes_.depth};
    if (first > 0) p.c = {.data = weight_sum(), .leading = sizes_.depth};
    p.d = weight_sum();
    p.d_leading = sizes_.depth;
    gemm(stream_, p);
  }

  void round_weight_gradient() const {
    static const Op& op = get_op("cast");
    const TensorView& gradient = args_.outputs[2];
    TensorView sum = gradient;
    sum.data = weight_sum();
    sum.dtype = DType::float32;
    const Attrs attrs = CastAttrs{gradient.dtype};
    const KernelArgs cast{.op = &op,
                          .inputs = std::span(&sum, 1),
                          .outputs = std::span(&gradient, 1),
                          .attrs = &attrs,
                          .stream = args_.stream};
    op.kernels(DeviceType::cuda)[0].run(cast);
  }

  const KernelArgs& args_;
  const CrossEntropyAttrs& attrs_;
  LossSizes sizes_;
  LossPlan plan_;
  Stream stream_;
  std::byte* workspace_;
};

/// Products need elements; without, the decomposition knows what nothing adds up to.
bool has_elements(const KernelArgs& args) {
  return args.inputs[0].numel() > 0 && args.inputs[1].numel() > 0;
}

std::size_t workspace_bytes(const KernelArgs& args) {
  return plan_linear_cross_entropy(sizes_of(args)).bytes;
}

void run_linear_cross_entropy(const KernelArgs& args) { ChunkedLoss(args).run(); }

}  // namespace

LossPlan plan_linear_cross_entropy(const LossSizes& sizes) {
  const std::int64_t element = size_in_bytes(sizes.dtype);
  const std::int64_t per_vector = 16 / element;
  const bool is_narrow = sizes.dtype == DType::float16 || sizes.dtype == DType::bfloat16;
  LossPlan plan;
  plan.pitch = ceil_div(sizes.classes, per_vector) * per_vector;
  const std::int64_t tiles = ceil_div(sizes.rows, kRowTile);
  const std::int64_t most = std::max<std::int64_t>(
      1, kMaxLogitsBytes / (plan.pitch * element * kRowTile));  // tiles of a chunk
  const std::int64_t tiles_of_chunk = ceil_div(tiles, ceil_div(tiles, most));
  plan.rows_of_chunk = std::min(sizes.rows, tiles_of_chunk * kRowTile);
  plan.chunks = ceil_div(sizes.rows, plan.rows_of_chunk);
  plan.sums_in_float = sizes.with_gradients && is_narrow && plan.chunks > 1;
  const std::size_t loss_bytes = sizes.dtype == DType::float64 ? sizeof(double) : sizeof(float);
  plan.losses = kAlignment;
  plan.logits = plan.losses + aligned(static_cast<std::size_t>(sizes.rows) * loss_bytes);
  plan.weight_sum =
      plan.logits + aligned(static_cast<std::size_t>(plan.rows_of_chunk * plan.pitch * element));
  plan.bytes = plan.weight_sum;
  if (plan.sums_in_float) {
    plan.bytes += aligned(static_cast<std::size_t>(sizes.classes * sizes.depth) * sizeof(float));
  }
  return plan;
}

void register_linear_cross_entropy_kernels() {
  const Kernel kernel{.name = "cuda.linear_cross_entropy",
                      .run = run_linear_cross_entropy,
                      .supports = has_elements,
                      .workspace_bytes = workspace_bytes};
  register_kernel("linear_cross_entropy", DeviceType::cuda, kernel);
  register_kernel("linear_cross_entropy_with_gradients", DeviceType::cuda, kernel);
}

}  // namespace tenon::cuda
