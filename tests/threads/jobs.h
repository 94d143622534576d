// Pieces of work that threads do at once, whose results are known from one thread alone.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace tenon::test {

/// A tensor's elements as bytes, from any device and layout.
std::string bytes_on_host(const Tensor& tensor);

/// Work in `variants` kinds, each with one right result wherever and whenever it runs.
struct Job {
  std::string name;
  int variants = 1;
  /// The bytes of variant i's result. Ordered: to be called with 0, 1, … and 0 again, by one
  /// thread.
  std::function<std::string(int variant)> run;
  bool ordered = false;
  /// By variant; filled by compute_references.
  std::vector<std::string> expected = {};
};

/// Runs every variant once, in order, and keeps what comes out as what is right.
void compute_references(Job& job);

/// A variant's index, and a tensor that only this variant's input gives.
struct Parcel {
  int variant = 0;
  Tensor tensor;
};

/// Hands tensors from thread to thread; some always wait in it, so that few come back to their
/// maker.
class ParcelQueue {
 public:
  void push(Parcel parcel);
  /// The oldest; nothing when few wait.
  std::optional<Parcel> pop();

 private:
  std::mutex mutex_;
  std::deque<Parcel> parcels_;
};

/// What all workers share: an Executor called with 200 shapes and a model that is called eagerly.
std::vector<Job> shared_jobs(Device device, std::uint64_t seed);
/// What one worker has for itself, of models of its own; parcels go through `queue`.
std::vector<Job> own_jobs(Device device, std::uint64_t seed, int worker,
                          const std::shared_ptr<ParcelQueue>& queue);

}  // namespace tenon::test
