// The models whose scheduling bench_schedule times, each with what schedules it. Weights are drawn
// once and repeated, so that even a billion of them are there in seconds.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "schedule/schedule.h"

namespace tenon::bench {

struct ScheduledModelOptions {
  std::string model = "encoder";
  // 0: the model's own size.
  std::int64_t layers = 0;
  std::int64_t batch = 0;
  std::int64_t seq = 0;
  std::int64_t hidden = 0;
  std::int64_t heads = 0;
  std::int64_t mlp = 0;
  std::int64_t vocabulary = 0;
  Device device = kCpu;
  DType dtype = DType::float32;
};

struct ScheduledModel {
  std::function<Schedule()> trace;
  std::function<void(Schedule&)> apply;
  std::vector<TensorSpec> inputs;
};

/// encoder: layers of the tutorial's attention and an MLP.
/// bert: BERT-base, with token types and an additive mask. llama: a decoder of 1.4 billion parameters.
/// block: the tutorial's block alone. linears: a chain of 1,000 Linears. tied: a loss of logits by the
/// embedding's weight. positions: an encoder that takes 2,048 positions and no other number.
ScheduledModel make_scheduled_model(ScheduledModelOptions options);

}  // namespace tenon::bench
