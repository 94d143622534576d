#include "examples/char_text.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <set>

#include "tensor/error.h"
#include "tensor/philox.h"

namespace gpt {
namespace {

using tenon::ValueError;

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file.good() && !file.eof()) throw ValueError("cannot read the text " + path);
  if (text.empty()) throw ValueError("the text " + path + " is empty");
  return text;
}

std::uint64_t fnv1a(const std::string& text) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  return hash;
}

/// Windows of `seq` tokens from each start, and the same one token later.
Batch windows(const std::vector<std::int64_t>& tokens, const std::vector<std::int64_t>& starts,
              std::int64_t seq) {
  std::vector<std::int64_t> inputs, targets;
  for (const std::int64_t start : starts) {
    const auto first = tokens.begin() + start;
    inputs.insert(inputs.end(), first, first + seq);
    targets.insert(targets.end(), first + 1, first + seq + 1);
  }
  const tenon::Shape shape = {static_cast<std::int64_t>(starts.size()), seq};
  return {from_vector(inputs, shape), from_vector(targets, shape)};
}

}  // namespace

CharText::CharText(const std::string& path, std::int64_t seq) : seq_(seq) {
  const std::string text = read_text(path);
  const auto held_out = static_cast<std::int64_t>(text.size() / 10);
  if (held_out < seq + 1) {
    throw ValueError("the text " + path + " has " + std::to_string(text.size()) +
                     " bytes, too few: sequences of " + std::to_string(seq) + " need at least " +
                     std::to_string(10 * (seq + 1)));
  }
  const std::set<char> bytes(text.begin(), text.end());
  vocabulary_.assign(bytes.begin(), bytes.end());
  std::sort(vocabulary_.begin(), vocabulary_.end(), [](char a, char b) {
    return static_cast<unsigned char>(a) < static_cast<unsigned char>(b);
  });
  hash_ = fnv1a(text);
  train_ = encode(text);
  validation_.assign(train_.end() - held_out, train_.end());
  train_.resize(train_.size() - static_cast<std::size_t>(held_out));
}

std::vector<std::int64_t> CharText::encode(const std::string& text) const {
  std::vector<std::int64_t> numbers(256, -1);
  for (std::size_t i = 0; i < vocabulary_.size(); ++i) {
    numbers[static_cast<unsigned char>(vocabulary_[i])] = static_cast<std::int64_t>(i);
  }
  std::vector<std::int64_t> tokens;
  tokens.reserve(text.size());
  for (const char c : text) {
    const std::int64_t token = numbers[static_cast<unsigned char>(c)];
    if (token >= 0) tokens.push_back(token);
  }
  return tokens;
}

Batch CharText::training_batch(std::uint64_t seed, std::int64_t step, std::int64_t batch) const {
  const std::uint64_t places = train_.size() - static_cast<std::uint64_t>(seq_);
  const auto at = static_cast<std::uint64_t>(step);
  std::vector<std::int64_t> starts;
  for (std::int64_t row = 0; row < batch; ++row) {
    // A key of its own ("text"): dropout's masks are drawn from the same seed.
    const tenon::PhiloxBlock random = tenon::philox4x32_10(
        {{static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(at >> 32),
          static_cast<std::uint32_t>(row), 0}},
        static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32) ^ 0x74657874U);
    starts.push_back(static_cast<std::int64_t>(random.word[0] * places >> 32));
  }
  return windows(train_, starts, seq_);
}

std::int64_t CharText::validation_windows() const {
  return (static_cast<std::int64_t>(validation_.size()) - 1) / seq_;
}

Batch CharText::validation_batch(std::int64_t first, std::int64_t count) const {
  std::vector<std::int64_t> starts;
  for (std::int64_t i = 0; i < count; ++i) starts.push_back((first + i) * seq_);
  return windows(validation_, starts, seq_);
}

double CharText::bigram_validation_loss() const {
  const std::size_t n = vocabulary_.size();
  std::vector<double> pairs(n * n, 1), firsts(n, static_cast<double>(n));
  const auto index = [&](const std::vector<std::int64_t>& tokens, std::size_t i) {
    return static_cast<std::size_t>(tokens[i]) * n + static_cast<std::size_t>(tokens[i + 1]);
  };
  for (std::size_t i = 0; i + 1 < train_.size(); ++i) {
    pairs[index(train_, i)] += 1;
    firsts[static_cast<std::size_t>(train_[i])] += 1;
  }
  double sum = 0;
  for (std::size_t i = 0; i + 1 < validation_.size(); ++i) {
    sum -= std::log(pairs[index(validation_, i)] / firsts[index(validation_, i) / n]);
  }
  return sum / static_cast<double>(validation_.size() - 1);
}

}  // namespace gpt
