// The functional API: PyTorch's names, argument names and semantics. Shapes are given as (…, M, N);
// dtypes are float32, float64, float16 and bfloat16 unless stated otherwise. Operands must share
// dtype and device: there is no implicit promotion (DTypeError). A number never changes the tensor's
// dtype: integer dtypes take integers in their range, exactly (ValueError for others), floats any.
// Every function goes through apply() and so works eagerly, under the tracer and in patterns.
#pragma once

#include <array>
#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/op_options.h"
#include "tensor/tensor.h"

namespace tenon {

// --- elementwise, with broadcasting -------------------------------------------------------------
Tensor add(const Tensor& input, const Tensor& other);
Tensor add(const Tensor& input, const Scalar& other);
Tensor sub(const Tensor& input, const Tensor& other);
Tensor sub(const Tensor& input, const Scalar& other);
Tensor mul(const Tensor& input, const Tensor& other);
Tensor mul(const Tensor& input, const Scalar& other);
Tensor div(const Tensor& input, const Tensor& other);
Tensor div(const Tensor& input, const Scalar& other);
/// other - input and other / input, for a number on the left.
Tensor rsub(const Tensor& input, const Scalar& other);
Tensor rdiv(const Tensor& input, const Scalar& other);
Tensor maximum(const Tensor& input, const Tensor& other);
Tensor minimum(const Tensor& input, const Tensor& other);
Tensor pow(const Tensor& input, double exponent);
/// Elementwise power, broadcast.
Tensor pow(const Tensor& input, const Tensor& exponent);
Tensor neg(const Tensor& input);
Tensor abs(const Tensor& input);
Tensor exp(const Tensor& input);
Tensor log(const Tensor& input);
Tensor sqrt(const Tensor& input);
Tensor rsqrt(const Tensor& input);
Tensor reciprocal(const Tensor& input);
Tensor square(const Tensor& input);
Tensor sin(const Tensor& input);
Tensor cos(const Tensor& input);
Tensor tanh(const Tensor& input);
Tensor sigmoid(const Tensor& input);
Tensor erf(const Tensor& input);
Tensor relu(const Tensor& input);
Tensor silu(const Tensor& input);
/// See Approximate in op_options.h.
Tensor gelu(const Tensor& input, Approximate approximate = Approximate::none);
/// gelu(input + bias): (…, N), (N) -> (…, N); 16-bit floats are rounded once, at the end.
Tensor bias_gelu(const Tensor& input, const Tensor& bias,
                 Approximate approximate = Approximate::none);
/// silu(gate)·other for operands of one shape: a gated activation (SwiGLU); 16-bit floats are rounded once.
Tensor silu_mul(const Tensor& gate, const Tensor& other);
/// input·cos + [-b a]·sin for the halves a and b of each row of input (…, 2·N); cos and sin broadcast to it.
/// With those of position·frequency, both halves alike, RoPE as LLaMA has it. Rounded once.
Tensor rotary_embedding(const Tensor& input, const Tensor& cos, const Tensor& sin);
/// log(1 + exp(beta·x))/beta; x itself where beta·x > threshold.
Tensor softplus(const Tensor& input, double beta = 1, double threshold = 20);

inline Tensor operator+(const Tensor& a, const Tensor& b) { return add(a, b); }
inline Tensor operator-(const Tensor& a, const Tensor& b) { return sub(a, b); }
inline Tensor operator*(const Tensor& a, const Tensor& b) { return mul(a, b); }
inline Tensor operator/(const Tensor& a, const Tensor& b) { return div(a, b); }
inline Tensor operator+(const Tensor& a, const Scalar& b) { return add(a, b); }
inline Tensor operator-(const Tensor& a, const Scalar& b) { return sub(a, b); }
inline Tensor operator*(const Tensor& a, const Scalar& b) { return mul(a, b); }
inline Tensor operator/(const Tensor& a, const Scalar& b) { return div(a, b); }
inline Tensor operator+(const Scalar& a, const Tensor& b) { return add(b, a); }
inline Tensor operator-(const Scalar& a, const Tensor& b) { return rsub(b, a); }
inline Tensor operator*(const Scalar& a, const Tensor& b) { return mul(b, a); }
inline Tensor operator/(const Scalar& a, const Tensor& b) { return rdiv(b, a); }
inline Tensor operator-(const Tensor& a) { return neg(a); }

// Comparisons give bool; NaN equals nothing. Any dtype. A number may be any: integers are compared
// with it exactly (no integer equals 0.5), to floats it is rounded to their dtype first.
Tensor eq(const Tensor& input, const Tensor& other);
Tensor eq(const Tensor& input, const Scalar& other);
Tensor ne(const Tensor& input, const Tensor& other);
Tensor ne(const Tensor& input, const Scalar& other);
Tensor lt(const Tensor& input, const Tensor& other);
Tensor lt(const Tensor& input, const Scalar& other);
Tensor le(const Tensor& input, const Tensor& other);
Tensor le(const Tensor& input, const Scalar& other);
Tensor gt(const Tensor& input, const Tensor& other);
Tensor gt(const Tensor& input, const Scalar& other);
Tensor ge(const Tensor& input, const Tensor& other);
Tensor ge(const Tensor& input, const Scalar& other);

/// Writes one line about the input, when it is run, to print_stream(): label, spec, smallest, largest
/// and mean value, the first few. Returns the input itself. Under the tracer it becomes a node that
/// no pass leaves out.
Tensor print(const Tensor& input, const std::string& label = "");
/// Where print() writes: std::cerr unless set (null: back to std::cerr). Returns the stream before.
std::ostream* set_print_stream(std::ostream* stream);
/// The input, through which no gradient flows.
Tensor detach(const Tensor& input);
/// Elements where mask (bool, broadcastable to input) is true become `value`, rounded once.
Tensor masked_fill(const Tensor& input, const Tensor& mask, const Scalar& value);
/// input where condition (bool) is true, else other; all three broadcast.
Tensor where(const Tensor& condition, const Tensor& input, const Tensor& other);

// --- products -----------------------------------------------------------------------------------
/// (…, M, K) x (…, K, N) -> (…, M, N), leading axes broadcast; 1-D operands as in PyTorch.
Tensor matmul(const Tensor& input, const Tensor& other);
/// input·weightᵀ + bias: (…, K), (N, K), (N) -> (…, N). `bias` may be undefined.
Tensor linear(const Tensor& input, const Tensor& weight, const Tensor& bias = {});
/// gelu(linear(input, weight, bias), approximate) in one kernel where the device has one; 16-bit floats
/// are rounded once, at the end.
Tensor linear_gelu(const Tensor& input, const Tensor& weight, const Tensor& bias,
                   Approximate approximate = Approximate::none);
/// relu and silu of linear(input, weight, bias), likewise.
Tensor linear_relu(const Tensor& input, const Tensor& weight, const Tensor& bias);
Tensor linear_silu(const Tensor& input, const Tensor& weight, const Tensor& bias);
/// linear(input, weight, bias) + residual, which has the result's shape; rounded once, at the end.
Tensor linear_residual(const Tensor& input, const Tensor& weight, const Tensor& bias,
                       const Tensor& residual);

// --- reductions ---------------------------------------------------------------------------------
/// Over the given axes (all when empty). Accumulated in float32 (float64 for float64). Over no
/// elements, sum is 0 and mean NaN; amax, amin and argmax refuse with ShapeError.
Tensor sum(const Tensor& input, const std::vector<std::int64_t>& dim = {}, bool keepdim = false);
Tensor mean(const Tensor& input, const std::vector<std::int64_t>& dim = {}, bool keepdim = false);
Tensor amax(const Tensor& input, const std::vector<std::int64_t>& dim = {}, bool keepdim = false);
Tensor amin(const Tensor& input, const std::vector<std::int64_t>& dim = {}, bool keepdim = false);
/// Σ(x - mean)²/(n - correction) over the given axes (all when empty); NaN when n <= correction.
Tensor var(const Tensor& input, const std::vector<std::int64_t>& dim = {}, double correction = 1,
           bool keepdim = false);
/// The int64 index of the largest element along `dim`, the first of equals (NaN counts as largest);
/// without `dim`, into the flattened input.
Tensor argmax(const Tensor& input, std::optional<std::int64_t> dim = {}, bool keepdim = false);
/// Sums of the first 1, 2, … elements along `dim`.
Tensor cumsum(const Tensor& input, std::int64_t dim);

// --- normalization and attention ----------------------------------------------------------------
/// exp(x - max) / Σ exp(x - max) along `dim`; a row of -inf gives NaN, as in PyTorch.
Tensor softmax(const Tensor& input, std::int64_t dim);
/// x - max - log Σ exp(x - max) along `dim`.
Tensor log_softmax(const Tensor& input, std::int64_t dim);
/// x/√(mean(x²) + eps)·weight over the last normalized_shape.size() axes; eps defaults to the
/// machine epsilon of the input's dtype, as in PyTorch.
Tensor rms_norm(const Tensor& input, const std::vector<std::int64_t>& normalized_shape,
                const Tensor& weight = {}, std::optional<double> eps = {});
/// (x - mean)/√(var + eps)·weight + bias over the last normalized_shape.size() axes; population
/// variance. `weight` and `bias` may be undefined.
Tensor layer_norm(const Tensor& input, const std::vector<std::int64_t>& normalized_shape,
                  const Tensor& weight = {}, const Tensor& bias = {}, double eps = 1e-5);
/// layer_norm over the last axis, whatever its size: for patterns and generic code.
Tensor layer_norm(const Tensor& input, const Tensor& weight, const Tensor& bias, double eps = 1e-5);

/// In training, zero with probability p and the rest times 1/(1-p); else the input. The mode follows
/// the innermost module call unless given. The mask is a function of (seed, forward number, call
/// site, element index), see tensor/philox.h. 0 <= p <= 1.
Tensor dropout(const Tensor& input, double p = 0.5, DropoutMode mode = DropoutMode::follow);

/// Per channel (axis 1) of (N, C, …): (x - mean)/√(var + eps)·weight + bias. In training, with the
/// batch's statistics (population variance), and running_mean and running_var, if defined, move by
/// `momentum` towards them (unbiased variance) in place; in eval with the running ones. An empty
/// batch leaves them as they are; ValueError for one value a channel in training. The mode is as
/// for dropout.
Tensor batch_norm(const Tensor& input, const Tensor& running_mean, const Tensor& running_var,
                  const Tensor& weight = {}, const Tensor& bias = {},
                  DropoutMode mode = DropoutMode::follow, double momentum = 0.1, double eps = 1e-5);
/// relu(batch_norm(…)), in one pass over the input where a kernel does both.
Tensor batch_norm_relu(const Tensor& input, const Tensor& running_mean, const Tensor& running_var,
                       const Tensor& weight = {}, const Tensor& bias = {},
                       DropoutMode mode = DropoutMode::follow, double momentum = 0.1,
                       double eps = 1e-5);
/// relu(batch_norm(…) + residual), whose residual has the input's shape.
Tensor batch_norm_add_relu(const Tensor& input, const Tensor& running_mean,
                           const Tensor& running_var, const Tensor& weight, const Tensor& bias,
                           const Tensor& residual, DropoutMode mode = DropoutMode::follow,
                           double momentum = 0.1, double eps = 1e-5);

struct AttentionOptions {
  double dropout_p = 0;
  bool is_causal = false;            // query i sees keys j <= i (top-left aligned)
  std::optional<double> scale = {};  // default 1/√d
  DropoutMode mode = DropoutMode::follow;
};
/// softmax(query·keyᵀ·scale + mask)·value: (…, L, E), (…, S, E), (…, S, Ev) -> (…, L, Ev). Key and value
/// may have fewer heads (axis -3), each for a group of the query's: of H, head h reads head h / (H / Hkv),
/// as with PyTorch's enable_gqa. A bool mask lets through where true, a floating mask is added; it broadcasts to (…, L, S). A query that
/// sees no key (all hidden by the mask, or S = 0) gives zeros and has zero gradients, as in PyTorch.
Tensor scaled_dot_product_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                    const Tensor& attn_mask = {},
                                    const AttentionOptions& options = {});
/// layer_norm(dropout(input + bias) + residual): one kernel for the tail of a residual block.
Tensor bias_dropout_residual_layer_norm(const Tensor& input, const Tensor& bias,
                                        const Tensor& residual, const Tensor& weight,
                                        const Tensor& norm_bias, double p, double eps = 1e-5,
                                        DropoutMode mode = DropoutMode::follow);

// --- convolution and pooling, (N, C, H, W) -------------------------------------------------------
using Size2 = std::array<std::int64_t, 2>;  // along H and W
/// Cross-correlation: (N, C, H, W), (O, C/groups, KH, KW), (O) -> (N, O, H', W').
Tensor conv2d(const Tensor& input, const Tensor& weight, const Tensor& bias = {},
              Size2 stride = {1, 1}, Size2 padding = {0, 0}, Size2 dilation = {1, 1},
              std::int64_t groups = 1);
/// relu(conv2d(input, weight, bias, …) + residual), the residual of the result's shape or absent: the end of
/// a residual block whose normalization is part of the filters.
Tensor conv2d_relu(const Tensor& input, const Tensor& weight, const Tensor& bias = {},
                   const Tensor& residual = {}, Size2 stride = {1, 1}, Size2 padding = {0, 0},
                   Size2 dilation = {1, 1}, std::int64_t groups = 1);
/// Largest value of each window; padding counts as -inf.
Tensor max_pool2d(const Tensor& input, Size2 kernel_size, Size2 stride, Size2 padding = {0, 0});
/// Mean of each window; padding counts as zeros.
Tensor avg_pool2d(const Tensor& input, Size2 kernel_size, Size2 stride, Size2 padding = {0, 0});

// --- losses -------------------------------------------------------------------------------------
// A mean over nothing (an empty batch, every target ignored) is NaN, as PyTorch's; its gradients are 0.
/// (input - target)², reduced. ShapeError unless the shapes are equal: nothing is broadcast.
Tensor mse_loss(const Tensor& input, const Tensor& target, Reduction reduction = Reduction::mean);
struct CrossEntropyOptions {
  std::int64_t ignore_index = -100;
  Reduction reduction = Reduction::mean;  // mean: over the targets that are not ignored
  double label_smoothing = 0;
};
/// -log softmax(input)[target]: input (N, C) or (N, C, d…) or (C), int64 targets (N), (N, d…) or ().
/// With smoothing s, (1-s) of that plus s times the mean over classes.
Tensor cross_entropy(const Tensor& input, const Tensor& target,
                     const CrossEntropyOptions& options = {});
/// cross_entropy(linear(input, weight), target) over rows: (R, K), (C, K), int64 (R). On a GPU, and
/// where gradients are recorded, the logits of all rows never exist at the same time. The loss is
/// float32 for 16-bit floats. Reductions mean and sum only.
Tensor linear_cross_entropy(const Tensor& input, const Tensor& weight, const Tensor& target,
                            const CrossEntropyOptions& options = {});

// --- shape --------------------------------------------------------------------------------------
/// The same elements with another shape; one size may be -1. ShapeError when strides forbid a view.
Tensor view(const Tensor& input, const Shape& shape);
/// Like view, copying when strides forbid one.
Tensor reshape(const Tensor& input, const Shape& shape);
Tensor permute(const Tensor& input, const std::vector<std::int64_t>& dims);
Tensor transpose(const Tensor& input, std::int64_t dim0, std::int64_t dim1);
/// Axes of size 1 repeated without copying; -1 keeps a size.
Tensor expand(const Tensor& input, const Shape& shape);
/// `length` elements from `start` along `dim`.
Tensor narrow(const Tensor& input, std::int64_t dim, const Dim& start, const Dim& length);
Tensor unsqueeze(const Tensor& input, std::int64_t dim);
Tensor squeeze(const Tensor& input, std::int64_t dim);
/// Row-major copy, or the input itself when it is that already.
Tensor contiguous(const Tensor& input);
/// Row-major copy in memory of its own, whatever the input's layout; the gradient flows back.
Tensor clone(const Tensor& input);
/// The input itself where it is on `device`, else a contiguous copy there, whose gradient is moved back.
/// DeviceError when there is no such device. Under the tracer TraceError for what the Graph computes and
/// for state of the model: a Graph runs on one device. A constant is moved as the trace is made.
Tensor to_device(const Tensor& input, Device device);
/// Pieces of `split_size` along `dim`, the last one smaller if it does not divide.
std::vector<Tensor> split(const Tensor& input, std::int64_t split_size, std::int64_t dim = 0);
std::vector<Tensor> split(const Tensor& input, const std::vector<std::int64_t>& sizes,
                          std::int64_t dim = 0);
/// `chunks` pieces as equal as possible, as PyTorch cuts them.
std::vector<Tensor> chunk(const Tensor& input, std::int64_t chunks, std::int64_t dim = 0);
Tensor cat(const std::vector<Tensor>& tensors, std::int64_t dim = 0);
/// Tensors of one shape along a new axis.
Tensor stack(const std::vector<Tensor>& tensors, std::int64_t dim = 0);
/// The slice at `index` (negative: from the end), without the axis.
Tensor select(const Tensor& input, std::int64_t dim, std::int64_t index);
/// The lower (upper) triangle of the last two axes, zero elsewhere; diagonal > 0 is above the main.
Tensor tril(const Tensor& input, std::int64_t diagonal = 0);
Tensor triu(const Tensor& input, std::int64_t diagonal = 0);
/// Element type conversion: floats round to nearest even; a float becomes an integer by truncation,
/// saturating at its range, NaN as 0; an integer becomes a narrower one modulo its range.
Tensor cast(const Tensor& input, DType dtype);

// --- lookup -------------------------------------------------------------------------------------
// Indices are int64, int32, int16 or int8.
/// Rows of weight (V, D) by index (any shape): (…) -> (…, D). ValueError for an index outside [0, V)
/// on the CPU; on CUDA such a row is NaN.
Tensor embedding(const Tensor& input, const Tensor& weight);
/// The slices of `input` along `dim` at index (1-D).
Tensor index_select(const Tensor& input, std::int64_t dim, const Tensor& index);
/// output[i][j] = input[index[i][j]][j] for dim 0, and so on: the shape is that of index.
Tensor gather(const Tensor& input, std::int64_t dim, const Tensor& index);

}  // namespace tenon
