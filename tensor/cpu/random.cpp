// Random tensors: words of a chunk of elements, then their numbers, each in loops that the compiler
// vectorizes over groups of four elements, which share a Philox call.
#include "tensor/cpu/random.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tensor/calls/random_call.h"
#include "tensor/parallel.h"
#include "tensor/support/convert.h"

namespace tenon::cpu {
namespace {

using namespace random_values;

constexpr std::int64_t kGroups = 64;  // of a chunk
constexpr std::int64_t kChunk = 4 * kGroups;
constexpr std::int64_t kChunksOfTask = 64;

constexpr std::int64_t groups_of(std::int64_t elements) { return (elements + 3) / 4; }

/// The words of a chunk: word[j][g] is that of element 4g + j.
struct Words {
  std::uint32_t word[4][kGroups];

  void draw(DropoutKey key, std::int64_t first_group, std::int64_t groups, bool second) {
    for (std::int64_t g = 0; g < groups; ++g) {
      const PhiloxBlock block = tensor_random4(key, first_group + g, second);
      for (int j = 0; j < 4; ++j) word[j][g] = block.word[j];
    }
  }
};

/// Calls task(first, n) for chunks of elements [first, first + n); `first` is a multiple of kChunk.
template <class F>
void for_chunks(std::int64_t numel, const F& task) {
  parallel_ranges(numel, kChunksOfTask * kChunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t first = begin; first < end; first += kChunk) {
      task(first, std::min(kChunk, end - first));
    }
  });
}

/// Where the words of elements 4g + j lie in the unit interval, for all g.
struct UnitRow {
  double at[kGroups];
};

/// Rows 0 to 3 of a chunk; `above_zero`: in (0, 1], not in [0, 1), where that makes a difference.
void unit_rows(const DropoutKey& key, std::int64_t first, std::int64_t groups, bool wide,
               bool above_zero, UnitRow (&rows)[4]) {
  Words words;
  words.draw(key, first / 4, groups, false);
  if (!wide) {
    for (int j = 0; j < 4; ++j) {
      for (std::int64_t g = 0; g < groups; ++g) rows[j].at[g] = unit_interval(words.word[j][g]);
    }
    return;
  }
  Words second;
  second.draw(key, first / 4, groups, true);
  for (int j = 0; j < 4; ++j) {
    const double shift = above_zero && j % 2 == 0 ? 0x1p-53 : 0;
    for (std::int64_t g = 0; g < groups; ++g) {
      rows[j].at[g] = unit_interval(words.word[j][g], second.word[j][g]) + shift;
    }
  }
}

void interleave(const UnitRow (&rows)[4], std::int64_t groups, double* values) {
  for (std::int64_t g = 0; g < groups; ++g) {
    for (int j = 0; j < 4; ++j) values[4 * g + j] = rows[j].at[g];
  }
}

/// Normal values from pairs of rows: u and t of normal_pair.
void normal_values(const DropoutKey& key, std::int64_t first, std::int64_t groups, bool wide,
                   double* values) {
  UnitRow rows[4];
  unit_rows(key, first, groups, wide, true, rows);
  for (int j = 0; j < 4; j += 2) {
    for (std::int64_t g = 0; g < groups; ++g) {
      const Pair pair = normal_pair(rows[j].at[g], rows[j + 1].at[g]);
      rows[j].at[g] = pair.first;
      rows[j + 1].at[g] = pair.second;
    }
  }
  interleave(rows, groups, values);
}

void uniform_values(const DropoutKey& key, std::int64_t first, std::int64_t groups, bool wide,
                    UniformRange range, double* values) {
  UnitRow rows[4];
  unit_rows(key, first, groups, wide, false, rows);
  for (UnitRow& row : rows) {
    for (std::int64_t g = 0; g < groups; ++g) row.at[g] = uniform_value(range, row.at[g]);
  }
  interleave(rows, groups, values);
}

/// Values within T's range, rounded down.
template <class T>
void round_down(const double* values, std::int64_t n, T* target) {
  if constexpr (std::is_same_v<T, double>) {
    std::copy(values, values + n, target);
  } else if constexpr (std::is_integral_v<T>) {
    std::transform(values, values + n, target,
                   [](double value) { return static_cast<T>(std::floor(value)); });
  } else if constexpr (std::is_same_v<T, float>) {
    for (std::int64_t i = 0; i < n; ++i) target[i] = float_below(values[i]);
  } else {
    float floats[kChunk];
    float nearest[kChunk];
    for (std::int64_t i = 0; i < n; ++i) floats[i] = float_below(values[i]);
    narrow(floats, n, target);
    widen(target, n, nearest);
    for (std::int64_t i = 0; i < n; ++i) target[i] = lowered(target[i], nearest[i] > floats[i]);
  }
}

/// Calls make(element's two words) for every element and stores what it returns.
template <class T, class F>
void fill_wide(T* target, std::int64_t numel, const DropoutKey& key, const F& make) {
  for_chunks(numel, [&](std::int64_t first, std::int64_t n) {
    Words words;
    Words second;
    words.draw(key, first / 4, groups_of(n), false);
    second.draw(key, first / 4, groups_of(n), true);
    for (std::int64_t i = 0; i < n; ++i) {
      target[first + i] = make(words.word[i % 4][i / 4], second.word[i % 4][i / 4]);
    }
  });
}

}  // namespace

void randn(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  const DropoutKey key = ops::random_tensor_key(args, args.attributes<RandomTensorAttrs>().site);
  dispatch_float(output.dtype, [&]<typename T>() {
    for_chunks(output.numel(), [&](std::int64_t first, std::int64_t n) {
      double values[kChunk];
      normal_values(key, first, groups_of(n), sizeof(T) == 8, values);
      std::transform(values, values + n, output.as<T>() + first, convert<T, double>);
    });
  });
}

void uniform(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  const auto& attrs = args.attributes<UniformAttrs>();
  const DropoutKey key = ops::random_tensor_key(args, attrs.site);
  const UniformRange range = ops::uniform_range(attrs.low, attrs.high, output.dtype);
  dispatch_all(output.dtype, [&]<typename T>() {
    for_chunks(output.numel(), [&](std::int64_t first, std::int64_t n) {
      double values[kChunk];
      uniform_values(key, first, groups_of(n), sizeof(T) == 8, range, values);
      round_down(values, n, output.as<T>() + first);
    });
  });
}

void randint(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  const auto& attrs = args.attributes<RandintAttrs>();
  const DropoutKey key = ops::random_tensor_key(args, attrs.site);
  const std::int64_t low = attrs.low.value();
  const std::uint64_t range =
      static_cast<std::uint64_t>(attrs.high.value()) - static_cast<std::uint64_t>(low);
  dispatch_all(output.dtype, [&]<typename T>() {
    fill_wide(output.as<T>(), output.numel(), key, [&](std::uint32_t first, std::uint32_t second) {
      return convert<T>(integer_value(low, range, first, second));
    });
  });
}

void randperm(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  const std::int64_t n = output.numel();
  const DropoutKey key = ops::random_tensor_key(args, args.attributes<RandomTensorAttrs>().site);
  std::vector<std::uint64_t> bits(static_cast<std::size_t>(n));
  fill_wide(bits.data(), n, key, [](std::uint32_t first, std::uint32_t second) {
    return std::uint64_t{first} << 32 | second;
  });
  std::vector<std::pair<std::uint64_t, std::int64_t>> order(bits.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    order[i] = {bits[i], static_cast<std::int64_t>(i)};
  }
  std::sort(order.begin(), order.end());
  dispatch_all(output.dtype, [&]<typename T>() {
    std::transform(order.begin(), order.end(), output.as<T>(),
                   [](const auto& entry) { return convert<T>(entry.second); });
  });
}

}  // namespace tenon::cpu
