// Scenes of several layers that have one structure, and of models that small drawn inputs do not show.
#include <cmath>

#include "examples/attention_model.h"
#include "tensor/random.h"
#include "tests/fuzz/planted.h"
#include "tests/support/attention_pattern.h"
#include "tests/support/models.h"

namespace tenon::fuzz::scenes {
namespace {

constexpr std::int64_t kHidden = 12;
constexpr std::int64_t kHeads = 2;

Tensor integers(const Shape& shape) { return zeros(shape, {DType::int64, kCpu}); }

struct NormedConv : nn::Module {
  NormedConv() : conv(add<nn::Conv2d>("conv", 3, 3, 1)), norm(add<nn::BatchNorm2d>("norm", 3)) {
    const NoGradGuard no_grad;
    Tensor(norm->running_mean).copy_(randn({3}));
    Tensor(norm->running_var).copy_(uniform({3}, 0.5, 2));
  }
  Tensor forward(const Tensor& x) const { return relu(norm(conv(x))); }
  nn::Child<nn::Conv2d> conv;
  nn::Child<nn::BatchNorm2d> norm;
};

Tensor attended(const Tensor& x, const Tensor& hidden) {
  const Tensor scores = matmul(x, x.transpose(-2, -1)) * 0.5;
  return matmul(softmax(masked_fill(scores, hidden, -HUGE_VAL), -1), x);
}

struct TwoMasks : nn::Module {
  Tensor forward(const Tensor& x, const Tensor& first, const Tensor& second) const {
    return attended(attended(x, first) + x, second);
  }
};

struct Window : nn::Module {
  Tensor forward(const Tensor& x) const {
    const Dim n = x.size(1);
    const Tensor one = full({}, 1).expand({n, n});
    const Tensor later = triu(one, 1);
    return attended(x, gt(later + tril(one, -16), 0));
  }
};

struct Loud : nn::Module {
  Loud() : up(add<nn::Linear>("up", kHidden, kHidden)) {
    const NoGradGuard no_grad;
    Tensor(up->weight).copy_(randn({kHidden, kHidden}) * 40.0);
  }
  std::vector<Tensor> forward(const Tensor& x) const {
    const Tensor h = up(x);
    return {tanh(h), silu(h), relu(h)};
  }
  nn::Child<nn::Linear> up;
};

struct Numbered : nn::Module {
  Numbered() : table(add<nn::Embedding>("table", 200, 4)) {}
  Tensor forward(const Tensor& ids) const {
    return masked_fill(table(ids), eq(ids, 150).unsqueeze(-1), 0) * 2.0;
  }
  nn::Child<nn::Embedding> table;
};

struct Rows : nn::Module {
  std::vector<Tensor> forward(const Tensor& x) const {
    const Tensor number = cumsum(full({}, 1, {DType::int64, kCpu}).expand({x.size(-1)}), 0);
    return {mean(x, {-1}), log_softmax(x, -1), x / (abs(x) + 1e-15),
            where(le(number, 64), x * 2.0, x)};
  }
};

}  // namespace

Schedule layers() {
  manual_seed(20261130);
  return create_schedule(nn::make<test::Stack<tutorial::Attention>>(3, kHidden, kHeads),
                         {{"hidden_states", zeros({2, 5, kHidden})}});
}

Schedule fused_layers() {
  Schedule sch = layers();
  for (const char* layer : {"layer.0", "layer.1", "layer.2"}) {
    sch.replace(nn::make<tutorial::FusedQKV>(kHidden, kHeads),
                sch[layer].find(test::qkv_pattern(kHeads)));
  }
  return sch;
}

Schedule norms() {
  manual_seed(20261130);
  return create_schedule(nn::make<test::Stack<NormedConv>>(2), {{"image", zeros({2, 3, 5, 5})}});
}

Schedule two_masks() {
  return create_schedule(nn::make<TwoMasks>(), {{"x", zeros({2, 5, 6})},
                                                {"first", zeros({5, 5}, {DType::boolean, kCpu})},
                                                {"second", zeros({5, 5}, {DType::boolean, kCpu})}});
}

Schedule window() { return create_schedule(nn::make<Window>(), {{"x", zeros({1, 40, 2})}}); }

Schedule loud() {
  manual_seed(20261130);
  return create_schedule(nn::make<Loud>(), {{"x", zeros({2, kHidden})}});
}

Schedule numbered() {
  manual_seed(20261130);
  return create_schedule(nn::make<Numbered>(), {{"ids", integers({2, 5})}});
}

Schedule rows() { return create_schedule(nn::make<Rows>(), {{"x", zeros({2, 9})}}); }

}  // namespace tenon::fuzz::scenes
