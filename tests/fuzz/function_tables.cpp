#include "tests/fuzz/function_tables.h"

#include <cmath>

namespace tenon::fuzz {
namespace {

using T = const Tensor&;

const double kRootHalf = std::sqrt(0.5);
const double kRootTwoOverPi = std::sqrt(2 / std::acos(-1.0));

Tensor halves_swapped(T x) {
  const std::vector<Tensor> halves = chunk(x, 2, -1);
  return cat({halves[1], halves[0]}, -1);
}

Tensor interleaved(T x) {
  const Tensor heads = x.view({x.size(0), x.size(1), 2, -1});
  return heads.permute({0, 1, 3, 2}).reshape({x.size(0), x.size(1), -1});
}

Tensor stacked(T x) {
  const Tensor pair = stack({x, x * 0.5}, 1);
  return select(pair, 1, 0) - select(pair, 1, 1);
}

Tensor rotated(T x) {
  const Tensor rest = x.narrow(-1, 2, x.size(-1) - 2);
  return cat({rest, x.narrow(-1, 0, 2)}, -1);
}

}  // namespace

const std::vector<FunctionEntry>& pointwise_table() {
  static const std::vector<FunctionEntry> table = {
      {"tanh", [](T x) { return tanh(x); }, [](T x) { return sigmoid(x * 2.0) * 2.0 - 1.0; }},
      {"x*sigmoid", [](T x) { return x * sigmoid(x); }, [](T x) { return silu(x); }},
      {"silu", [](T x) { return silu(x); }, [](T x) { return sigmoid(x) * x; }},
      {"square", [](T x) { return square(x) * 0.25; }, [](T x) { return x * x * 0.25; }},
      {"bell", [](T x) { return exp(-square(x)); }, [](T x) { return exp(x * x * -1.0); }},
      {"gelu", [](T x) { return gelu(x); },
       [](T x) { return x * 0.5 * (erf(x * kRootHalf) + 1.0); }},
      {"gelu_tanh", [](T x) { return gelu(x, Approximate::tanh); },
       [](T x) { return x * 0.5 * (tanh((x + x * x * x * 0.044715) * kRootTwoOverPi) + 1.0); }},
      {"sigmoid", [](T x) { return sigmoid(x); }, [](T x) { return (tanh(x * 0.5) + 1.0) * 0.5; }},
      {"waves", [](T x) { return sin(x) + cos(x); }, [](T x) { return cos(x) + sin(x); }},
      {"softmax", [](T x) { return softmax(x, -1); }, [](T x) { return exp(log_softmax(x, -1)); }},
      {"softmax over seq", [](T x) { return softmax(x, 1); },
       [](T x) { return softmax(x.transpose(1, 2), -1).transpose(1, 2); }},
      {"centred", [](T x) { return x - mean(x, {-1}, true); },
       [](T x) { return x - sum(x, {-1}, true) / x.size(-1); }},
      {"root mean square", [](T x) { return x * rsqrt(mean(square(x), {-1}, true) + 1e-3); },
       [](T x) { return x / sqrt(mean(x * x, {-1}, true) + 1e-3); }},
      {"variance", [](T x) { return x + var(x, {-1}, 1, true); }, nullptr},
      {"log", [](T x) { return log(square(x) + 1.0); }, [](T x) { return log(x * x + 1.0); }},
      {"softplus", [](T x) { return softplus(x); }, nullptr, true},
      {"running sum", [](T x) { return cumsum(x, 1) * 0.3; }, nullptr},
      {"relu", [](T x) { return relu(x); }, [](T x) { return masked_fill(x, le(x, 0), 0); }, true},
      {"abs", [](T x) { return abs(x); }, [](T x) { return maximum(x, -x); }, true},
      {"leaky", [](T x) { return where(gt(x, 0), x, x * 0.1); },
       [](T x) { return where(le(x, 0), x * 0.1, x); }, true},
      {"below the largest", [](T x) { return x - amax(x, {-1}, true); },
       [](T x) { return x + amin(-x, {-1}, true); }, true},
      {"softsign", [](T x) { return x / (abs(x) + 1.0); }, nullptr, true},
  };
  return table;
}

const std::vector<FunctionEntry>& shape_table() {
  static const std::vector<FunctionEntry> table = {
      {"halves swapped", halves_swapped, nullptr},
      {"interleaved", interleaved,
       [](T x) {
         const Tensor heads = x.view({x.size(0), x.size(1), 2, -1});
         return heads.transpose(-1, -2).reshape({x.size(0), x.size(1), -1});
       }},
      {"transposed and back",
       [](T x) { return x.transpose(1, 2).contiguous().transpose(1, 2) * 1.5; },
       [](T x) { return x * 1.5; }},
      {"stacked", stacked, nullptr},
      {"rotated", rotated, nullptr},
      {"triangle", [](T x) { return tril(x) + x * 0.5; }, [](T x) { return x * 0.5 + tril(x); }},
      {"mean spread",
       [](T x) {
         return x + mean(x, {1}, true).expand({x.size(0), x.size(1), -1});
       },
       [](T x) { return x + mean(x, {1}, true); }},
      {"axis added and removed", [](T x) { return (x.unsqueeze(1) * 0.7).squeeze(1); },
       [](T x) { return x * 0.7; }},
  };
  return table;
}

}  // namespace tenon::fuzz
