#include "schedule/weight_map.h"

#include "tensor/support/check.h"

namespace tenon {

WeightSource::WeightSource(std::string name)
    : text_(name), make_([name](const Lookup& lookup) { return lookup(name); }) {}

WeightSource cat(const std::vector<WeightSource>& sources, std::int64_t axis) {
  TENON_CHECK(!sources.empty(), ScheduleError, "weights: cat() of no sources");
  std::string text;
  for (const WeightSource& source : sources) {
    TENON_CHECK(!source.is_fresh(), ScheduleError, "weights: fresh() stands for a whole parameter");
    text += (text.empty() ? "" : ", ") + source.to_string();
  }
  if (axis != 0) text += fmt::format(", axis={}", axis);
  return {fmt::format("cat({})", text), [sources, axis](const WeightSource::Lookup& lookup) {
            std::vector<Tensor> tensors;
            for (const WeightSource& source : sources) tensors.push_back(source.evaluate(lookup));
            return cat(tensors, axis);
          }};
}

namespace {

/// A source made of one other.
template <class F>
std::function<Tensor(const WeightSource::Lookup&)> mapped(const WeightSource& source, F map) {
  TENON_CHECK(!source.is_fresh(), ScheduleError, "weights: fresh() stands for a whole parameter");
  return [source, map](const WeightSource::Lookup& lookup) { return map(source.evaluate(lookup)); };
}

}  // namespace

WeightSource narrow(const WeightSource& source, std::int64_t axis, std::int64_t start,
                    std::int64_t length) {
  return {fmt::format("narrow({}, {}, {}, {})", source.to_string(), axis, start, length),
          mapped(source, [=](const Tensor& x) { return narrow(x, axis, start, length); })};
}

WeightSource split(const WeightSource& source, std::int64_t pieces, std::int64_t index,
                   std::int64_t axis) {
  TENON_CHECK(pieces >= 1 && index >= 0 && index < pieces, ScheduleError,
              "weights: split() asks for piece {} of {}", index, pieces);
  return {fmt::format("split({}, {}, {}, axis={})", source.to_string(), pieces, index, axis),
          mapped(source, [=, text = source.to_string()](const Tensor& x) {
            const std::int64_t size = detail::hint_of(x.size(static_cast<int>(axis)));
            TENON_CHECK(size % pieces == 0, ScheduleError,
                        "weights: axis {} of {}, {}, does not split into {} equal pieces", axis,
                        text, x.spec().to_string(), pieces);
            return narrow(x, axis, index * (size / pieces), size / pieces);
          })};
}

WeightSource transpose(const WeightSource& source, std::int64_t axis0, std::int64_t axis1) {
  return {fmt::format("transpose({}, {}, {})", source.to_string(), axis0, axis1),
          mapped(source, [=](const Tensor& x) { return transpose(x, axis0, axis1); })};
}

WeightSource reshape(const WeightSource& source, const std::vector<std::int64_t>& sizes) {
  return {fmt::format("reshape({}, ({}))", source.to_string(), fmt::join(sizes, ", ")),
          mapped(source, [sizes](const Tensor& x) {
            return reshape(x, Shape(std::vector<Dim>(sizes.begin(), sizes.end())));
          })};
}

WeightSource fresh() { return {"fresh()", nullptr}; }

}  // namespace tenon
