// Reading cases, building their inputs, comparing the results; see the header.
#include "tests/conformance/conformance.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "autograd/autograd.h"
#include "tensor/functional.h"
#include "tests/conformance/calls.h"

namespace tenon::conformance {
namespace {

using nlohmann::json;
using Sizes = std::vector<std::int64_t>;

Shape shape_of(const Sizes& sizes) { return Shape(std::vector<Dim>(sizes.begin(), sizes.end())); }

/// A contiguous tensor on the CPU; integers are read as such, so that 64 bits keep their digits.
Tensor host_tensor(const json& data, DType dtype, const Sizes& sizes) {
  if (is_floating(dtype)) {
    std::vector<double> values;
    for (const json& value : data) values.push_back(number(value));
    return tensor(values, shape_of(sizes), {dtype, kCpu});
  }
  std::vector<std::int64_t> values;
  for (const json& value : data) {
    values.push_back(value.is_boolean() ? value.get<bool>() : value.get<std::int64_t>());
  }
  return cast(from_vector(values, shape_of(sizes)), dtype);
}

/// The tensor of a case, with the memory order it asks for; undefined for null.
Tensor build(const json& spec, Device device) {
  if (spec.is_null()) return {};
  const auto sizes = spec.at("shape").get<Sizes>();
  const Tensor host =
      host_tensor(spec.at("data"), parse_dtype(spec.at("dtype").get<std::string>()), sizes);
  const auto layout = spec.value("layout", std::string());
  if (layout.empty()) return host.to(device);
  if (layout != "reversed_axes") throw Unsupported("layout '" + layout + "' is unknown");
  Sizes reversed(sizes.size());
  std::iota(reversed.rbegin(), reversed.rend(), 0);
  return host.permute(reversed).contiguous().to(device).permute(reversed);
}

bool close(double got, double expected, double rtol, double atol) {
  if (std::isnan(expected)) return std::isnan(got);
  if (std::isinf(expected)) return got == expected;
  return std::fabs(got - expected) <= atol + rtol * std::fabs(expected);
}

/// What is wrong with an output or a gradient; empty when nothing is.
std::string difference(const Tensor& got, const json& spec, double rtol, double atol) {
  const DType dtype = parse_dtype(spec.at("dtype").get<std::string>());
  const Sizes sizes = spec.at("shape").get<Sizes>();
  if (!got) return "undefined";
  if (got.dtype() != dtype || got.shape() != shape_of(sizes)) {
    return fmt::format("got {}; expected {}{}", got.spec().to_string(), name(dtype),
                       shape_of(sizes).to_string());
  }
  if (!is_floating(dtype)) {
    const auto values = cast(got.cpu(), DType::int64).to_vector<std::int64_t>();
    const auto expected =
        cast(host_tensor(spec.at("data"), dtype, sizes), DType::int64).to_vector<std::int64_t>();
    const auto [at, other] = std::mismatch(values.begin(), values.end(), expected.begin());
    if (at == values.end()) return {};
    return fmt::format("element {}: got {}; expected {}", at - values.begin(), *at, *other);
  }
  const std::vector<double> values = got.to_doubles();
  const json& data = spec.at("data");
  if (data.size() != values.size()) return "the case's data does not have its shape's elements";
  std::size_t wrong = 0;
  std::string first;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double expected = number(data[i]);
    if (close(values[i], expected, rtol, atol)) continue;
    if (wrong++ == 0)
      first = fmt::format("element {}: got {}; expected {}", i, values[i], expected);
  }
  return wrong == 0 ? std::string()
                    : fmt::format("{} of {} elements differ, {}", wrong, values.size(), first);
}

/// What is wrong with the first tensor that is wrong; empty when none is. A null is not compared.
std::string first_difference(const char* kind, const std::vector<Tensor>& got, const json& expected,
                             const json& test_case) {
  if (got.size() != expected.size()) {
    return fmt::format("{} {}s; expected {}", got.size(), kind, expected.size());
  }
  const auto rtol = test_case.at("rtol").get<double>();
  const auto atol = test_case.at("atol").get<double>();
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (expected[i].is_null()) continue;
    const std::string what = difference(got[i], expected[i], rtol, atol);
    if (!what.empty()) return fmt::format("{} {}: {}", kind, i, what);
  }
  return {};
}

/// Asks for the gradients that the case has.
void require_gradients(const std::vector<Tensor>& inputs, const json& test_case) {
  if (!test_case.contains("grads")) return;
  const json& grads = test_case.at("grads");
  for (std::size_t i = 0; i < std::min(inputs.size(), grads.size()); ++i) {
    if (!grads[i].is_null()) Tensor(inputs[i]).requires_grad_();
  }
}

/// The backward pass from the case's cotangents; what is wrong with the gradients.
std::string wrong_gradients(const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs,
                            const json& test_case, Device device) {
  if (!test_case.contains("grads") || !test_case.contains("cotangents")) return {};
  const json& given = test_case.at("cotangents");
  if (given.size() != outputs.size()) {
    return fmt::format("{} outputs for {} cotangents", outputs.size(), given.size());
  }
  std::vector<Tensor> roots;
  std::vector<Tensor> cotangents;
  for (std::size_t i = 0; i < given.size(); ++i) {
    if (given[i].is_null()) continue;
    roots.push_back(outputs[i]);
    cotangents.push_back(build(given[i], device));
  }
  if (roots.empty()) return {};
  try {
    backward(roots, cotangents);
  } catch (const std::exception& error) {
    return fmt::format("backward: {}", error.what());
  }
  std::vector<Tensor> gradients;
  for (const Tensor& input : inputs) gradients.push_back(input.grad());
  return first_difference("gradient", gradients, test_case.at("grads"), test_case);
}

/// Runs the case forward and backward; a wrong output does not hide a wrong gradient.
void run(std::string_view op, const json& test_case, Device device, Outcome& outcome) {
  const json no_arguments = json::object();
  Arguments arguments(test_case.contains("attrs") ? test_case.at("attrs") : no_arguments);
  std::vector<Tensor> inputs;
  for (const json& spec : test_case.at("inputs")) inputs.push_back(build(spec, device));
  require_gradients(inputs, test_case);
  const std::vector<Tensor> outputs = call(op, inputs, arguments);
  const std::string wrong[] = {
      first_difference("output", outputs, test_case.at("outputs"), test_case),
      wrong_gradients(inputs, outputs, test_case, device)};
  for (const std::string& what : wrong) {
    if (!what.empty()) outcome.reason += (outcome.reason.empty() ? "" : "; ") + what;
  }
  outcome.status = outcome.reason.empty() ? Status::passed : Status::failed;
}

CaseFile read_file(const std::filesystem::path& path) {
  std::ifstream stream(path);
  if (!stream) throw std::runtime_error("cannot open " + path.string());
  try {
    const json content = json::parse(stream);
    return {content.at("op").get<std::string>(), content.at("cases").get<std::vector<json>>()};
  } catch (const json::exception& error) {
    throw std::runtime_error(path.string() + ": " + error.what());
  }
}

}  // namespace

std::vector<CaseFile> read_cases(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".json") paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  if (paths.empty()) throw std::runtime_error(folder.string() + " holds no *.json files");
  std::vector<CaseFile> files;
  for (const auto& path : paths) files.push_back(read_file(path));
  return files;
}

std::string case_name(std::string_view op, const json& test_case) {
  const bool named =
      test_case.is_object() && test_case.contains("name") && test_case["name"].is_string();
  return std::string(op) + "/" + (named ? test_case["name"].get<std::string>() : std::string());
}

Outcome run_case(std::string_view op, const json& test_case, Device device) {
  Outcome outcome;
  outcome.name = case_name(op, test_case);
  try {
    run(op, test_case, device, outcome);
  } catch (const Unsupported& missing) {
    outcome.status = Status::skipped;
    outcome.reason = missing.what();
  } catch (const std::exception& error) {
    outcome.status = Status::failed;
    outcome.reason = error.what();
  }
  return outcome;
}

}  // namespace tenon::conformance
