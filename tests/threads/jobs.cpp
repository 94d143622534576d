#include "tests/threads/jobs.h"

#include <cstring>
#include <stdexcept>
#include <utility>

#include "autograd/autograd.h"
#include "nn/nn.h"
#include "schedule/schedule.h"
#include "schedule/schedules.h"
#include "schedule/training.h"
#include "tensor/functional.h"
#include "tensor/random.h"
#include "tests/support/models.h"

namespace tenon::test {
namespace {

/// Numbers that follow from `seed`, whatever else is drawn.
Tensor drawn(std::uint64_t seed, const Shape& shape, Device device) {
  Generator generator(seed);
  return randn(shape, {.device = device}, &generator);
}

/// f() with a default generator of that seed.
template <class F>
auto seeded(std::uint64_t seed, const F& f) {
  Generator generator(seed);
  const GeneratorScope scope(generator);
  return f();
}

Tensor batch(std::uint64_t seed, std::int64_t rows, std::int64_t length, Device device) {
  return drawn(seed, {rows, length, 16}, device);
}

nn::Child<EncoderLayer> encoder(std::uint64_t seed, Device device) {
  return seeded(seed, [&] {
    auto model = nn::make<EncoderLayer>(16, 2);
    model->to(device);
    return model;
  });
}

/// Elementwise calls, reductions and copies in one dtype.
std::string arithmetic(const Tensor& input, DType dtype) {
  const Tensor x = (input * 3.0).to(dtype);  // (6, 33)
  const Tensor y = maximum(x * x - x, x.transpose(0, 1).contiguous().transpose(0, 1));
  const Tensor z = where(lt(y, x), x + y, y) + sum(x, {1}, true).to(dtype);
  std::string bytes = bytes_on_host(cat({z, x.narrow(1, 3, 7)}, 1));
  bytes += bytes_on_host(argmax(z, 1)) + bytes_on_host(cumsum(z, 0));
  if (!is_floating(dtype)) return bytes;
  const Tensor p = softmax(matmul(x, y.transpose(0, 1)), -1);
  return bytes + bytes_on_host(gelu(layer_norm(matmul(p, x), {33})) + exp(neg(square(x))));
}

Job arithmetic_job(Device device, std::uint64_t seed) {
  static constexpr DType kDTypes[] = {DType::float32,  DType::float64, DType::float16,
                                      DType::bfloat16, DType::int64,   DType::int32};
  const Tensor input = drawn(seed, {6, 33}, device);
  return {"eager ops", 6,
          [=](int i) { return arithmetic(input, kDTypes[static_cast<std::size_t>(i)]); }};
}

/// Products that are cut into tasks.
Job product_job(Device device, std::uint64_t seed) {
  const Tensor a = drawn(seed, {130, 200}, device);
  const Tensor b = drawn(seed + 1, {200, 170}, device);
  return {"large product", 2, [=](int i) {
            return bytes_on_host(i == 0 ? matmul(a, b) : sum(softmax(matmul(a, b), -1) * 2.0, {0}));
          }};
}

/// Forward and gradients of a model, with dropout and random tensors.
Job gradient_job(const char* name, const nn::Child<EncoderLayer>& model, Device device,
                 std::uint64_t seed) {
  return {name, 8, [=](int i) {
            const auto variant = static_cast<std::uint64_t>(i);
            return seeded(seed + variant, [&] {
              const Tensor x = batch(seed + variant, 1 + i % 3, 2 + i, device);
              const Tensor y = model(x) * randn({16}, {.device = device});
              std::vector<Tensor> wanted;
              for (const auto& [path, parameter] : model->named_parameters())
                wanted.push_back(parameter);
              const Tensor loss = mean(y * y);
              std::string bytes = bytes_on_host(loss);
              for (const Tensor& gradient : grad(std::span(&loss, 1), wanted))
                bytes += bytes_on_host(gradient);
              return bytes;
            });
          }};
}

Executor scheduled(const nn::Child<EncoderLayer>& model, Device device, bool rewrites,
                   bool verify) {
  Schedule sch = create_schedule(model, {{"x", batch(1, 2, 5, device)}});
  if (rewrites) schedules::transformer_encoder(sch);
  return build(sch, {.verify = verify});
}

Job executor_job(const char* name, Executor executor, int variants, Device device,
                 std::uint64_t seed) {
  auto shared = std::make_shared<Executor>(std::move(executor));
  return {name, variants, [=](int i) {
            const auto variant = static_cast<std::uint64_t>(i);
            const Tensor x = batch(seed + variant, 1 + i % 10, 1 + i / 10, device);
            return seeded(seed + variant, [&] {
              return bytes_on_host(shared->run(std::span(&x, 1), i % 4 == 3).at(0));
            });
          }};
}

/// Steps of a training run that starts anew at variant 0.
Job training_job(Device device, std::uint64_t seed) {
  struct Run {
    nn::Child<EncoderLayer> model;
    std::shared_ptr<nn::AdamW> optimizer;
    std::optional<TrainingStep> step;
    std::vector<std::pair<Tensor, Tensor>> start;  // each state and what it was
    Generator generator;
  };
  auto run = std::make_shared<Run>(Run{encoder(seed, device), {}, {}, {}, Generator(seed)});
  run->optimizer = std::make_shared<nn::AdamW>(run->model->named_parameters());
  Schedule sch = create_schedule(run->model, {{"x", batch(1, 2, 5, device)}});
  schedules::transformer_encoder(sch);
  run->step = build_training(
      sch, {.loss = [](auto outputs, auto targets) { return mse_loss(outputs[0], targets[0]); },
            .targets = {{"y", batch(2, 2, 5, device)}},
            .optimizer = run->optimizer,
            .verify = false});
  const auto keep = [&](const Tensor& state) { run->start.emplace_back(state, state.clone()); };
  {
    const NoGradGuard no_grad;
    for (const auto& [name, parameter] : run->model->named_parameters()) keep(parameter);
    for (const auto& [name, state] : run->optimizer->state_tensors()) keep(state);
  }
  return {"training step", 12,
          [=](int i) {
            const GeneratorScope scope(run->generator);
            if (i == 0) {
              const NoGradGuard no_grad;
              for (auto& [state, value] : run->start) Tensor(state).copy_(value);
              manual_seed(seed);
            }
            const auto variant = static_cast<std::uint64_t>(i);
            const std::int64_t length = 3 + i % 3;
            const Tensor x = batch(seed + variant, 2, length, device);
            const Tensor y = batch(seed - variant, 2, length, device);
            return bytes_on_host(run->step->run({x, y}).loss) +
                   bytes_on_host(run->model->parameter("up.weight"));
          },
          true};
}

/// A model made, scheduled and built anew, with verification in the first variant.
Job build_job(Device device, std::uint64_t seed) {
  return {"schedule and build", 4, [=](int i) {
            const auto variant = static_cast<std::uint64_t>(i);
            const auto model = encoder(seed + variant, device);
            Executor run = scheduled(model, device, i != 3, i == 0);
            return bytes_on_host(run(batch(seed, 2, 3 + i, device))) + to_text(run.graph());
          }};
}

/// Pushes a tensor for another worker, which may be this one, and computes with the oldest there
/// is.
Job parcel_job(Device device, std::uint64_t seed, const std::shared_ptr<ParcelQueue>& queue) {
  const auto made = [=](int i) {
    return drawn(seed + static_cast<std::uint64_t>(i), {3 + i, 40}, device) * 2.0;
  };
  const auto used = [](const Tensor& x) { return bytes_on_host(softmax(x + mean(x), -1)); };
  return {"parcels", 6, [=](int i) {
            queue->push({i, made(i)});
            if (const auto parcel = queue->pop()) {
              if (used(parcel->tensor) != used(made(parcel->variant)))
                throw std::runtime_error("a parcel's tensor arrived with other values");
            }
            return used(made(i));
          }};
}

/// Allocations of odd sizes; the sums of whole numbers are exact.
Job allocation_job(Device device, std::uint64_t seed) {
  return {"odd sizes", 40, [=](int i) {
            const std::int64_t n = 1 + static_cast<std::int64_t>(seed + 1) * (i * i * 37) % 150001;
            const Tensor x = full({n}, i, {.dtype = DType::int64, .device = device});
            const Tensor y = x + arange(n, {.dtype = DType::int64, .device = device});
            if (sum(y).item<std::int64_t>() != n * i + n * (n - 1) / 2)
              throw std::runtime_error("a sum of " + std::to_string(n) + " whole numbers is wrong");
            return bytes_on_host(y);
          }};
}

Job copy_job(Device device, std::uint64_t seed) {
  const Tensor host = drawn(seed, {70, 31}, kCpu);
  return {"copies between devices", 3, [=](int i) {
            const Tensor there = host.narrow(0, i, 60).transpose(0, 1).to(device);
            return bytes_on_host(there) + bytes_on_host(there.to(DType::float16)) +
                   bytes_on_host((there * 2.0).to(kCpu).to(device).clone());
          }};
}

}  // namespace

std::string bytes_on_host(const Tensor& tensor) {
  const Tensor host = tensor.detach().to(kCpu).contiguous();
  const TensorView view = host.view_of_data();
  const auto count = static_cast<std::size_t>(view.numel()) * size_of(view.dtype);
  std::string bytes(count, '\0');
  if (count > 0) std::memcpy(bytes.data(), view.data, count);
  return bytes;
}

void compute_references(Job& job) {
  job.expected.clear();
  for (int i = 0; i < job.variants; ++i) job.expected.push_back(job.run(i));
}

constexpr std::size_t kWaiting = 12;

void ParcelQueue::push(Parcel parcel) {
  const std::lock_guard lock(mutex_);
  parcels_.push_back(std::move(parcel));
}

std::optional<Parcel> ParcelQueue::pop() {
  const std::lock_guard lock(mutex_);
  if (parcels_.size() <= kWaiting) return std::nullopt;
  Parcel parcel = std::move(parcels_.front());
  parcels_.pop_front();
  return parcel;
}

std::vector<Job> shared_jobs(Device device, std::uint64_t seed) {
  const auto model = encoder(seed, device);
  return {executor_job("shared Executor, 200 shapes", scheduled(model, device, true, false), 200,
                       device, seed),
          gradient_job("shared model's gradients", encoder(seed + 1, device), device, seed)};
}

std::vector<Job> own_jobs(Device device, std::uint64_t seed, int worker,
                          const std::shared_ptr<ParcelQueue>& queue) {
  const std::uint64_t own = seed * 1000003 + static_cast<std::uint64_t>(worker + 1) * 4099;
  return {arithmetic_job(device, own),
          product_job(device, own),
          gradient_job("own model's gradients", encoder(own, device), device, own),
          executor_job("own Executor", scheduled(encoder(own + 1, device), device, true, true), 40,
                       device, own),
          training_job(device, own),
          build_job(device, own),
          parcel_job(device, seed, queue),
          allocation_job(device, own % 977),
          copy_job(device, own)};
}

}  // namespace tenon::test
