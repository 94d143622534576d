// Threads on one GPU: each queues on a stream of its own, memory orders what they share, captures
// record their own thread only. A kernel that waits holds a stream back, so that work which is not
// ordered behind it would run first and show.
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <latch>
#include <thread>

#include "cuda/allocator.h"
#include "cuda/context.h"
#include "cuda/kernels/hold_back.h"
#include "schedule/report.h"
#include "schedule/schedules.h"
#include "tests/cuda/cuda_support.h"
#include "tests/support/compare.h"
#include "tests/support/models.h"

namespace tenon::test {
namespace {

constexpr std::int64_t kMany = 1 << 20;

/// Keeps this thread's stream busy for 20 ms.
void hold_back_this_thread() {
  cuda::hold_back(cuda::device_context(0).stream(), std::chrono::milliseconds(20));
}

Tensor filled(double value, std::int64_t count = kMany) {
  return full({count}, value, {DType::float32, kCuda});
}

/// Runs f on a thread of its own, to its end.
template <class F>
void on_another_thread(F f) {
  std::string failure;
  std::thread([&] {
    try {
      f();
    } catch (const std::exception& error) {
      failure = error.what();
    }
  }).join();
  EXPECT_EQ(failure, "");
}

/// The first element that is not `value`; -1: all are.
std::int64_t first_other(const Tensor& tensor, double value) {
  const std::vector<float> numbers = tensor.to_vector<float>();
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    if (numbers[i] != static_cast<float>(value)) return static_cast<std::int64_t>(i);
  }
  return -1;
}

int this_threads_stream() { return cuda::device_context(0).work_stream().number(); }

TEST(CudaThreads, EachHasAStreamWhileThereAreEnough) {
  SKIP_WITHOUT_GPU();
  const int mine = this_threads_stream();
  EXPECT_EQ(this_threads_stream(), mine);
  constexpr int kThreads = kMaxStreams + 3;
  std::vector<std::atomic<int>> threads_of(kMaxStreams);
  ++threads_of[static_cast<std::size_t>(mine)];
  std::latch all_have_one(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      ++threads_of[static_cast<std::size_t>(this_threads_stream())];
      all_have_one.arrive_and_wait();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& count : threads_of) {
    EXPECT_GE(count.load(), 1);
    EXPECT_LE(count.load(), 2);
  }
  on_another_thread([&] { EXPECT_NE(this_threads_stream(), mine); });
}

TEST(CudaThreads, AReadWaitsForTheWriteOfAnotherThread) {
  SKIP_WITHOUT_GPU();
  for (int round = 0; round < 3; ++round) {
    hold_back_this_thread();
    const Tensor x = filled(round);
    on_another_thread([&] { EXPECT_EQ(first_other(x + 1.0, round + 1), -1); });
  }
}

TEST(CudaThreads, AWriteWaitsForTheReadOfAnotherThread) {
  SKIP_WITHOUT_GPU();
  for (int round = 0; round < 3; ++round) {
    Tensor x = filled(round);
    hold_back_this_thread();
    const Tensor doubled = x * 2.0;
    on_another_thread([&] { x.copy_(filled(1000)); });
    EXPECT_EQ(first_other(doubled, 2 * round), -1);
    EXPECT_EQ(first_other(x, 1000), -1);
  }
}

TEST(CudaThreads, AReadBesideReadsWaitsForNone) {
  SKIP_WITHOUT_GPU();
  const Tensor weight = filled(3);
  on_another_thread([&] { EXPECT_EQ(first_other(weight + 1.0, 4), -1); });
  hold_back_this_thread();
  const Tensor late = weight * 2.0;
  std::chrono::duration<double, std::milli> taken{};
  on_another_thread([&] {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(first_other(weight + 1.0, 4), -1);
    taken = std::chrono::steady_clock::now() - start;
  });
  EXPECT_EQ(first_other(late, 6), -1);
  RecordProperty("milliseconds", std::to_string(taken.count()));
}

TEST(CudaThreads, ACopyToTheHostWaitsForTheOtherThread) {
  SKIP_WITHOUT_GPU();
  hold_back_this_thread();
  const Tensor x = filled(7);
  on_another_thread([&] { EXPECT_EQ(first_other(x, 7), -1); });
  hold_back_this_thread();
  const Tensor y = filled(8);
  on_another_thread([&] { synchronize(kCuda); });
  EXPECT_EQ(first_other(y, 8), -1);
}

TEST(CudaThreads, FreedMemoryComesBackAfterItsLastUse) {
  SKIP_WITHOUT_GPU();
  for (int round = 0; round < 5; ++round) {
    hold_back_this_thread();
    Tensor x = filled(round);
    const Tensor sum_of_x = x + x;  // read late, behind what holds the stream back
    x = Tensor();                   // and freed now
    on_another_thread([&] {
      std::vector<Tensor> others;
      for (int i = 0; i < 4; ++i) others.push_back(filled(-1));
      synchronize(kCuda);
    });
    EXPECT_EQ(first_other(sum_of_x, 2 * round), -1);
  }
}

TEST(CudaThreads, MemoryThatAnotherThreadUsedLastIsNotTakenFromIt) {
  SKIP_WITHOUT_GPU();
  for (int round = 0; round < 5; ++round) {
    Tensor x = filled(round);
    Tensor result;
    on_another_thread([&] {
      hold_back_this_thread();
      result = x * 3.0;
    });
    x = Tensor();  // freed where it was made, read late by the other thread's stream
    const Tensor other = filled(-5);
    EXPECT_EQ(first_other(result, 3 * round), -1);
    EXPECT_EQ(first_other(other, -5), -1);
  }
}

TEST(CudaThreads, CopiesBetweenDevicesAreOrderedToo) {
  SKIP_WITHOUT_GPU();
  const Device second{DeviceType::cuda, 1};
  if (!is_available(second)) GTEST_SKIP() << "this machine has one GPU";
  for (int round = 0; round < 3; ++round) {
    hold_back_this_thread();
    const Tensor x = filled(round);
    Tensor there, back;
    on_another_thread([&] { there = x.to(second) + 1.0; });
    on_another_thread([&] { back = there.to(kCuda) + 1.0; });
    EXPECT_EQ(first_other(back, round + 2), -1);
    EXPECT_EQ(first_other(there, round + 1), -1);
  }
}

/// A hand-over of many tensors, through many threads, all with different values.
TEST(CudaThreads, AChainOfThreadsComputesWhatOneWould) {
  SKIP_WITHOUT_GPU();
  Tensor x = filled(0, 1 << 16);
  for (int i = 0; i < 100; ++i) {
    if (i % 10 == 0) hold_back_this_thread();
    on_another_thread([&] { x = x + 1.0; });
    x = x * 1.0;
  }
  EXPECT_EQ(first_other(x, 100), -1);
}

Executor executor_of(const nn::Child<EncoderLayer>& model, const Tensor& x) {
  Schedule sch = create_schedule(model, {{"x", x}});
  schedules::transformer_encoder(sch);
  return build(sch, {.verify = false});
}

nn::Child<EncoderLayer> encoder(std::uint64_t seed) {
  manual_seed(seed);
  auto model = nn::make<EncoderLayer>(64);
  model->to(kCuda);
  model->eval();
  return model;
}

/// Adds tensors eagerly on a thread of its own, as long as it lives, and looks at each sum.
class Adder {
 public:
  Adder() : thread_([this] { add(); }) {
    while (sums_ == 0) std::this_thread::yield();
  }
  ~Adder() {
    done_ = true;
    thread_.join();
    EXPECT_EQ(wrong_, 0);
  }

 private:
  void add() {
    const Tensor one = filled(1, 4096);
    while (!done_) {
      Tensor x = one;
      for (int i = 0; i < 20; ++i) x = x + one;
      wrong_ += first_other(x, 21) != -1;
      ++sums_;
    }
  }

  std::atomic<bool> done_{false};
  std::atomic<int> wrong_{0}, sums_{0};
  std::thread thread_;
};

std::string capture_setting() {
  const char* setting = std::getenv("TENON_CUDA_GRAPHS");
  return setting == nullptr ? "" : setting;
}

TEST(CudaThreads, ACaptureRecordsItsOwnThreadOnly) {
  SKIP_WITHOUT_GPU();
  const Adder beside;
  for (int round = 0; round < 20; ++round) {
    const auto model = encoder(static_cast<std::uint64_t>(round));
    Generator generator(1);
    const Tensor x = randn({2, 24, 64}, {}, &generator).to(kCuda);
    const Tensor expected = model(x);
    Executor run = executor_of(model, x);
    const Tensor first = run(x).cpu();
    EXPECT_LT(max_difference(first, expected), 1e-4);
    // An output that is gone leaves its memory to the next one, so that the record is launched
    // again.
    for (int i = 0; i < 4; ++i) EXPECT_EQ(max_difference(run(x), first), 0) << i;
    EXPECT_EQ(run.program(std::span(&x, 1)).num_captures() > 0, capture_setting() != "never");
  }
}

/// A convolution, attention by a library where there is one, and products: all that needs handles.
/// As the first test of a process, and under TENON_CUDA_GRAPHS=always, they are made while
/// recording.
TEST(CudaThreads, ARecordedRunMayComeFirst) {
  SKIP_WITHOUT_GPU();
  Generator generator(3);
  const Tensor filters = randn({16, 8, 3, 3}, {}, &generator).to(DType::bfloat16).to(kCuda);
  const auto model = function_model([&](const Tensor& x) {
    const Tensor image = conv2d(x, filters, {}, {1, 1}, {1, 1});  // (1, 16, 512, 64)
    return matmul(scaled_dot_product_attention(image, image, image), image.transpose(-2, -1));
  });
  const Tensor x = randn({1, 8, 512, 64}, {}, &generator).to(DType::bfloat16).to(kCuda);
  Executor run = build(create_schedule(model, {{"x", x}}), {.verify = false});
  const Tensor first = run(x).cpu();
  EXPECT_EQ(max_difference(run(x), first), 0);
  EXPECT_EQ(run.program(std::span(&x, 1)).capture_failure(), "");
  const double largest = amax(abs(first.to(DType::float32))).item();
  EXPECT_LT(max_difference(first, model(x)), 0.02 * largest);
}

/// Executors of one model and of several, each run by two threads, many shapes; bits as on one
/// thread.
TEST(CudaThreads, ExecutorsGiveTheBitsOfOneThread) {
  SKIP_WITHOUT_GPU();
  constexpr int kThreads = 4;
  constexpr int kShapes = 40;
  const auto model = encoder(1);
  std::vector<Tensor> inputs, expected;
  Generator generator(5);
  for (int i = 0; i < kShapes; ++i) {
    inputs.push_back(randn({1 + i % 4, 8 + i, 64}, {}, &generator).to(kCuda));
  }
  Executor reference = executor_of(model, inputs[0]);
  for (const Tensor& x : inputs) expected.push_back(reference(x).cpu());
  Executor shared = executor_of(model, inputs[0]);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const NoGradGuard no_grad;
      Executor own = reference;  // shares its Programs
      for (int i = 0; i < 3 * kShapes; ++i) {
        const auto k = static_cast<std::size_t>((i * 7 + t * 13) % kShapes);
        wrong += max_difference(shared(inputs[k]), expected[k]) != 0;
        wrong += max_difference(own(inputs[k]), expected[k]) != 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(shared.arena_bytes(), 0U);
}

/// Products that need workspaces, convolutions and attention by libraries, beside one another.
TEST(CudaThreads, LibrariesServeSeveralThreads) {
  SKIP_WITHOUT_GPU();
  Generator generator(9);
  const auto random = [&](Shape shape, DType dtype) {
    return randn(shape, {}, &generator).to(dtype).to(kCuda);
  };
  const DType half = DType::bfloat16;
  const Tensor a = random({64, 8192}, half);
  const Tensor b = random({8192, 64}, half);
  const Tensor image = random({2, 16, 28, 28}, DType::float32);
  const Tensor filters = random({32, 16, 3, 3}, DType::float32);
  const Tensor q = random({1, 4, 512, 64}, half);
  const auto compute = [&] {
    return std::vector<Tensor>{matmul(a, b), conv2d(image, filters, {}, {1, 1}, {1, 1}),
                               scaled_dot_product_attention(q, q, q)};
  };
  const std::vector<Tensor> expected = compute();
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kMaxStreams + 2; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        const std::vector<Tensor> got = compute();
        for (std::size_t k = 0; k < got.size(); ++k) {
          wrong += max_difference(got[k], expected[k]) != 0;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(CudaThreads, OutOfMemoryReachesTheThreadThatAsked) {
  SKIP_WITHOUT_GPU();
  std::atomic<bool> done{false};
  std::atomic<int> wrong{0}, rounds{0};
  std::vector<std::thread> others;
  for (int t = 0; t < 3; ++t) {
    others.emplace_back([&, t] {
      while (!done) {
        wrong += first_other(filled(t, 100000 + 1000 * t) + 1.0, t + 1) != -1;
        ++rounds;
      }
    });
  }
  while (rounds < 30) std::this_thread::yield();
  for (int i = 0; i < 5; ++i) {
    EXPECT_THROW(static_cast<void>(empty({std::int64_t{1} << 37}, {DType::float32, kCuda})),
                 OutOfMemory);
  }
  const int before = rounds;
  while (rounds < before + 30) std::this_thread::yield();
  done = true;
  for (std::thread& other : others) other.join();
  EXPECT_EQ(wrong, 0);
}

/// Memory is used up in pieces of a sixteenth of it, so that what the allocator keeps is given back
/// while other threads compute and record.
TEST(CudaThreads, MemoryMayRunOutBesideThreadsThatCompute) {
  SKIP_WITHOUT_GPU();
  const Adder adds;
  std::atomic<bool> done{false};
  std::atomic<int> wrong{0};
  std::thread records([&] {
    const Tensor x = filled(2, 5000);
    while (!done) {
      const auto model = function_model([](const Tensor& y) { return square(y) * 3.0; });
      Executor run = build(create_schedule(model, {{"x", x}}), {.verify = false});
      for (int i = 0; i < 3; ++i) wrong += first_other(run(x), 12) != -1;
    }
  });
  std::size_t free_bytes = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_bytes, &total), cudaSuccess);
  for (int round = 0; round < 3; ++round) {
    std::vector<Tensor> pieces;
    const auto floats = static_cast<std::int64_t>(total / 16 / sizeof(float));
    EXPECT_THROW(
        for (int i = 0; i < 20; ++i) pieces.push_back(empty({floats}, {DType::float32, kCuda})),
        OutOfMemory);
    EXPECT_GT(pieces.size(), 2U);
  }
  cuda::device_context(0).allocator().release_cached();
  done = true;
  records.join();
  EXPECT_EQ(wrong, 0);
}

/// A kernel that computes cumsum but cannot be recorded to be launched again, since it asks the
/// host.
void copy_to_the_host_and_run(const KernelArgs& args) {
  std::byte byte{};
  const bool is_recorded = args.random.forward_cell != nullptr;
  if (is_recorded)
    device_backend(DeviceType::cuda).copy(&byte, kCpu, args.inputs[0].data, kCuda, 1);
  for (const Kernel& kernel : get_op("cumsum").kernels(DeviceType::cuda)) {
    if (kernel.run != copy_to_the_host_and_run) return kernel.run(args);
  }
}

TEST(CudaThreads, WhatCannotBeRecordedIsLaunched) {
  SKIP_WITHOUT_GPU();
  const auto model = function_model([](const Tensor& x) { return cumsum(x * 2.0, 0); });
  const Tensor x = filled(1, 1000);
  const Tensor expected = model(x);
  static bool is_wanted = false;
  register_kernel("cumsum", DeviceType::cuda,
                  {.name = "test.asks_the_host",
                   .run = copy_to_the_host_and_run,
                   .supports = [](const KernelArgs&) { return is_wanted; },
                   .preferred = [](const KernelArgs&) { return is_wanted; }});
  is_wanted = true;
  const Adder beside;
  const Schedule sch = create_schedule(model, {{"x", x}});
  Executor run = build(sch, {.verify = false});
  for (int i = 0; i < 4; ++i) EXPECT_EQ(max_difference(run(x), expected), 0) << i;
  const std::string note = report(sch, {.inputs = {x}}).rows.at(0).note;
  is_wanted = false;
  Program& program = run.program(std::span(&x, 1));
  EXPECT_EQ(program.num_captures(), 0U);
  if (capture_setting() == "never") GTEST_SKIP() << "none is tried";
  EXPECT_NE(program.capture_failure().find("a copy between host and device"), std::string::npos)
      << program.capture_failure();
  EXPECT_NE(note.find("kernels are launched one by one: a copy"), std::string::npos) << note;
  EXPECT_NE(program.to_string().find("since recording a run failed"), std::string::npos);
  // Other Programs, and other threads, record as before.
  const auto other = function_model([](const Tensor& y) { return gelu(y) * 3.0; });
  Executor records = build(create_schedule(other, {{"x", x}}), {.verify = false});
  on_another_thread([&] {
    for (int i = 0; i < 3; ++i) EXPECT_EQ(max_difference(records(x), other(x)), 0);
  });
  EXPECT_EQ(records.program(std::span(&x, 1)).capture_failure(), "");
}

TEST(CudaThreads, AForkedChildIsRefusedWithTheReason) {
  SKIP_WITHOUT_GPU();
  EXPECT_EQ(first_other(filled(1, 100), 1), -1);
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pid_t child = fork();
  if (child == 0) {
    std::string text = "nothing was thrown";
    try {
      static_cast<void>(filled(1, 100));
    } catch (const DeviceLost& error) {
      text = error.what();
    }
    const auto written = write(ends[1], text.data(), text.size());
    _exit(written == static_cast<ssize_t>(text.size()) ? 0 : 1);
  }
  close(ends[1]);
  std::string text(1000, ' ');
  text.resize(static_cast<std::size_t>(std::max<ssize_t>(0, read(ends[0], text.data(), 1000))));
  close(ends[0]);
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_NE(text.find("forked after its parent had used CUDA"), std::string::npos) << text;
  EXPECT_EQ(first_other(filled(2, 100), 2), -1);
}

}  // namespace
}  // namespace tenon::test
