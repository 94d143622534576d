// What an error advises works where the error arises: each entry provokes an error, which names its
// remedies, and then follows them, eagerly or in a forward function that is traced.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "autograd/autograd.h"
#include "nn/clip_grad.h"
#include "nn/sgd.h"
#include "schedule/schedule.h"
#include "schedule/training.h"
#include "tensor/error.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tests/support/models.h"

namespace tenon {
namespace remedy_test {

using test::function_model;
using Function = std::function<Tensor(const Tensor&)>;

/// Functions of a (2, 3) tensor: `fails` throws an error with this text, none of `remedies` does.
struct Advice {
  std::string text;
  Function fails;
  std::vector<Function> remedies;
};

void follow(const Advice& advice, const std::function<void(const Function&)>& run) {
  SCOPED_TRACE(advice.text);
  std::string message;
  try {
    run(advice.fails);
  } catch (const Error& error) {
    message = error.what();
  }
  EXPECT_NE(message.find(advice.text), std::string::npos) << "the error was: " << message;
  for (const Function& remedy : advice.remedies) EXPECT_NO_THROW(run(remedy));
}

Tensor leaf() { return ones({2, 3}).requires_grad_(); }

const DType kDouble = DType::float64;

/// Errors of single calls; they arise eagerly and under the tracer.
const std::vector<Advice>& advice_on_calls() {
  static const std::vector<Advice> table = {
      {"convert 'input' with .to(DType::float64)",
       [](const Tensor& x) {
         return x + full({2, 3}, 1, {kDouble});
       },
       {[](const Tensor& x) {
          return x + full({2, 3}, 1, {kDouble}).to(DType::float32);
        },
        [](const Tensor& x) {
          return x.to(DType::float64) + full({2, 3}, 1, {kDouble});
        }}},
      {"convert 'input' with .to(DType::float64)",
       [](const Tensor& x) {
         return where(gt(x, 0), x, full({2, 3}, 1, {kDouble}));
       },
       {[](const Tensor& x) {
         return where(gt(x, 0), x.to(DType::float64), full({2, 3}, 1, {kDouble}));
       }}},
      {"convert 'query' with .to(DType::float64)",
       [](const Tensor& x) { return scaled_dot_product_attention(x, cast(x, kDouble), x); },
       {[](const Tensor& x) {
         const Tensor wide = x.to(DType::float64);
         return scaled_dot_product_attention(wide, cast(x, kDouble), wide);
       }}},
      {"do it under NoGradGuard",
       [w = leaf()](const Tensor& x) {
         Tensor(w).mul_(0.5);
         return x * w;
       },
       {[w = leaf()](const Tensor& x) {
         {
           const NoGradGuard no_grad;
           Tensor(w).mul_(0.5);
         }
         return x * w;
       }}},
      {"write into a clone(), or into the tensor that it is a view of",
       [row = ones({1, 3})](const Tensor& x) {
         Tensor expanded(row.storage(), row.dtype(), {{2, 3}, {0, 1}, 0});
         expanded.zero_();
         return expanded + x;
       },
       {[row = ones({1, 3})](const Tensor& x) {
          Tensor copy = Tensor(row.storage(), row.dtype(), {{2, 3}, {0, 1}, 0}).clone();
          copy.zero_();
          return copy + x;
        },
        [row = ones({1, 3})](const Tensor& x) {
          Tensor(row).zero_();
          return row + x;
        }}},
  };
  return table;
}

TEST(Remedy, OfCallsEagerlyAndTraced) {
  for (const Advice& advice : advice_on_calls()) {
    follow(advice, [](const Function& f) { f(ones({2, 3})); });
    follow(advice, [](const Function& f) {
      Executor run(create_schedule(function_model(f), {ones({2, 3})}).graph());
      run(ones({4, 3}).narrow(0, 0, 2));
    });
  }
}

/// Errors that need tensors with data, or a tape.
const std::vector<Advice>& eager_advice() {
  static const std::vector<Advice> table = {
      {"take a logsumexp of the scores instead",
       [](const Tensor& x) {
         const Tensor h = leaf() * x.detach();
         const auto both = apply(get_op("scaled_dot_product_attention_lse"), std::vector{h, h, h},
                                 AttentionAttrs{});
         return grad(std::vector{sum(both[1])}, std::vector{h}).at(0);
       },
       {[](const Tensor& x) { return log(sum(exp(matmul(x, x.transpose(0, 1))), {-1})); }}},
      {"change the tensor itself, or a clone()",
       [](const Tensor&) {
         Tensor part = (leaf() * 2.0).narrow(0, 0, 1);
         part.mul_(3.0);
         return part;
       },
       {[](const Tensor&) {
          Tensor copy = (leaf() * 2.0).narrow(0, 0, 1).clone();
          copy.mul_(3.0);
          backward(sum(copy));
          return copy;
        },
        [](const Tensor&) {
          Tensor h = leaf() * 2.0;
          h.mul_(3.0);
          backward(sum(h.narrow(0, 0, 1)));
          return h;
        }}},
      {"write into a clone()",
       [](const Tensor& x) {
         Tensor part = x.narrow(0, 0, 1);
         part.copy_(leaf().narrow(0, 0, 1));
         return part;
       },
       {[](const Tensor& x) {
         Tensor copy = x.narrow(0, 0, 1).clone();
         copy.copy_(leaf().narrow(0, 0, 1));
         backward(sum(copy));
         return copy;
       }}},
      {"only leaves can be changed, see detach()",
       [](const Tensor&) { return (leaf() * 2.0).requires_grad_(); },
       {[](const Tensor&) {
         const Tensor h = (leaf() * 2.0).detach().requires_grad_();
         backward(sum(h));
         return h.grad();
       }}},
      {"which was changed in place since forward; change a clone() instead",
       [](const Tensor&) {
         Tensor y = exp(leaf());
         y.mul_(2.0);
         backward(sum(y));
         return y;
       },
       {[](const Tensor&) {
         const Tensor y = exp(leaf());
         Tensor copy = y.clone();
         copy.mul_(2.0);
         backward(sum(copy));
         return y;
       }}},
      {"give the first backward retain_graph",
       [](const Tensor&) {
         const Tensor y = sum(exp(leaf()));
         backward(y);
         backward(y);
         return y;
       },
       {[](const Tensor&) {
         const Tensor y = sum(exp(leaf()));
         backward(y, {}, {.retain_graph = true});
         backward(y);
         return y;
       }}},
      {"needs a cotangent of that shape",
       [](const Tensor&) {
         backward(leaf() * 2.0);
         return Tensor();
       },
       {[](const Tensor&) {
         backward(leaf() * 2.0, ones({2, 3}));
         return Tensor();
       }}},
      {"allow_unused gives an undefined gradient",
       [](const Tensor&) {
         return grad(std::vector{sum(leaf() * 2.0)}, std::vector{leaf()}).at(0);
       },
       {[](const Tensor&) {
         return grad(std::vector{sum(leaf() * 2.0)}, std::vector{leaf()}, {},
                     {.allow_unused = true})
             .at(0);
       }}},
      {"call reshape, or contiguous first",
       [](const Tensor& x) { return x.transpose(0, 1).view({6}); },
       {[](const Tensor& x) { return x.transpose(0, 1).reshape({6}); },
        [](const Tensor& x) { return x.transpose(0, 1).contiguous().view({6}); }}},
      {"Freeze it with requires_grad_(false), or leave it out",
       [](const Tensor&) {
         return nn::clip_grad_norm_({{"w", leaf()}}, 1);
       },
       {[](const Tensor&) {
          Tensor used = leaf();
          backward(sum(used));
          return nn::clip_grad_norm_({{"used", used}, {"w", leaf().requires_grad_(false)}}, 1);
        },
        [](const Tensor&) {
          Tensor used = leaf();
          backward(sum(used));
          return nn::clip_grad_norm_({{"used", used}}, 1);
        }}},
  };
  return table;
}

TEST(Remedy, OfTheTapeAndOfData) {
  for (const Advice& advice : eager_advice()) {
    follow(advice, [](const Function& f) { f(ones({2, 3})); });
  }
}

/// Errors of the tracer: forward functions.
const std::vector<Advice>& traced_advice() {
  static const std::vector<Advice> table = {
      {"an input cannot be changed in place; change a clone()",
       [](const Tensor& x) {
         Tensor y = x;
         y.mul_(3.0);
         return y;
       },
       {[](const Tensor& x) {
         Tensor y = x.clone();
         y.mul_(3.0);
         return y + x;
       }}},
      {"it is a view; change a clone()",
       [](const Tensor& x) {
         Tensor y = (x * 2.0).transpose(0, 1);
         y.mul_(3.0);
         return y;
       },
       {[](const Tensor& x) {
         Tensor y = (x * 2.0).transpose(0, 1).clone();
         y.mul_(3.0);
         return y;
       }}},
      {"there are views of it; change a clone()",
       [](const Tensor& x) {
         Tensor y = x * 2.0;
         const Tensor part = y.narrow(0, 0, 1);
         y.mul_(3.0);
         return y + part;
       },
       {[](const Tensor& x) {
          const Tensor y = x * 2.0;
          const Tensor part = y.narrow(0, 0, 1);
          Tensor changed = y.clone();
          changed.mul_(3.0);
          return changed + part;
        },
        [](const Tensor& x) {
          Tensor y = x * 2.0;
          const Tensor part = y.clone().narrow(0, 0, 1);
          y.mul_(3.0);
          return y + part;
        }}},
      {"it may be %input itself; change a clone()",
       [](const Tensor& x) {
         Tensor y = dropout(x, 0.5);
         y.mul_(3.0);
         return y;
       },
       {[](const Tensor& x) {
         Tensor y = dropout(x, 0.5).clone();
         y.mul_(3.0);
         return y;
       }}},
      {"changed in place since; eager code would see the change in some mode: change a clone() "
       "instead",
       [](const Tensor& x) {
         const Tensor h = x * 2.0;
         Tensor y = dropout(h, 0.5);
         y.mul_(3.0);
         return y + h;
       },
       {[](const Tensor& x) {
         const Tensor h = x * 2.0;
         Tensor y = dropout(h, 0.5).clone();
         y.mul_(3.0);
         return y + h;
       }}},
      {"which was changed in place since; take the view again",
       [s = ones({2, 3})](const Tensor& x) {
         const Tensor part = s.narrow(0, 0, 1);
         Tensor(s).add_(x);
         return part * 2.0;
       },
       {[s = ones({2, 3})](const Tensor& x) {
         Tensor(s).add_(x);
         return s.narrow(0, 0, 1) * 2.0;
       }}},
      {"change it with copy_, or call set_data_ outside of forward",
       [s = ones({2, 3})](const Tensor& x) {
         Tensor(s).set_data_(zeros({2, 3}));
         return s + x;
       },
       {[s = ones({2, 3})](const Tensor& x) {
         Tensor(s).copy_(zeros({2, 3}));
         return s + x;
       }}},
      {"call the module itself",
       [](const Tensor& x) { return call_module("act", x); },
       {[act = nn::make<nn::ReLU>()](const Tensor& x) { return act(x); }}},
  };
  return table;
}

TEST(Remedy, OfTheTracer) {
  for (const Advice& advice : traced_advice()) {
    follow(advice, [](const Function& f) {
      Executor run(build(create_schedule(function_model(f), {ones({2, 3})})));
      run(ones({2, 3}));
    });
  }
}

/// The same errors in a loss function, which is traced with the gradients recorded.
TEST(Remedy, InALossFunctionThatIsTraced) {
  const Advice table[] = {
      {"change the tensor itself, or a clone()",
       [](const Tensor& y) {
         Tensor part = y.narrow(0, 0, 1);
         part.mul_(2.0);
         return sum(part);
       },
       {[](const Tensor& y) {
          Tensor part = y.narrow(0, 0, 1).clone();
          part.mul_(2.0);
          return sum(part);
        },
        [](const Tensor& y) {
          Tensor itself = y;
          itself.mul_(2.0);
          return sum(itself);
        }}},
      {"only leaves can be changed, see detach()",
       [](const Tensor& y) { return sum((y * 2.0).requires_grad_(false)); },
       {[](const Tensor& y) { return sum(y * (y * 2.0).detach().requires_grad_(false)); }}}};
  const auto model = nn::make<nn::Linear>(3, 3);
  const Schedule sch = create_schedule(model, {ones({2, 3})});
  for (const Advice& advice : table) {
    follow(advice, [&](const Function& loss) {
      const auto of_outputs = [&](auto outputs, auto) { return loss(outputs[0]); };
      build_training(sch, {.loss = of_outputs}).run({ones({2, 3})});
    });
  }
}

TEST(Remedy, OfProgramsAndSchedules) {
  const auto model = nn::make<nn::Linear>(3, 3);
  Executor run = build(create_schedule(model, {ones({2, 3})}));
  run(ones({2, 3}));
  const auto stale = [&](const Function& f) { f(ones({2, 3}, {kDouble})); };
  model->to(kDouble);
  follow({"build again",
          [&](const Tensor&) {
            return run(ones({2, 3}));
          },
          {[&](const Tensor& x) { return build(create_schedule(model, {x}))(x); }}},
         stale);
  follow({"trace it again for other sizes",
          [](const Tensor& x) {
            const auto fixed = function_model(
                [](const Tensor& y) { return y.size(0) == Dim(2) ? y * 2.0 : y * 3.0; });
            return Executor(create_schedule(fixed, {x}).graph())(ones({4, 3}, {kDouble}));
          },
          {[](const Tensor&) {
            const Tensor x = ones({4, 3}, {kDouble});
            const auto fixed = function_model(
                [](const Tensor& y) { return y.size(0) == Dim(2) ? y * 2.0 : y * 3.0; });
            return Executor(create_schedule(fixed, {x}).graph())(x);
          }}},
         stale);
  const auto chain = function_model([](const Tensor& x) { return exp(relu(x) * 2.0); });
  Schedule sch = create_schedule(chain, {ones({2, 3})});
  follow({"use size(axis)",
          [&](const Tensor&) {
            sch.find([](const Tensor& x) { return relu(x) * Scalar(Dim(x.shape().rank())); });
            return Tensor();
          },
          {[&](const Tensor&) {
            sch.find([](const Tensor& x) { return relu(x) * Scalar(x.size(0)); });
            return Tensor();
          }}},
         stale);
  follow(
      {"give the list of sizes or use chunk",
       [&](const Tensor&) {
         sch.find([](const Tensor& x) { return split(relu(x), 1, 0); });
         return Tensor();
       },
       {[&](const Tensor&) {
          sch.find([](const Tensor& x) { return split(relu(x), std::vector<std::int64_t>{1, 1}); });
          return Tensor();
        },
        [&](const Tensor&) {
          sch.find([](const Tensor& x) { return chunk(relu(x), 2); });
          return Tensor();
        }}},
      stale);
}

}  // namespace remedy_test
}  // namespace tenon
