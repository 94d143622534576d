// Row 8 of the feature table: one op in all its spellings (method, function, operator, module), each as a
// model and each as a pattern, and every pattern finds every model.
#include <gtest/gtest.h>

#include "schedule/schedule.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

/// A model that is one module.
template <class M>
struct Holder : nn::Module {
  explicit Holder(const nn::Child<M>& module) : op(register_module("op", module)) {}
  Tensor forward(const Tensor& x) const { return op(x); }
  nn::Child<M> op;
};

struct Spelling {
  std::string name;
  std::function<Schedule()> model;  // traced from it
  std::function<Matches(const Schedule&)> find;
};

/// `f` as a model and as a pattern, on tensors like these.
template <class F>
Spelling spelled(std::string name, F f, std::vector<ExampleInput> examples) {
  return {std::move(name), [=] { return create_schedule(test::function_model(f), examples); },
          [=](const Schedule& sch) { return sch.find(f); }};
}

/// The same for a function of weights: the model holds them, the pattern is given them.
template <class F, class P>
Spelling weighted(std::string name, F f, P pattern, std::vector<ExampleInput> examples) {
  return {std::move(name), [=] { return create_schedule(test::function_model(f), examples); },
          [=](const Schedule& sch) { return sch.find(pattern); }};
}

/// A module as a model of its own and, another one of the class, called in a pattern.
template <class M, class... A>
Spelling module(std::string name, std::vector<ExampleInput> examples, A... arguments) {
  return {std::move(name),
          [=] { return create_schedule(nn::make<Holder<M>>(nn::make<M>(arguments...)), examples); },
          [=](const Schedule& sch) {
            const auto own = nn::make<M>(arguments...);
            return sch.find([&](const Tensor& x) { return own(x); });
          }};
}

struct Row {
  std::string op;
  std::vector<Spelling> spellings;
};

std::vector<ExampleInput> matrix() { return {randn({2, 3, 4})}; }
std::vector<ExampleInput> pair() { return {randn({2, 3, 4}), randn({2, 3, 4})}; }
std::vector<ExampleInput> image() { return {randn({2, 4, 6, 6})}; }

std::vector<Row> activations() {
  return {
      {"relu",
       {spelled(
            "function", [](const Tensor& x) { return relu(x); }, matrix()),
        module<nn::ReLU>("module", matrix())}},
      {"gelu",
       {spelled(
            "function", [](const Tensor& x) { return gelu(x); }, matrix()),
        module<nn::GELU>("module", matrix())}},
      {"gelu_tanh",
       {spelled(
            "function", [](const Tensor& x) { return gelu(x, Approximate::tanh); }, matrix()),
        module<nn::GELU>("module", matrix(), Approximate::tanh)}},
      {"silu",
       {spelled(
            "function", [](const Tensor& x) { return silu(x); }, matrix()),
        module<nn::SiLU>("module", matrix())}},
      {"tanh",
       {spelled(
            "function", [](const Tensor& x) { return tanh(x); }, matrix()),
        module<nn::Tanh>("module", matrix())}},
      {"sigmoid",
       {spelled(
            "function", [](const Tensor& x) { return sigmoid(x); }, matrix()),
        module<nn::Sigmoid>("module", matrix())}},
      {"softmax",
       {spelled(
            "function", [](const Tensor& x) { return softmax(x, -1); }, matrix()),
        spelled(
            "positive_axis", [](const Tensor& x) { return softmax(x, 2); }, matrix()),
        module<nn::Softmax>("module", matrix(), -1)}},
      {"dropout",
       {spelled(
            "function", [](const Tensor& x) { return dropout(x, 0.25); }, matrix()),
        module<nn::Dropout>("module", matrix(), 0.25)}},
  };
}

std::vector<Row> layers() {
  const Tensor w = randn({4, 4});
  const Tensor b = randn({4});
  const Tensor kernel = randn({3, 4, 3, 3});
  const std::vector<ExampleInput> index = {zeros({2, 3}, {DType::int64})};
  using T = const Tensor&;
  return {
      {"linear",
       {weighted(
            "function", [=](T x) { return linear(x, w, b); },
            [](T x, T weight, T bias) { return linear(x, weight, bias); }, matrix()),
        module<nn::Linear>("module", matrix(), 4, 4)}},
      {"linear_without_bias",
       {weighted(
            "function", [=](T x) { return linear(x, w); },
            [](T x, T weight) { return linear(x, weight); }, matrix()),
        module<nn::Linear>("module", matrix(), 4, 4, false)}},
      {"layer_norm",
       {weighted(
            "function", [=](T x) { return layer_norm(x, {4}, b, b); },
            [](T x, T weight, T bias) { return layer_norm(x, {4}, weight, bias); }, matrix()),
        weighted(
            "last_axis", [=](T x) { return layer_norm(x, b, b); },
            [](T x, T weight, T bias) { return layer_norm(x, weight, bias); }, matrix()),
        module<nn::LayerNorm>("module", matrix(), 4)}},
      {"rms_norm",
       {weighted(
            "function", [=](T x) { return rms_norm(x, {4}, b); },
            [](T x, T weight) { return rms_norm(x, {4}, weight); }, matrix()),
        module<nn::RMSNorm>("module", matrix(), 4)}},
      {"embedding",
       {weighted(
            "function", [=](T x) { return embedding(x, w); },
            [](T x, T weight) { return embedding(x, weight); }, index),
        module<nn::Embedding>("module", index, 4, 4)}},
      {"conv2d",
       {weighted(
            "function",
            [=](T x) {
              return conv2d(x, kernel, {}, {2, 2}, {1, 1});
            },
            [](T x, T weight) {
              return conv2d(x, weight, {}, {2, 2}, {1, 1});
            },
            image()),
        module<nn::Conv2d>("module", image(), 4, 3, 3, 2, 1, 1, 1, false)}},
      {"batch_norm",
       {weighted(
            "function", [=](T x) { return batch_norm(x, {}, {}, b, b); },
            [](T x, T weight, T bias) { return batch_norm(x, {}, {}, weight, bias); }, image()),
        module<nn::BatchNorm2d>("module", image(), 4, 1e-5, 0.1, true, false)}},
      {"max_pool2d",
       {spelled(
            "function",
            [](T x) {
              return max_pool2d(x, {2, 2}, {2, 2});
            },
            image()),
        module<nn::MaxPool2d>("module", image(), 2)}},
      {"avg_pool2d",
       {spelled(
            "function",
            [](T x) {
              return avg_pool2d(x, {2, 2}, {2, 2});
            },
            image()),
        module<nn::AvgPool2d>("module", image(), 2)}},
  };
}

std::vector<Row> operators() {
  using T = const Tensor&;
  return {
      {"add",
       {spelled(
            "operator", [](T x, T y) { return x + y; }, pair()),
        spelled(
            "swapped", [](T x, T y) { return y + x; }, pair()),
        spelled(
            "function", [](T x, T y) { return add(x, y); }, pair())}},
      {"sub",
       {spelled(
            "operator", [](T x, T y) { return x - y; }, pair()),
        spelled(
            "function", [](T x, T y) { return sub(x, y); }, pair())}},
      {"mul",
       {spelled(
            "operator", [](T x, T y) { return x * y; }, pair()),
        spelled(
            "swapped", [](T x, T y) { return mul(y, x); }, pair()),
        spelled(
            "function", [](T x, T y) { return mul(x, y); }, pair())}},
      {"div",
       {spelled(
            "operator", [](T x, T y) { return x / y; }, pair()),
        spelled(
            "function", [](T x, T y) { return div(x, y); }, pair())}},
      {"add_number",
       {spelled(
            "operator", [](T x) { return x + 2.0; }, matrix()),
        spelled(
            "number_first", [](T x) { return 2.0 + x; }, matrix()),
        spelled(
            "function", [](T x) { return add(x, 2.0); }, matrix())}},
      {"mul_number",
       {spelled(
            "operator", [](T x) { return x * 3.0; }, matrix()),
        spelled(
            "number_first", [](T x) { return 3.0 * x; }, matrix()),
        spelled(
            "function", [](T x) { return mul(x, 3.0); }, matrix())}},
      {"sub_number",
       {spelled(
            "operator", [](T x) { return x - 2.0; }, matrix()),
        spelled(
            "function", [](T x) { return sub(x, 2.0); }, matrix())}},
      {"div_number",
       {spelled(
            "operator", [](T x) { return x / 2.0; }, matrix()),
        spelled(
            "function", [](T x) { return div(x, 2.0); }, matrix())}},
      {"neg",
       {spelled(
            "operator", [](T x) { return -x; }, matrix()),
        spelled(
            "function", [](T x) { return neg(x); }, matrix())}},
  };
}

std::vector<Row> methods() {
  using T = const Tensor&;
  return {
      {"view",
       {spelled(
            "method",
            [](T x) {
              return x.view({x.size(0), x.size(1) * x.size(2)});
            },
            matrix()),
        spelled(
            "rest",
            [](T x) {
              return x.view({x.size(0), -1});
            },
            matrix()),
        spelled(
            "function",
            [](T x) {
              return view(x, {x.size(0), x.size(1) * x.size(2)});
            },
            matrix())}},
      {"reshape",
       {spelled(
            "method",
            [](T x) {
              return x.reshape({x.size(0), x.size(1) * x.size(2)});
            },
            matrix()),
        spelled(
            "function",
            [](T x) {
              return reshape(x, {x.size(0), x.size(1) * x.size(2)});
            },
            matrix())}},
      {"permute",
       {spelled(
            "method",
            [](T x) {
              return x.permute({0, 2, 1});
            },
            matrix()),
        spelled(
            "negative_axes",
            [](T x) {
              return x.permute({-3, -1, -2});
            },
            matrix()),
        spelled(
            "function",
            [](T x) {
              return permute(x, {0, 2, 1});
            },
            matrix())}},
      {"transpose",
       {spelled(
            "method", [](T x) { return x.transpose(-2, -1); }, matrix()),
        spelled(
            "positive_axes", [](T x) { return x.transpose(1, 2); }, matrix()),
        spelled(
            "function", [](T x) { return transpose(x, -2, -1); }, matrix())}},
      {"unsqueeze",
       {spelled(
            "method", [](T x) { return x.unsqueeze(1); }, matrix()),
        spelled(
            "function", [](T x) { return unsqueeze(x, 1); }, matrix())}},
      {"narrow",
       {spelled(
            "method", [](T x) { return x.narrow(2, 1, 2); }, matrix()),
        spelled(
            "negative_axis", [](T x) { return x.narrow(-1, 1, 2); }, matrix()),
        spelled(
            "function", [](T x) { return narrow(x, 2, 1, 2); }, matrix())}},
      {"contiguous",
       {spelled(
            "method", [](T x) { return x.contiguous(); }, matrix()),
        spelled(
            "function", [](T x) { return contiguous(x); }, matrix())}},
      {"cast",
       {spelled(
            "method", [](T x) { return x.to(DType::float64); }, matrix()),
        spelled(
            "function", [](T x) { return cast(x, DType::float64); }, matrix())}},
      {"detach",
       {spelled(
            "method", [](T x) { return x.detach(); }, matrix()),
        spelled(
            "function", [](T x) { return detach(x); }, matrix())}},
  };
}

void expect_all_pairs_match(const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    for (const Spelling& model : row.spellings) {
      const Schedule sch = model.model();
      for (const Spelling& pattern : row.spellings) {
        const Matches matches = pattern.find(sch);
        EXPECT_EQ(matches.size(), 1U) << row.op << ": pattern " << pattern.name << " in model "
                                      << model.name << ": " << matches.explain() << "\n"
                                      << to_text(sch.graph());
      }
    }
  }
}

TEST(FeatureTable, Row08_ActivationsMatchInAllDirections) { expect_all_pairs_match(activations()); }
TEST(FeatureTable, Row08_LayersMatchInAllDirections) { expect_all_pairs_match(layers()); }
TEST(FeatureTable, Row08_OperatorsMatchInAllDirections) { expect_all_pairs_match(operators()); }
TEST(FeatureTable, Row08_MethodsMatchInAllDirections) { expect_all_pairs_match(methods()); }

TEST(FeatureTable, Row08_DifferentOpsDoNotMatch) {
  std::vector<Row> rows = activations();
  for (const auto& more : {layers(), operators()})
    rows.insert(rows.end(), more.begin(), more.end());
  for (const Row& row : rows) {
    const Schedule sch = row.spellings[0].model();
    for (const Row& other : rows) {
      if (other.op == row.op) continue;
      for (const Spelling& pattern : other.spellings) {
        EXPECT_TRUE(pattern.find(sch).empty())
            << "pattern " << other.op << " " << pattern.name << " in a model of " << row.op;
      }
    }
  }
}

}  // namespace
}  // namespace tenon
