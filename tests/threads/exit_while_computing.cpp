// main returns while detached threads loop over eager ops, one shared Executor and training steps:
// what they use must still be there, and the status is 0.
//
//   exit_while_computing [--device cuda] [--threads 4] [--milliseconds 5]
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <thread>

#include "autograd/autograd.h"
#include "examples/command_line.h"
#include "nn/nn.h"
#include "schedule/schedule.h"
#include "schedule/training.h"
#include "tensor/device_backend.h"
#include "tests/support/models.h"

namespace {

using namespace tenon;

struct Options {
  std::string device = "cpu";
  int threads = 4;
  int milliseconds = 5;
};

// Never destroyed, as whatever detached threads use.
std::atomic<bool>& main_returned = *new std::atomic<bool>(false);
std::atomic<int>& at_work = *new std::atomic<int>(0);

/// Computes until the process ends. What a device refuses while it is being shut down is no
/// failure.
void loop(int thread, Executor run, Device device) {
  try {
    Generator generator(static_cast<std::uint64_t>(thread));
    const GeneratorScope scope(generator);
    const auto model = nn::make<test::ResidualMlp>(16);
    model->to(device);
    const Tensor x = randn({4, 16}, {.device = device});
    TrainingStep step =
        build_training(create_schedule(model, {{"x", x}}),
                       {.loss = [](auto y, auto) { return mean(square(y[0])); },
                        .optimizer = std::make_shared<nn::AdamW>(model->named_parameters()),
                        .verify = false});
    for (std::int64_t i = 0;; ++i) {
      const Tensor y = randn({1 + i % 40, 16}, {.device = device});
      run(y);
      step.run({x});
      Tensor leaf = randn({300, 300}, {.device = device}).requires_grad_();
      backward(sum(softmax(matmul(leaf, leaf), -1) * model->named_parameters().size()));
      if (i == 0) ++at_work;
    }
  } catch (const std::exception& error) {
    if (!main_returned) {
      std::cerr << "error: " << error.what() << "\n";
      std::_Exit(1);
    }
  }
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CommandLine line("Ends while threads compute");
  line.option("--device", options.device, "where tensors are: cpu or cuda");
  line.option("--threads", options.threads, "threads that go on").range(1, 256);
  line.option("--milliseconds", options.milliseconds, "how long main waits once all compute");
  if (const auto status = line.parse(argc, argv)) return *status;
  const Device device = Device::parse(options.device);
  if (!is_available(device)) {
    std::cerr << "skipped: no " << options.device << " device\n";
    return 2;
  }
  const auto model = nn::make<test::ResidualMlp>(16);
  model->to(device);
  const Executor run =
      build(create_schedule(model, {{"x", ones({2, 16}, {.device = device})}}), {.verify = false});
  for (int i = 0; i < options.threads; ++i) std::thread(loop, i, run, device).detach();
  while (at_work < options.threads) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(options.milliseconds));
  main_returned = true;
  return 0;
}
