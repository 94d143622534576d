// The functional API: PyTorch's names, argument names and semantics. Shapes are given as (…, M, N);
// dtypes are float32, float64, float16 and bfloat16 unless stated otherwise. Operands must share
// dtype and device: there is no implicit promotion (DTypeError), numbers adapt to the tensor.
// Every function goes through apply() and so works eagerly, under the tracer and in patterns.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

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
Tensor maximum(const Tensor& input, const Tensor& other);
Tensor minimum(const Tensor& input, const Tensor& other);
/// input to the power of a number.
Tensor pow(const Tensor& input, double exponent);
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
/// x·Φ(x) for Approximate::none; 0.5x(1+tanh(√(2/π)(x+0.044715x³))) for tanh.
enum class Approximate : std::uint8_t { none, tanh };
Tensor gelu(const Tensor& input, Approximate approximate = Approximate::none);

inline Tensor operator+(const Tensor& a, const Tensor& b) { return add(a, b); }
inline Tensor operator-(const Tensor& a, const Tensor& b) { return sub(a, b); }
inline Tensor operator*(const Tensor& a, const Tensor& b) { return mul(a, b); }
inline Tensor operator/(const Tensor& a, const Tensor& b) { return div(a, b); }
inline Tensor operator+(const Tensor& a, const Scalar& b) { return add(a, b); }
inline Tensor operator-(const Tensor& a, const Scalar& b) { return sub(a, b); }
inline Tensor operator*(const Tensor& a, const Scalar& b) { return mul(a, b); }
inline Tensor operator/(const Tensor& a, const Scalar& b) { return div(a, b); }
inline Tensor operator+(const Scalar& a, const Tensor& b) { return add(b, a); }
inline Tensor operator*(const Scalar& a, const Tensor& b) { return mul(b, a); }
inline Tensor operator-(const Tensor& a) { return neg(a); }

/// Elements where mask (bool, broadcastable to input) is true become `value`.
Tensor masked_fill(const Tensor& input, const Tensor& mask, double value);
/// input where condition (bool) is true, else other; all three broadcast.
Tensor where(const Tensor& condition, const Tensor& input, const Tensor& other);

// --- products -----------------------------------------------------------------------------------
/// (…, M, K) x (…, K, N) -> (…, M, N), leading axes broadcast; 1-D operands as in PyTorch.
Tensor matmul(const Tensor& input, const Tensor& other);
/// input·weightᵀ + bias: (…, K), (N, K), (N) -> (…, N). `bias` may be undefined.
Tensor linear(const Tensor& input, const Tensor& weight, const Tensor& bias = {});

// --- reductions ---------------------------------------------------------------------------------
/// Over the given axes (all when empty). Accumulated in float32 (float64 for float64).
Tensor sum(const Tensor& input, const std::vector<std::int64_t>& dim = {}, bool keepdim = false);
Tensor mean(const Tensor& input, const std::vector<std::int64_t>& dim = {}, bool keepdim = false);
Tensor amax(const Tensor& input, const std::vector<std::int64_t>& dim = {}, bool keepdim = false);
Tensor amin(const Tensor& input, const std::vector<std::int64_t>& dim = {}, bool keepdim = false);

// --- normalization and attention ----------------------------------------------------------------
/// exp(x - max) / Σ exp(x - max) along `dim`; a row of -inf gives NaN, as in PyTorch.
Tensor softmax(const Tensor& input, std::int64_t dim);
/// (x - mean)/√(var + eps)·weight + bias over the last normalized_shape.size() axes; population
/// variance. `weight` and `bias` may be undefined.
Tensor layer_norm(const Tensor& input, const std::vector<std::int64_t>& normalized_shape,
                  const Tensor& weight = {}, const Tensor& bias = {}, double eps = 1e-5);
/// layer_norm over the last axis, whatever its size: for patterns and generic code.
Tensor layer_norm(const Tensor& input, const Tensor& weight, const Tensor& bias, double eps = 1e-5);

enum class DropoutMode : std::uint8_t { follow, train, eval };
std::string_view enum_name(DropoutMode mode);
DropoutMode parse_enum(DropoutMode, std::string_view text);
std::string_view enum_name(Approximate approximate);
Approximate parse_enum(Approximate, std::string_view text);

/// In training, zero with probability p and the rest times 1/(1-p); else the input. The mode follows
/// the innermost module call unless given. The mask is a function of (seed, forward number, call
/// site, element index), see tensor/philox.h. 0 <= p <= 1.
Tensor dropout(const Tensor& input, double p = 0.5, DropoutMode mode = DropoutMode::follow);

struct AttentionOptions {
  double dropout_p = 0;
  bool is_causal = false;            // query i sees keys j <= i (top-left aligned)
  std::optional<double> scale = {};  // default 1/√d
  DropoutMode mode = DropoutMode::follow;
};
/// softmax(query·keyᵀ·scale + mask)·value: (…, L, E), (…, S, E), (…, S, Ev) -> (…, L, Ev). A bool
/// mask lets through where true, a floating mask is added; it broadcasts to (…, L, S). A row whose
/// keys are all masked gives NaN, as PyTorch's math path does.
Tensor scaled_dot_product_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                    const Tensor& attn_mask = {},
                                    const AttentionOptions& options = {});
/// layer_norm(dropout(input + bias) + residual): one kernel for the tail of a residual block.
Tensor bias_dropout_residual_layer_norm(const Tensor& input, const Tensor& bias,
                                        const Tensor& residual, const Tensor& weight,
                                        const Tensor& norm_bias, double p, double eps = 1e-5,
                                        DropoutMode mode = DropoutMode::follow);

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
/// Pieces of `split_size` along `dim`, the last one smaller if it does not divide.
std::vector<Tensor> split(const Tensor& input, std::int64_t split_size, std::int64_t dim = 0);
std::vector<Tensor> split(const Tensor& input, const std::vector<std::int64_t>& sizes,
                          std::int64_t dim = 0);
/// `chunks` pieces as equal as possible, as PyTorch cuts them.
std::vector<Tensor> chunk(const Tensor& input, std::int64_t chunks, std::int64_t dim = 0);
Tensor cat(const std::vector<Tensor>& tensors, std::int64_t dim = 0);
/// Element type conversion: floats round to nearest even, float to integer truncates.
Tensor cast(const Tensor& input, DType dtype);

// --- lookup -------------------------------------------------------------------------------------
/// Rows of weight (V, D) by index (int64 or int32, any shape): (…) -> (…, D). ValueError for an
/// index outside [0, V) on the CPU; on CUDA such a row is NaN.
Tensor embedding(const Tensor& input, const Tensor& weight);

}  // namespace tenon
