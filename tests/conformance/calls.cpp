// The table of ops that cases can call.
#include "tests/conformance/calls.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include "tensor/functional.h"

namespace tenon::conformance {
namespace {

using Inputs = std::vector<Tensor>;
using Call = std::function<std::vector<Tensor>(const Inputs&, Arguments&)>;
using Axes = std::vector<std::int64_t>;

const Tensor& input(const Inputs& inputs, std::size_t i) {
  if (i >= inputs.size())
    throw Unsupported("the case has " + std::to_string(inputs.size()) + " inputs");
  return inputs[i];
}

Tensor optional_input(const Inputs& inputs, std::size_t i) {
  return i < inputs.size() ? inputs[i] : Tensor();
}

Shape shape_of(const Axes& sizes) { return Shape(std::vector<Dim>(sizes.begin(), sizes.end())); }

/// A list of axes, one axis, or nothing.
Axes axes(Arguments& arguments, const std::string& name) {
  if (!arguments.has(name)) return {};
  if (arguments.raw(name).is_array()) return arguments.get<Axes>(name);
  return {arguments.get<std::int64_t>(name)};
}

/// Input 0, converted first where the argument `dtype` is given.
Tensor converted_input(const Inputs& inputs, Arguments& arguments) {
  const Tensor& first = input(inputs, 0);
  if (!arguments.has("dtype")) return first;
  return cast(first, parse_dtype(arguments.get<std::string>("dtype")));
}

Call unary(Tensor (*f)(const Tensor&)) {
  return [f](const Inputs& x, Arguments&) { return Inputs{f(input(x, 0))}; };
}

Call binary(Tensor (*f)(const Tensor&, const Tensor&)) {
  return [f](const Inputs& x, Arguments&) { return Inputs{f(input(x, 0), input(x, 1))}; };
}

/// The second operand may be a number, given as the argument `other`.
Call arithmetic(Tensor (*tensors)(const Tensor&, const Tensor&),
                Tensor (*number)(const Tensor&, const Scalar&)) {
  return [=](const Inputs& x, Arguments& a) {
    if (x.size() == 1 && a.has("other")) return Inputs{number(x[0], a.get<Number>("other"))};
    return Inputs{tensors(input(x, 0), input(x, 1))};
  };
}

Call reduction(Tensor (*f)(const Tensor&, const Axes&, bool)) {
  return [f](const Inputs& x, Arguments& a) {
    return Inputs{f(converted_input(x, a), axes(a, "dim"), a.get("keepdim", false))};
  };
}

Call reshaping(Tensor (*f)(const Tensor&, const Shape&)) {
  return [f](const Inputs& x, Arguments& a) {
    const char* name = a.has("size") ? "size" : "shape";
    if (!a.has(name)) throw Unsupported("without 'shape'");
    return Inputs{f(input(x, 0), shape_of(a.get<Axes>(name)))};
  };
}

Call along_axis(Tensor (*f)(const Tensor&, std::int64_t)) {
  return [f](const Inputs& x, Arguments& a) {
    if (!a.has("dim")) throw Unsupported("without 'dim'");
    return Inputs{f(converted_input(x, a), a.get<std::int64_t>("dim"))};
  };
}

Call triangle(Tensor (*f)(const Tensor&, std::int64_t)) {
  return [f](const Inputs& x, Arguments& a) {
    return Inputs{f(input(x, 0), a.get<std::int64_t>("diagonal", 0))};
  };
}

Call lookup(Tensor (*f)(const Tensor&, std::int64_t, const Tensor&)) {
  return [f](const Inputs& x, Arguments& a) {
    return Inputs{f(input(x, 0), a.get<std::int64_t>("dim"), input(x, 1))};
  };
}

std::vector<Tensor> call_pow(const Inputs& x, Arguments& a) {
  if (x.size() == 1 && a.has("exponent")) return {pow(x[0], a.get<double>("exponent"))};
  return {pow(input(x, 0), input(x, 1))};
}

std::vector<Tensor> call_softplus(const Inputs& x, Arguments& a) {
  return {softplus(input(x, 0), a.get("beta", 1.0), a.get("threshold", 20.0))};
}

std::vector<Tensor> call_gelu(const Inputs& x, Arguments& a) {
  return {gelu(input(x, 0), parse_enum(Approximate{}, a.get("approximate", std::string("none"))))};
}

/// One axis, several, or all of size 1.
std::vector<Tensor> call_squeeze(const Inputs& x, Arguments& a) {
  Tensor result = input(x, 0);
  Axes dims = axes(a, "dim");
  if (!a.has("dim")) {
    for (int axis = 0; axis < result.dim(); ++axis) {
      if (result.size(axis) == 1) dims.push_back(axis);
    }
  }
  for (std::int64_t& dim : dims) {
    if (dim < 0) dim += result.dim();
  }
  std::sort(dims.rbegin(), dims.rend());  // from the last on, so that the others keep their numbers
  for (const std::int64_t dim : dims) result = squeeze(result, dim);
  return {result};
}

std::vector<Tensor> call_split(const Inputs& x, Arguments& a) {
  const char* name = a.has("split_size") ? "split_size" : "split_size_or_sections";
  const auto dim = a.get<std::int64_t>("dim", 0);
  if (!a.has(name)) throw Unsupported("without 'split_size'");
  if (a.raw(name).is_array()) return split(input(x, 0), a.get<Axes>(name), dim);
  return split(input(x, 0), a.get<std::int64_t>(name), dim);
}

std::vector<Tensor> call_dropout(const Inputs& x, Arguments& a) {
  const auto p = a.get("p", 0.5);
  const bool training = a.get("training", true);
  if (training && p > 0 && p < 1) throw Unsupported("random: PyTorch draws another mask");
  return {dropout(input(x, 0), p, training ? DropoutMode::train : DropoutMode::eval)};
}

std::vector<Tensor> call_attention(const Inputs& x, Arguments& a) {
  AttentionOptions options;
  options.is_causal = a.get("is_causal", false);
  options.dropout_p = a.get("dropout_p", 0.0);
  if (options.dropout_p > 0) throw Unsupported("random: PyTorch draws another dropout mask");
  if (a.has("scale")) options.scale = a.get<double>("scale");
  a.get("enable_gqa", false);  // what it asks for needs no asking here
  return {scaled_dot_product_attention(input(x, 0), input(x, 1), input(x, 2), optional_input(x, 3),
                                       options)};
}

std::vector<Tensor> call_layer_norm(const Inputs& x, Arguments& a) {
  return {layer_norm(input(x, 0), a.get<Axes>("normalized_shape"), optional_input(x, 1),
                     optional_input(x, 2), a.get("eps", 1e-5))};
}

Reduction reduction_of(Arguments& arguments) {
  return parse_enum(Reduction{}, arguments.get("reduction", std::string("mean")));
}

std::vector<Tensor> call_var(const Inputs& x, Arguments& a) {
  const double unbiased = a.get("unbiased", true) ? 1 : 0;
  return {var(input(x, 0), axes(a, "dim"), a.get("correction", unbiased), a.get("keepdim", false))};
}

std::vector<Tensor> call_argmax(const Inputs& x, Arguments& a) {
  std::optional<std::int64_t> dim;
  if (a.has("dim")) dim = a.get<std::int64_t>("dim");
  return {argmax(input(x, 0), dim, a.get("keepdim", false))};
}

std::vector<Tensor> call_rms_norm(const Inputs& x, Arguments& a) {
  std::optional<double> eps;
  if (a.has("eps")) eps = a.get<double>("eps");
  return {rms_norm(input(x, 0), a.get<Axes>("normalized_shape"), optional_input(x, 1), eps)};
}

std::vector<Tensor> call_cross_entropy(const Inputs& x, Arguments& a) {
  if (x.size() > 2 && x[2]) throw Unsupported("without class weights");
  CrossEntropyOptions options;
  options.ignore_index = a.get<std::int64_t>("ignore_index", -100);
  options.reduction = reduction_of(a);
  options.label_smoothing = a.get("label_smoothing", 0.0);
  return {cross_entropy(input(x, 0), input(x, 1), options)};
}

std::vector<Tensor> call_mse_loss(const Inputs& x, Arguments& a) {
  return {mse_loss(input(x, 0), input(x, 1), reduction_of(a))};
}

/// One number for both axes, or one for each.
Size2 size2(Arguments& arguments, const std::string& name, Size2 fallback) {
  if (!arguments.has(name)) return fallback;
  if (arguments.raw(name).is_number()) {
    const auto size = arguments.get<std::int64_t>(name);
    return {size, size};
  }
  const auto sizes = arguments.raw(name).is_array() ? arguments.get<Axes>(name) : Axes();
  if (sizes.empty() || sizes.size() > 2) throw Unsupported("'" + name + "' is no size");
  return {sizes.front(), sizes.back()};
}

/// Unsupported unless an option has the only value that Tenon knows.
void require_option(Arguments& arguments, const std::string& name, bool value) {
  if (arguments.get(name, value) != value) throw Unsupported("with option '" + name + "'");
}

std::vector<Tensor> call_conv2d(const Inputs& x, Arguments& a) {
  return {conv2d(input(x, 0), input(x, 1), optional_input(x, 2), size2(a, "stride", {1, 1}),
                 size2(a, "padding", {0, 0}), size2(a, "dilation", {1, 1}),
                 a.get<std::int64_t>("groups", 1))};
}

Call pooling(Tensor (*f)(const Tensor&, Size2, Size2, Size2)) {
  return [f](const Inputs& x, Arguments& a) {
    const Size2 kernel = size2(a, "kernel_size", {1, 1});
    require_option(a, "ceil_mode", false);
    require_option(a, "return_indices", false);
    require_option(a, "count_include_pad", true);
    if (size2(a, "dilation", {1, 1}) != Size2{1, 1}) throw Unsupported("with option 'dilation'");
    return Inputs{f(input(x, 0), kernel, size2(a, "stride", kernel), size2(a, "padding", {0, 0}))};
  };
}

/// (input, running_mean, running_var, weight, bias), or without the running statistics.
std::vector<Tensor> call_batch_norm(const Inputs& x, Arguments& a) {
  const std::size_t vectors = x.size() > 3 ? 3 : 1;
  const bool training = a.get("training", false);
  return {batch_norm(input(x, 0), x.size() > 3 ? x[1] : Tensor(), x.size() > 3 ? x[2] : Tensor(),
                     optional_input(x, vectors), optional_input(x, vectors + 1),
                     training ? DropoutMode::train : DropoutMode::eval, a.get("momentum", 0.1),
                     a.get("eps", 1e-5))};
}

void add_pointwise(std::map<std::string, Call, std::less<>>& table) {
  table["add"] = arithmetic(add, add);
  table["sub"] = arithmetic(sub, sub);
  table["mul"] = arithmetic(mul, mul);
  table["div"] = arithmetic(div, div);
  table["maximum"] = binary(maximum);
  table["minimum"] = binary(minimum);
  table["neg"] = unary(neg);
  table["abs"] = unary(abs);
  table["exp"] = unary(exp);
  table["log"] = unary(log);
  table["sqrt"] = unary(sqrt);
  table["rsqrt"] = unary(rsqrt);
  table["reciprocal"] = unary(reciprocal);
  table["square"] = unary(square);
  table["sin"] = unary(sin);
  table["cos"] = unary(cos);
  table["tanh"] = unary(tanh);
  table["sigmoid"] = unary(sigmoid);
  table["erf"] = unary(erf);
  table["relu"] = unary(relu);
  table["silu"] = unary(silu);
  table["gelu"] = call_gelu;
  table["softplus"] = call_softplus;
  table["pow"] = call_pow;
  table["eq"] = arithmetic(eq, eq);
  table["ne"] = arithmetic(ne, ne);
  table["lt"] = arithmetic(lt, lt);
  table["le"] = arithmetic(le, le);
  table["gt"] = arithmetic(gt, gt);
  table["ge"] = arithmetic(ge, ge);
  table["masked_fill"] = [](const Inputs& x, Arguments& a) {
    return Inputs{masked_fill(input(x, 0), input(x, 1), a.get<Number>("value"))};
  };
  table["where"] = [](const Inputs& x, Arguments&) {
    return Inputs{where(input(x, 0), input(x, 1), input(x, 2))};
  };
}

void add_shape(std::map<std::string, Call, std::less<>>& table) {
  table["view"] = reshaping(view);
  table["reshape"] = reshaping(reshape);
  table["expand"] = reshaping(expand);
  table["unsqueeze"] = along_axis(unsqueeze);
  table["squeeze"] = call_squeeze;
  table["contiguous"] = unary(contiguous);
  table["clone"] = unary(clone);
  table["split"] = call_split;
  table["permute"] = [](const Inputs& x, Arguments& a) {
    return Inputs{permute(input(x, 0), a.get<Axes>("dims"))};
  };
  table["transpose"] = [](const Inputs& x, Arguments& a) {
    return Inputs{transpose(input(x, 0), a.get<std::int64_t>("dim0"), a.get<std::int64_t>("dim1"))};
  };
  table["narrow"] = [](const Inputs& x, Arguments& a) {
    return Inputs{narrow(input(x, 0), a.get<std::int64_t>("dim"), a.get<std::int64_t>("start"),
                         a.get<std::int64_t>("length"))};
  };
  table["chunk"] = [](const Inputs& x, Arguments& a) {
    return chunk(input(x, 0), a.get<std::int64_t>("chunks"), a.get<std::int64_t>("dim", 0));
  };
  table["cat"] = [](const Inputs& x, Arguments& a) {
    return Inputs{cat(x, a.get<std::int64_t>("dim", 0))};
  };
  table["stack"] = [](const Inputs& x, Arguments& a) {
    return Inputs{stack(x, a.get<std::int64_t>("dim", 0))};
  };
  table["select"] = [](const Inputs& x, Arguments& a) {
    return Inputs{select(input(x, 0), a.get<std::int64_t>("dim"), a.get<std::int64_t>("index"))};
  };
  table["tril"] = triangle(tril);
  table["triu"] = triangle(triu);
  table["index_select"] = lookup(index_select);
  table["gather"] = lookup(gather);
}

const std::map<std::string, Call, std::less<>>& table() {
  static const auto result = [] {
    std::map<std::string, Call, std::less<>> table;
    add_pointwise(table);
    add_shape(table);
    table["sum"] = reduction(sum);
    table["mean"] = reduction(mean);
    table["amax"] = reduction(amax);
    table["amin"] = reduction(amin);
    table["var"] = call_var;
    table["argmax"] = call_argmax;
    table["cumsum"] = along_axis(cumsum);
    table["softmax"] = along_axis(softmax);
    table["log_softmax"] = along_axis(log_softmax);
    table["rms_norm"] = call_rms_norm;
    table["mse_loss"] = call_mse_loss;
    table["cross_entropy"] = call_cross_entropy;
    table["layer_norm"] = call_layer_norm;
    table["batch_norm"] = call_batch_norm;
    table["conv2d"] = call_conv2d;
    table["max_pool2d"] = pooling(max_pool2d);
    table["avg_pool2d"] = pooling(avg_pool2d);
    table["dropout"] = call_dropout;
    table["scaled_dot_product_attention"] = call_attention;
    table["matmul"] = binary(matmul);
    table["embedding"] = binary(embedding);
    table["linear"] = [](const Inputs& x, Arguments&) {
      return Inputs{linear(input(x, 0), input(x, 1), optional_input(x, 2))};
    };
    return table;
  }();
  return result;
}

}  // namespace

double number(const nlohmann::json& value) {
  if (!value.is_string()) return value.is_boolean() ? value.get<bool>() : value.get<double>();
  const auto text = value.get<std::string>();
  if (text == "nan") return std::nan("");
  if (text == "inf") return HUGE_VAL;
  if (text == "-inf") return -HUGE_VAL;
  throw std::runtime_error("'" + text + "' is not a number");
}

void Arguments::require_all_read() const {
  for (const auto& [name, value] : values_.items()) {
    if (value.is_boolean() && !value.get<bool>()) continue;
    if (!value.is_null() && !read_.contains(name))
      throw Unsupported("without option '" + name + "'");
  }
}

std::vector<Tensor> call(std::string_view op, const std::vector<Tensor>& inputs,
                         Arguments& arguments) {
  const auto found = table().find(op);
  if (found == table().end()) throw Unsupported("there is no op '" + std::string(op) + "'");
  std::vector<Tensor> outputs = found->second(inputs, arguments);
  arguments.require_all_read();
  return outputs;
}

}  // namespace tenon::conformance
