// From PyTorch's op names and arguments to calls of Tenon's functional API.
#pragma once

#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "tensor/tensor.h"

namespace tenon::conformance {

/// The case asks for something that Tenon does not have.
class Unsupported : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// "nan", "inf" and "-inf", which JSON has no numbers for; std::runtime_error for other strings.
double number(const nlohmann::json& value);

/// The arguments of a case by name. What is read is noted, so that an argument that nobody knows is
/// seen instead of ignored. A null stands for PyTorch's default, and so does false for an option
/// that nobody reads.
class Arguments {
 public:
  explicit Arguments(const nlohmann::json& values) : values_(values) {}
  bool has(const std::string& name) {
    read_.insert(name);
    return values_.contains(name) && !values_.at(name).is_null();
  }
  template <class T>
  T get(const std::string& name) {
    read_.insert(name);
    if constexpr (std::is_same_v<T, double>) {
      return number(values_.at(name));
    } else if constexpr (std::is_same_v<T, Number>) {
      const nlohmann::json& value = values_.at(name);
      if (value.is_boolean()) return value.get<bool>();
      if (value.is_number_unsigned()) return value.get<std::uint64_t>();
      if (value.is_number_integer()) return value.get<std::int64_t>();
      return number(value);
    } else {
      return values_.at(name).get<T>();
    }
  }
  template <class T>
  T get(const std::string& name, T fallback) {
    return has(name) ? get<T>(name) : fallback;
  }
  const nlohmann::json& raw(const std::string& name) const { return values_.at(name); }
  /// Unsupported when an argument has not been read.
  void require_all_read() const;

 private:
  const nlohmann::json& values_;
  std::set<std::string> read_;
};

/// Calls the op; absent optional inputs are undefined tensors. Unsupported where there is no such
/// op, overload or option.
std::vector<Tensor> call(std::string_view op, const std::vector<Tensor>& inputs,
                         Arguments& arguments);

}  // namespace tenon::conformance
