#include "tensor/cpu/print.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <mutex>
#include <type_traits>
#include <vector>

#include "tensor/functional.h"
#include "tensor/ops/attributes.h"

namespace tenon {
namespace {

/// Where lines go; whole lines of several threads follow each other.
struct Sink {
  std::mutex mutex;
  std::ostream* stream = &std::cerr;
};

Sink& sink() {
  static Sink& instance = *new Sink;  // never destroyed: threads may outlive main
  return instance;
}

}  // namespace

std::ostream* set_print_stream(std::ostream* stream) {
  const std::lock_guard lock(sink().mutex);
  return std::exchange(sink().stream, stream != nullptr ? stream : &std::cerr);
}

namespace cpu {
namespace {

constexpr std::size_t kShown = 6;

/// `Number` holds every value of the dtype: double or int64.
template <class Number>
struct Summary {
  Number smallest = 0;  // of the finite elements, as the mean
  Number largest = 0;
  double sum = 0;
  std::int64_t finite = 0;
  std::int64_t nan = 0;
  std::int64_t inf = 0;
  std::vector<Number> first;

  void add(Number value) {
    if (first.size() < kShown) first.push_back(value);
    if constexpr (std::is_floating_point_v<Number>) {
      if (std::isnan(value)) return void(++nan);
      if (std::isinf(value)) return void(++inf);
    }
    smallest = finite == 0 ? value : std::min(smallest, value);
    largest = finite == 0 ? value : std::max(largest, value);
    sum += static_cast<double>(value);
    ++finite;
  }

  std::string to_string() const {
    std::string text;
    if (finite > 0) {
      text += fmt::format(" min {} max {} mean {:.6g}", shown(smallest), shown(largest),
                          sum / static_cast<double>(finite));
    }
    if (nan > 0) text += fmt::format(" {} NaN", nan);
    if (inf > 0) text += fmt::format(" {} Inf", inf);
    std::vector<std::string> values;
    for (const Number value : first) values.push_back(shown(value));
    const bool more = finite + nan + inf > static_cast<std::int64_t>(first.size());
    return text + fmt::format(" [{}{}]", fmt::join(values, ", "), more ? ", …" : "");
  }

 private:
  static std::string shown(Number value) {
    if constexpr (std::is_floating_point_v<Number>) return fmt::format("{:.6g}", value);
    return fmt::format("{}", value);
  }
};

/// Calls f(element) in row-major order.
template <class T, class F>
void for_each_element(const TensorView& view, F&& f) {
  const std::int64_t count = view.numel();
  Extents index = Extents::filled(view.rank(), 0);
  std::int64_t offset = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    f(view.as<T>()[offset]);
    for (int axis = view.rank() - 1; axis >= 0; --axis) {
      offset += view.strides[axis];
      if (++index[axis] < view.sizes[axis]) break;
      offset -= view.strides[axis] * index[axis];
      index[axis] = 0;
    }
  }
}

std::string summary_of(const TensorView& values) {
  return dispatch_all(values.dtype, [&]<class T>() {
    constexpr bool kFloating = std::is_floating_point_v<compute_type<T>>;
    Summary<std::conditional_t<kFloating, double, std::int64_t>> summary;
    for_each_element<T>(values, [&](T value) {
      summary.add(static_cast<decltype(summary.smallest)>(static_cast<compute_type<T>>(value)));
    });
    return summary.to_string();
  });
}

}  // namespace

void print_values(const KernelArgs& args, const TensorView& values) {
  const TensorView& input = args.inputs[0];
  const Shape shape(std::vector<Dim>(input.sizes.begin(), input.sizes.end()));
  const std::string& label = args.attributes<PrintAttrs>().label;
  std::string line =
      fmt::format("{}{}{}{}", label, label.empty() ? "" : ": ",
                  TensorSpec{input.dtype, shape, input.device}.to_string(), summary_of(values));
  std::replace_if(
      line.begin(), line.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  line += '\n';
  const std::lock_guard lock(sink().mutex);
  sink().stream->write(line.data(), static_cast<std::streamsize>(line.size())).flush();
}

}  // namespace cpu
}  // namespace tenon
