// A user's program against the installed package: a model, its checkpoint, a schedule, a run, and
// training, eagerly and as one Program.
#include <cmath>
#include <cstdio>
#include <exception>

#include "autograd/autograd.h"
#include "nn/checkpoint.h"
#include "nn/nn.h"
#include "schedule/schedule.h"
#include "schedule/training.h"

using namespace tenon;

struct Mlp : nn::Module {
  explicit Mlp(std::int64_t size)
      : up(add<nn::Linear>("up", size, 4 * size)),
        down(add<nn::Linear>("down", 4 * size, size)),
        norm(add<nn::LayerNorm>("norm", size)) {}
  Tensor forward(const Tensor& x) const { return norm(dropout(down(gelu(up(x))), 0.1) + x); }
  nn::Child<nn::Linear> up, down;
  nn::Child<nn::LayerNorm> norm;
};

/// Ten steps towards a target; the loss before and after.
template <class Step>
bool improves(const char* name, const Step& step) {
  const double first = step();
  for (int i = 0; i < 8; ++i) step();
  const double last = step();
  std::printf("%s training: loss %g, then %g\n", name, first, last);
  return last < first;
}

bool train_eagerly() {
  const auto model = nn::make<Mlp>(16);
  nn::SGD optimizer(model->named_parameters(), {.lr = 0.1, .momentum = 0.9});
  const Tensor x = randn({8, 5, 16});
  const Tensor y = randn({8, 5, 16});
  return improves("eager", [&] {
    const Tensor loss = mse_loss(model(x), y);
    backward(loss);
    optimizer.step();
    optimizer.zero_grad();
    return loss.item();
  });
}

bool train_a_program() {
  const auto model = nn::make<Mlp>(16);
  const Tensor x = randn({8, 5, 16});
  const Tensor y = randn({8, 5, 16});
  auto step = build_training(
      create_schedule(model, {{"x", x}}),
      {.loss = [](auto outputs, auto targets) { return mse_loss(outputs[0], targets[0]); },
       .targets = {{"y", y}},
       .optimizer =
           std::make_shared<nn::AdamW>(model->named_parameters(), nn::AdamWOptions{.lr = 0.01})});
  return improves("program", [&] { return step.run({x, y}).loss.item(); });
}

/// Operators and templates as a user writes them: all are in the headers or in the library.
bool computes() {
  Tensor x = from_vector(std::vector<double>{1, 2, 4}, {3});
  x += 1 / x;
  x *= 2.0;
  x -= 3 - x;
  const std::int64_t large = (std::int64_t{1} << 53) + 1;
  const Tensor ids = tensor({large, 7}, {2}, {DType::int64});
  const std::vector<bool> mask = eq(ids, large).to_vector<bool>();
  return x.to_vector<double>() == std::vector<double>{5, 7, 14} && mask[0] && !mask[1] &&
         from_vector(mask, {2}).to_vector<bool>() == mask &&
         amax(ids).item<std::int64_t>() == large;
}

int main() try {
  const auto saved = nn::make<Mlp>(16);
  nn::save_checkpoint("mlp.json", {.tensors = saved->state_dict()});
  const auto model = nn::make<Mlp>(16);
  nn::load_into(*model, nn::load_checkpoint("mlp.json"));
  model->eval();

  Schedule sch = create_schedule(model, {{"x", randn({2, 5, 16})}});
  sch["down"].decompose();
  sch.trace({.flatten = true});
  sch.fuse(sch.find([](const Tensor& x, const Tensor& bias, const Tensor& residual,
                       const Tensor& weight, const Tensor& norm_bias) {
    return layer_norm(dropout(x + bias, any()) + residual, weight, norm_bias);
  }));
  Executor run = build(sch);

  const Tensor x = randn({3, 7, 16});
  const auto scheduled = run(x).to_vector<float>();
  const auto plain = model(x).to_vector<float>();
  float apart = 0;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    apart = std::fmax(apart, std::fabs(plain[i] - scheduled[i]));
  }
  std::printf("%zu values, largest difference %g\n", plain.size(), static_cast<double>(apart));
  return apart < 1e-5F && computes() && train_eagerly() && train_a_program() ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 2;
}
