// Two threads at once in what one thread at a time may change: an error that says what and what was
// needed. The first thread waits inside, at a gate; the second tries; then the first goes on.
#include <gtest/gtest.h>

#include <latch>
#include <streambuf>
#include <thread>

#include "autograd/autograd.h"
#include "nn/nn.h"
#include "schedule/schedule.h"
#include "schedule/training.h"
#include "tensor/interpreter.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon::test {
namespace concurrency_error_test {

/// Lets the first who passes wait until it is opened.
class Gate {
 public:
  void pass() {
    if (passed_) return;
    passed_ = true;
    reached_.count_down();
    opened_.wait();
  }
  void wait_until_reached() { reached_.wait(); }
  void open() { opened_.count_down(); }

 private:
  std::atomic<bool> passed_ = false;
  std::latch reached_{1};
  std::latch opened_{1};
};

/// Runs `first` on a thread, and `second` here while that waits at the gate.
void while_inside(const std::function<void(Gate&)>& first, const std::function<void()>& second) {
  Gate gate;
  std::thread thread([&] { EXPECT_NO_THROW(first(gate)); });
  gate.wait_until_reached();
  second();
  gate.open();
  thread.join();
}

/// Runs calls eagerly; the first one waits at a gate.
class Gated final : public Interpreter {
 public:
  explicit Gated(Gate& gate) : gate_(gate) {}
  std::vector<Tensor> apply(const Op& op, std::span<const Tensor> inputs,
                            const Attrs& attrs) override {
    gate_.pass();
    return apply_eager(op, inputs, attrs);
  }
  void assign(const Tensor& target, const Tensor& source) override {
    gate_.pass();
    Interpreter::assign(target, source);
  }

 private:
  Gate& gate_;
};

void under_gate(Gate& gate, const std::function<void()>& f) {
  Gated gated(gate);
  const InterpreterGuard guard(gated);
  f();
}

/// A stream for print() whose first line waits at a gate.
class GatedStream final : std::streambuf, public std::ostream {
 public:
  explicit GatedStream(Gate& gate)
      : std::ostream(this), gate_(gate), before_(set_print_stream(this)) {}
  ~GatedStream() override { set_print_stream(before_); }

 private:
  std::streamsize xsputn(const char*, std::streamsize count) override {
    gate_.pass();
    return count;
  }
  Gate& gate_;
  std::ostream* before_;
};

std::string in_use(const std::string& what) {
  return what +
         " is in use by another thread; needed one thread at a time: wait until the other is done "
         "(with a mutex, say), or give each thread its own";
}

struct Counter : nn::Module {
  Counter() : count(register_buffer("count", zeros({2}))) {}
  Tensor forward(const Tensor& x) const {
    Tensor(count).add_(x);
    return x + 1.0;
  }
  Tensor count;
};

TEST(ConcurrencyErrors, AScheduleThatIsBeingChanged) {
  const auto model = nn::make<ResidualMlp>(8);
  Schedule sch = create_schedule(model, {{"x", ones({2, 8})}});
  const auto first = [&](Gate& gate) {
    Schedule(sch).replace_all<nn::GELU>([&](const std::string&, nn::GELU&) {
      gate.pass();
      return nn::make<nn::GELU>();
    });
  };
  while_inside(first, [&] {
    EXPECT_ERROR(ConcurrencyError, in_use("[decompose] the schedule"), sch["up"].decompose());
    EXPECT_ERROR(ConcurrencyError, in_use("[undo] the schedule"), sch.undo());
    EXPECT_ERROR(ConcurrencyError, in_use("[find] the schedule"), sch.find("up"));
    EXPECT_ERROR(ConcurrencyError, in_use("[build] the schedule"), build(sch));
    EXPECT_ERROR(ConcurrencyError, in_use("[build_training] the schedule"),
                 build_training(sch, {.verify = false}));
  });
  EXPECT_EQ(sch.applied().size(), 1U);
  EXPECT_NO_THROW(build(sch));
}

TEST(ConcurrencyErrors, AScheduleThatIsBeingBuilt) {
  const auto model = nn::make<ResidualMlp>(8);
  Schedule sch = create_schedule(model, {{"x", ones({2, 8})}});
  const auto first = [&](Gate& gate) {
    build_training(sch, {.loss =
                             [&](auto outputs, auto) {
                               gate.pass();
                               return mean(outputs[0]);
                             },
                         .verify = false});
  };
  while_inside(first, [&] {
    EXPECT_ERROR(ConcurrencyError, in_use("[decompose] the schedule"), sch["up"].decompose());
    EXPECT_ERROR(ConcurrencyError, in_use("[build] the schedule"), build(sch));
  });
  EXPECT_NO_THROW(sch["up"].decompose());
}

TEST(ConcurrencyErrors, ATrainingStepThatRuns) {
  const auto model = nn::make<ResidualMlp>(8);
  const Tensor x = ones({2, 8});
  Schedule sch = create_schedule(model, {{"x", x}});
  sch["up"].print("up");
  TrainingStep step =
      build_training(sch, {.loss = [](auto outputs, auto) { return mean(outputs[0]); },
                           .optimizer = std::make_shared<nn::SGD>(model->named_parameters()),
                           .verify = false});
  const auto first = [&](Gate& gate) {
    const GatedStream stream(gate);
    step.run({x});
  };
  while_inside(first, [&] {
    EXPECT_ERROR(ConcurrencyError, in_use("[run] the training step"), step.run({x}));
  });
  TrainingStep moved = std::move(step);
  EXPECT_NO_THROW(moved.run({x}));
}

TEST(ConcurrencyErrors, ProgramsThatWriteOneState) {
  const auto model = nn::make<Counter>();
  const Tensor x = ones({2});
  Schedule sch = create_schedule(model, {{"x", x}});
  Executor plain = build(sch);
  sch.print("y");
  Executor printing = build(sch);
  const auto other = nn::make<Counter>();
  Executor elsewhere = build(create_schedule(other, {{"x", x}}));
  const auto first = [&](Gate& gate) {
    const GatedStream stream(gate);
    printing(x);
  };
  while_inside(first, [&] {
    EXPECT_ERROR(ConcurrencyError,
                 "[run] the program writes 'count', and so does one that another thread runs now; "
                 "needed one after the other (under a mutex, say), or a model for each thread",
                 plain(x));
    EXPECT_NO_THROW(elsewhere(x));
  });
  EXPECT_EQ(model->count.to_vector<float>()[0], 1) << "the run that was refused wrote nothing";
  EXPECT_NO_THROW(plain(x));
}

TEST(ConcurrencyErrors, AnOptimizerThatSteps) {
  Tensor weight = ones({3}).requires_grad_();
  nn::SGD optimizer({{"weight", weight}});
  weight.set_grad(ones({3}));
  const nn::StateDict state = optimizer.state_dict();
  while_inside([&](Gate& gate) { under_gate(gate, [&] { optimizer.step(); }); },
               [&] {
                 EXPECT_ERROR(ConcurrencyError, in_use("[step] the optimizer"), optimizer.step());
                 EXPECT_ERROR(ConcurrencyError, in_use("[load_state_dict] the optimizer"),
                              optimizer.load_state_dict(state));
               });
  EXPECT_NO_THROW(optimizer.step());
}

TEST(ConcurrencyErrors, ALeafThatAnotherBackwardAddsTo) {
  Tensor shared = ones({3}).requires_grad_();
  Tensor own = ones({3}).requires_grad_();
  const auto first = [&](Gate& gate) {
    const auto take_off = register_hook(shared, [&](const Tensor&) {
      gate.pass();
      return Tensor();
    });
    backward(sum(shared * 2.0));
    take_off();
  };
  while_inside(first, [&] {
    EXPECT_ERROR(ConcurrencyError, in_use("[backward] a leaf's gradient"),
                 backward(sum(shared * own)));
    EXPECT_FALSE(own.grad().defined()) << "a backward that is refused adds nothing";
    EXPECT_NO_THROW(backward(sum(own * 3.0)));
  });
  EXPECT_EQ(shared.grad().to_vector<float>()[0], 2);
}

TEST(ConcurrencyErrors, AModuleThatIsConvertedOrLoaded) {
  const auto model = nn::make<ResidualMlp>(8);
  nn::StateDict state;
  for (const auto& [name, tensor] : model->named_parameters()) state.add(name, tensor.clone());
  const std::function<void(Gate&)> ways[] = {
      [&](Gate& gate) { under_gate(gate, [&] { model->to(DType::float64); }); },
      [&](Gate& gate) { under_gate(gate, [&] { model->load_state_dict(state); }); }};
  for (const auto& first : ways) {
    while_inside(first, [&] {
      EXPECT_ERROR(ConcurrencyError, in_use("[to] the module"), model->to(DType::float32));
      EXPECT_ERROR(ConcurrencyError, in_use("[to] the module"), model->up->to(DType::float32));
      EXPECT_ERROR(ConcurrencyError, in_use("[load_state_dict] the module"),
                   model->load_state_dict(state));
      EXPECT_ERROR(ConcurrencyError, in_use("[call] the module"), model->up(ones({2, 8})));
    });
    EXPECT_NO_THROW(model->to(DType::float32));
    EXPECT_NO_THROW(model(ones({2, 8})));
  }
}

TEST(ConcurrencyErrors, OneThreadMayEnterAgain) {
  ExclusiveUse flag;
  const ExclusiveUse::Scope outer(flag, "outer");
  { const ExclusiveUse::Scope inner(flag, "inner"); }
  std::thread([&] {
    EXPECT_ERROR(ConcurrencyError, in_use("other"), ExclusiveUse::Scope(flag, "other"));
    ExclusiveUse copy = flag;
    EXPECT_NO_THROW(ExclusiveUse::Scope(copy, "a copy is another thing"));
  }).join();
}

}  // namespace concurrency_error_test
}  // namespace tenon::test
