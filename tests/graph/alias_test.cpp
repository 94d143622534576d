// Values that may share memory: eager code changes them together, so a Graph must give the same result
// or refuse, naming clone(). Each case runs eagerly and as a Program, in training and in evaluation.
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "autograd/autograd.h"
#include "nn/sgd.h"
#include "schedule/schedule.h"
#include "schedule/training.h"
#include "tensor/error.h"
#include "tensor/interpreter.h"
#include "tensor/random.h"
#include "tests/support/capture_print.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace alias_test {

using test::CapturePrint;
using test::function_model;
using test::max_difference;
using Function = std::function<Tensor(const Tensor&)>;
using Doubles = std::vector<double>;

enum class Outcome { equal, refused };

/// Runs `f`, which may read and change `state`, on x (2, 6) eagerly and as a Program, and compares; or
/// notes that the tracer refuses it with a remedy.
Outcome compare_with_eager(const Function& f, const std::string& what,
                           Tensor state = zeros({2, 6})) {
  const auto model = function_model(f);
  const Tensor x = tensor({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, {2, 6});
  const Doubles given = x.to_doubles();
  std::unique_ptr<Executor> program;
  try {
    program = std::make_unique<Executor>(create_schedule(model, {{"x", x}}).graph());
  } catch (const TraceError& error) {
    const std::string text = error.what();
    EXPECT_TRUE(text.find("clone()") != std::string::npos ||
                text.find("take the view again") != std::string::npos)
        << what << ": " << text;
    return Outcome::refused;
  }
  for (const bool training : {true, false, true}) {
    const std::string where = what + (training ? " in training" : " in evaluation");
    model->train(training);
    state.copy_(full({2, 6}, 5));
    manual_seed(7);
    const Doubles eager = model(x).to_doubles();
    const Doubles left = state.to_doubles();
    state.copy_(full({2, 6}, 5));
    manual_seed(7);
    const Tensor inputs[] = {x};
    EXPECT_EQ(program->run(inputs, training).at(0).to_doubles(), eager) << where;
    EXPECT_EQ(state.to_doubles(), left) << where;
    EXPECT_EQ(x.to_doubles(), given) << what << ": the caller's tensor was changed";
  }
  return Outcome::equal;
}

Tensor flat(const Tensor& a, const Tensor& b) {
  return cat({(a * 1.0).reshape({-1}), (b * 1.0).reshape({-1})});
}

/// Of every op whose result may be its operand, or a view of it, calls on (2, 6).
const std::map<std::string, std::vector<Function>> kCalls = {
    {"dropout",
     {[](const Tensor& h) { return dropout(h, 0.5); },
      [](const Tensor& h) { return dropout(h, 0); },
      [](const Tensor& h) { return dropout(h, 0.5, DropoutMode::train); },
      [](const Tensor& h) { return dropout(h, 0.5, DropoutMode::eval); }}},
    {"view", {[](const Tensor& h) {
       return view(h, {3, 4});
     }}},
    {"reshape",
     {[](const Tensor& h) {
        return reshape(h, {2, 6});
      },
      [](const Tensor& h) {
        return reshape(h.transpose(0, 1), {3, 4});
      }}},
    {"permute", {[](const Tensor& h) {
       return permute(h, {1, 0});
     }}},
    {"transpose", {[](const Tensor& h) { return transpose(h, 0, 1); }}},
    {"expand", {[](const Tensor& h) {
       return expand(h, {2, 6});
     }}},
    {"narrow", {[](const Tensor& h) { return narrow(h, 1, 2, 3); }}},
    {"unsqueeze", {[](const Tensor& h) { return unsqueeze(h, 1); }}},
    {"squeeze", {[](const Tensor& h) { return squeeze(h.unsqueeze(1), 1); }}},
    {"contiguous",
     {[](const Tensor& h) { return contiguous(h); },
      [](const Tensor& h) { return contiguous(h.transpose(0, 1)); }}},
    {"detach", {[](const Tensor& h) { return detach(h); }}},
};

struct Written {
  const char* what;
  Tensor (*program)(const Function&, const Tensor& x, Tensor state);
};
const Written kPrograms[] = {
    {"the result is changed, the operand read",
     [](const Function& f, const Tensor& x, Tensor) {
       const Tensor h = x * 2.0;
       Tensor y = f(h);
       y.add_(y);
       return flat(y, h);
     }},
    {"the result is changed, the operand not read",
     [](const Function& f, const Tensor& x, Tensor) {
       Tensor y = f(x * 2.0);
       y.add_(y);
       return y * 1.0;
     }},
    {"the operand is changed, the result read",
     [](const Function& f, const Tensor& x, Tensor) {
       Tensor h = x * 2.0;
       const Tensor y = f(h);
       h.mul_(3.0);
       return flat(y, h);
     }},
    {"the operand is changed, the result returned",
     [](const Function& f, const Tensor& x, Tensor) {
       Tensor h = x * 2.0;
       const Tensor y = f(h);
       h.mul_(3.0);
       return y;
     }},
    {"the operand is changed, the result written into a state",
     [](const Function& f, const Tensor& x, Tensor state) {
       Tensor h = x * 2.0;
       const Tensor y = f(h);
       h.mul_(3.0);
       state.copy_(y.reshape({-1}).narrow(0, 0, 6).expand({2, 6}));
       return state * x;
     }},
    {"the result of the result is changed, the operand read",
     [](const Function& f, const Tensor& x, Tensor) {
       const Tensor h = x * 2.0;
       Tensor y = dropout(f(h), 0.5);
       y.zero_();
       return flat(y, h);
     }},
    {"one of two results is changed, the other read",
     [](const Function& f, const Tensor& x, Tensor) {
       const Tensor h = x * 2.0;
       const Tensor other = f(h);
       Tensor y = dropout(h, 0.5, DropoutMode::eval);
       y.mul_(3.0);
       return flat(y, other);
     }},
    {"an input's result is changed",
     [](const Function& f, const Tensor& x, Tensor) {
       Tensor y = f(x);
       y.mul_(3.0);
       return flat(y, x);
     }},
    {"a state's result is changed, the state read",
     [](const Function& f, const Tensor& x, Tensor state) {
       Tensor y = f(state);
       y.mul_(3.0);
       return flat(y, state + x);
     }},
    {"a state is changed, its result read",
     [](const Function& f, const Tensor& x, Tensor state) {
       const Tensor y = f(state);
       state.mul_(3.0);
       return flat(y, state + x);
     }},
    {"a state is changed after its result was read",
     [](const Function& f, const Tensor& x, Tensor state) {
       const Tensor y = f(state) * 2.0;
       state.mul_(3.0);
       return flat(y, state + x);
     }},
    {"what was copied from the result is changed",
     [](const Function& f, const Tensor& x, Tensor) {
       const Tensor y = f(x * 2.0);
       Tensor copy = y * 0.0;
       copy.copy_(y);
       copy.mul_(3.0);
       return flat(y, copy);
     }},
    {"a clone of the result is changed",
     [](const Function& f, const Tensor& x, Tensor) {
       const Tensor h = x * 2.0;
       Tensor y = f(h).clone();
       y.mul_(3.0);
       return flat(y, h);
     }},
};

/// Programs whose results cannot depend on what shares memory; they must not be refused.
bool must_run(const std::string& program, const std::string& op) {
  const bool after = program == "a state is changed after its result was read" ||
                     program == "what was copied from the result is changed" ||
                     program == "a clone of the result is changed";
  return after || (op == "dropout" && program == "the result is changed, the operand not read");
}

TEST(Alias, EveryOpThatMayReturnItsOperandAgreesWithEagerOrIsRefused) {
  int equal = 0;
  int refused = 0;
  for (const Op* op : all_ops()) {
    if (!op->view && !op->identity) continue;
    ASSERT_TRUE(kCalls.contains(op->name)) << op->name << ": add a call of it to kCalls";
    for (const Function& call : kCalls.at(op->name)) {
      for (const Written& written : kPrograms) {
        for (const bool grad : {true, false}) {
          const std::string what = op->name + ": " + written.what + (grad ? "" : ", no grad");
          const Tensor state = zeros({2, 6});
          const auto run = [&](const Tensor& x) {
            const GradModeGuard mode(grad);
            return written.program(call, x, state);
          };
          const Outcome outcome = compare_with_eager(run, what, state);
          EXPECT_TRUE(outcome == Outcome::equal || !must_run(written.what, op->name)) << what;
          ++(outcome == Outcome::equal ? equal : refused);
        }
      }
    }
  }
  EXPECT_GT(equal, 100);
  EXPECT_GT(refused, 100);
}

TEST(Alias, FunctionsThatReturnTheirInputGiveAHandleOfTheSameValue) {
  const nn::Child<nn::Identity> identity = nn::make<nn::Identity>();
  const std::map<std::string, Function> functions = {
      {"a copy of the handle", [](const Tensor& h) { return Tensor(h); }},
      {"print", [](const Tensor& h) { return print(h, "h"); }},
      {"cast", [](const Tensor& h) { return cast(h, DType::float32); }},
      {"to(dtype)", [](const Tensor& h) { return h.to(DType::float32); }},
      {"to(device)", [](const Tensor& h) { return h.to(kCpu); }},
      {"squeeze", [](const Tensor& h) { return squeeze(h, 1); }},
      {"Identity", [identity](const Tensor& h) { return identity(h); }},
  };
  const CapturePrint capture;
  for (const auto& [name, f] : functions) {
    const auto change_result = [f = f](const Tensor& x) {
      const Tensor h = x * 2.0;
      Tensor y = f(h);
      y.add_(x);
      return flat(y, h);
    };
    const auto change_operand = [f = f](const Tensor& x) {
      Tensor h = x * 2.0;
      const Tensor y = f(h);
      h.add_(x);
      return flat(y, h);
    };
    EXPECT_EQ(compare_with_eager(change_result, name), Outcome::equal) << name;
    EXPECT_EQ(compare_with_eager(change_operand, name), Outcome::equal) << name;
  }
}

struct Tail : nn::Module {
  Tail() : up(add<nn::Linear>("up", 6, 6)), drop(add<nn::Dropout>("drop", 0.5)) {}
  Tensor forward(const Tensor& x) const {
    Tensor y = drop(up(x).reshape({-1, 6}));
    y.add_(x);
    return y;
  }
  nn::Child<nn::Linear> up;
  nn::Child<nn::Dropout> drop;
};

TEST(Alias, AResidualAddedInPlaceBehindDropoutTrainsAsEagerly) {
  const auto model = nn::make<Tail>();
  const Schedule sch = create_schedule(model, {{"x", randn({2, 6})}});
  const LossFunction loss = [](auto outputs, auto) { return sum(square(outputs[0])); };
  TrainingStep step = build_training(sch, {.loss = loss});
  const Tensor x = randn({3, 6});
  manual_seed(7);
  const TrainingResult result = step.run({x});
  manual_seed(7);
  backward(sum(square(model(x))));
  for (const auto& [name, gradient] : result.gradients) {
    EXPECT_LT(max_difference(gradient, model->parameter(name).grad()), 1e-4) << name;
  }
}

TEST(Alias, ErrorsNameTheNodesAndTheRemedy) {
  const auto traced = [](const Function& f) { create_schedule(function_model(f), {ones({2, 6})}); };
  EXPECT_ERROR(TraceError,
               "add reads %mul, which may lie in the memory of %dropout, changed in place since; "
               "eager code would see the change in some mode: change a clone() instead",
               traced([](const Tensor& x) {
                 const Tensor h = x * 2.0;
                 Tensor y = dropout(h, 0.5);
                 y.mul_(3.0);
                 return y + h;
               }));
  EXPECT_ERROR(TraceError,
               "[copy_] under the tracer %dropout cannot be changed in place: it may be %input "
               "itself; change a clone()",
               traced([](const Tensor& x) {
                 Tensor y = dropout(x, 0.5);
                 y.mul_(3.0);
                 return y;
               }));
  const Tensor whole = ones({2, 6});
  EXPECT_ERROR(
      TraceError,
      "add reads %constant_1, which may lie in the memory of %constant_0, changed in "
      "place since; eager code would see the change in some mode: change a clone() instead",
      traced([whole, part = whole.narrow(1, 0, 3)](const Tensor& x) {
        Tensor(whole).copy_(x);
        return part + 1.0;
      }));
  EXPECT_ERROR(TraceError,
               "add reads %narrow, which may lie in the memory of %constant_1, changed in place "
               "since; eager code would see the change in some mode: change a clone() instead",
               traced([whole, part = whole.narrow(1, 0, 3)](const Tensor& x) {
                 const Tensor view = part.narrow(1, 0, 1);
                 Tensor(whole).copy_(x);
                 return view + x;
               }));
}

TEST(Alias, SetDataUnderTheTracerIsRefused) {
  Tensor state = ones({2});
  const auto model = function_model([state](const Tensor& x) {
    Tensor(state).set_data_(zeros({2}));
    return state + x;
  });
  EXPECT_ERROR(TraceError,
               "[set_data_] under the tracer: a Graph cannot give a tensor other storage; change "
               "it with copy_, or call set_data_ outside of forward",
               create_schedule(model, {ones({2})}));
  EXPECT_EQ(state.to_doubles(), (Doubles{1, 1}));
}

}  // namespace alias_test
}  // namespace tenon
