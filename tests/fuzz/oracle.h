// The oracle of the fuzzer: the plain model run eagerly, with autograd, against the Programs that the
// schedule builds. It shares nothing with schedule verification.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "schedule/schedule.h"
#include "tests/fuzz/random_model.h"
#include "tests/fuzz/random_source.h"

namespace tenon::fuzz {

/// What one model computed: "eval output 0", "output 1", "gradient of stem.weight", "gradient of
/// input 0", "buffer …". A gradient that is undefined is absent.
using Results = std::vector<std::pair<std::string, Tensor>>;

/// Eagerly: eval, then one training call and backward from every output.
Results run_plain(const nn::Child<RandomModel>& model, const std::vector<Tensor>& inputs,
                  std::uint64_t seed);
/// The same by the schedule's Programs; changes its model's buffers as a training call does.
Results run_scheduled(const Schedule& schedule, const std::vector<Tensor>& inputs,
                      std::uint64_t seed);

/// "" when all agree to `tolerance`, relative to each result's largest value; else the first result
/// that does not, with its figures.
/// With `nudged`, the plain model's results for nudged numbers, each result is allowed a multiple of
/// how far it moved: what the model itself does not determine better.
std::string first_difference(const Results& plain, const Results& scheduled, double tolerance,
                             const Results& nudged = {});
/// Every number moved by a few roundings, zeros not at all.
Tensor nudged(const Tensor& tensor);
/// The largest error to `reference`, each relative to its result's largest value.
double largest_error(const Results& results, const Results& reference);

}  // namespace tenon::fuzz
