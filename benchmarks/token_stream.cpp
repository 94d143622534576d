#include "benchmarks/token_stream.h"

#include <algorithm>
#include <fstream>
#include <iterator>

#include "tensor/error.h"
#include "tensor/random.h"

namespace tenon::bench {

TokenStream TokenStream::random(std::int64_t count, std::int64_t vocabulary, std::uint64_t seed) {
  Generator generator(seed);
  const Tensor numbers =
      uniform({count}, 0, static_cast<double>(vocabulary), {DType::float64, kCpu}, &generator);
  const double* first = numbers.data<double>();
  return TokenStream(std::vector<std::int64_t>(first, first + count));
}

TokenStream TokenStream::read(const std::string& path, std::int64_t vocabulary) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw ValueError("cannot read " + path);
  const std::vector<unsigned char> bytes{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::int64_t> tokens;
  if (path.ends_with(".bin")) {
    for (std::size_t i = 0; i + 1 < bytes.size(); i += 2) {
      tokens.push_back(bytes[i] | bytes[i + 1] << 8);
    }
  } else {
    tokens.assign(bytes.begin(), bytes.end());
  }
  const auto largest = std::max_element(tokens.begin(), tokens.end());
  if (largest != tokens.end() && *largest >= vocabulary) {
    throw ValueError(path + " holds token " + std::to_string(*largest) +
                     "; needed numbers below the vocabulary of " + std::to_string(vocabulary));
  }
  return TokenStream(std::move(tokens));
}

TokenBatch TokenStream::batch(std::int64_t step, std::int64_t batch, std::int64_t seq) const {
  const auto starts = static_cast<std::int64_t>(tokens_.size()) - seq;
  if (starts < 1) {
    throw ValueError("a stream of " + std::to_string(tokens_.size()) +
                     " tokens has no sequence of " + std::to_string(seq) + " and what follows");
  }
  std::vector<std::int64_t> inputs;
  std::vector<std::int64_t> targets;
  for (std::int64_t row = 0; row < batch; ++row) {
    const auto first = tokens_.begin() + (step * batch + row) * seq % starts;
    inputs.insert(inputs.end(), first, first + seq);
    targets.insert(targets.end(), first + 1, first + seq + 1);
  }
  return {from_vector(inputs, {batch, seq}), from_vector(targets, {batch, seq})};
}

}  // namespace tenon::bench
