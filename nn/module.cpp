// Module: registration, paths, modes, conversion, hooks and printing; module_load.cpp loads.
#include "nn/module.h"

#include <algorithm>
#include <mutex>
#include <ostream>
#include <typeindex>
#include <unordered_set>

#include "tensor/interpreter.h"
#include "tensor/support/check.h"
#include "tensor/support/text.h"

namespace tenon::nn {

using text::quote;

namespace detail {

struct HookTable {
  HookSet numbers;
  std::vector<std::pair<std::int64_t, ForwardPreHook>> before;
  std::vector<std::pair<std::int64_t, ForwardHook>> after;
};

void throw_null_child(const char* mangled_type) {
  throw ModuleError(
      fmt::format("[module] used an empty Child<{}>; needed one made by add() or make()",
                  text::class_name(mangled_type)));
}

void throw_wrong_arity(const Module& module, std::size_t given) {
  throw ModuleError(
      fmt::format("[module] {} was called with {} tensors; its forward does not take that many",
                  module.type_name(), given));
}

ModuleCall::ModuleCall(Module& module, std::vector<Tensor>& inputs)
    : module_((module.in_use_.require_free("[call] the module"), module)),
      scope_(
          {&module, &module.type_name(), *module.training_, module.has_hooks(), &module.training_},
          inputs) {
  module_.run_pre_hooks(inputs);
}

void ModuleCall::finish(std::span<const Tensor> inputs, std::vector<Tensor>& outputs) {
  module_.run_hooks(inputs, outputs);
  scope_.finish(outputs);
}

}  // namespace detail

void HookHandle::remove() {
  if (const auto table = table_.lock()) {
    std::erase_if(table->before, [&](const auto& entry) { return entry.first == id_; });
    std::erase_if(table->after, [&](const auto& entry) { return entry.first == id_; });
    table->numbers.remove(id_);
  }
  table_.reset();
}

Module::Module() : hooks_(std::make_shared<detail::HookTable>()) {}
Module::~Module() = default;

const std::string& Module::type_name() const {
  static std::mutex mutex;
  // Never destroyed, as threads may outlive main; nodes never move.
  static auto& names = *new std::unordered_map<std::type_index, std::string>;
  const std::type_info& type = typeid(*this);
  const std::lock_guard lock(mutex);
  const auto [entry, is_new] = names.try_emplace(std::type_index(type));
  if (is_new) entry->second = text::class_name(type.name());
  return entry->second;
}

// --- registration -------------------------------------------------------------------------------

void Module::check_name(std::string_view kind, std::string_view name) const {
  TENON_CHECK(!name.empty(), ModuleError, "[register_{}] the name is empty; needed a name", kind);
  TENON_CHECK(name.find('.') == std::string_view::npos, ModuleError,
              "[register_{}] the name {} holds a dot; dots separate the names of a path", kind,
              text::quote(name));
  const auto is_taken = [&](const auto& list) {
    return std::any_of(list.begin(), list.end(), [&](const Named& n) { return n.name == name; });
  };
  const bool is_module = std::any_of(children_.begin(), children_.end(),
                                     [&](const auto& child) { return child.first == name; });
  const char* holder = is_taken(parameters_) ? "parameter"
                       : is_taken(buffers_)  ? "buffer"
                       : is_module           ? "module"
                                             : nullptr;
  TENON_CHECK(holder == nullptr, ModuleError, "[register_{}] the name {} is taken by a {}", kind,
              text::quote(name), holder);
}

void Module::check_tensor(std::string_view kind, std::string_view name,
                          const Tensor& tensor) const {
  check_name(kind, name);
  TENON_CHECK(tensor.defined(), ModuleError, "[register_{}] {} is undefined; needed a tensor", kind,
              text::quote(name));
  TENON_CHECK(tensor.is_eager(), ModuleError,
              "[register_{}] {} is {} without data; needed a tensor with data", kind, text::quote(name),
              tensor.spec().to_string());
}

Tensor Module::register_parameter(std::string name, Tensor tensor) {
  check_tensor("parameter", name, tensor);
  TENON_CHECK(is_floating(tensor.dtype()), ModuleError,
              "[register_parameter] {} is {}; needed a floating dtype (others are buffers)",
              text::quote(name), tensor.spec().to_string());
  tensor.impl()->requires_grad = true;
  parameters_.push_back({std::move(name), tensor});
  return tensor;
}

Tensor Module::register_buffer(std::string name, Tensor tensor, bool persistent) {
  check_tensor("buffer", name, tensor);
  buffers_.push_back({std::move(name), tensor, persistent});
  return tensor;
}

void Module::add_child(std::string name, std::shared_ptr<Module> module) {
  check_name("module", name);
  TENON_CHECK(module != nullptr, ModuleError, "[register_module] {} is null; needed a module",
              text::quote(name));
  module->visit_modules("", [&](const std::string& path, const Module& inner) {
    TENON_CHECK(&inner != this, ModuleError,
                "[register_module] {} would contain itself, as {} of the new child", text::quote(name),
                text::quote(path));
  });
  children_.emplace_back(std::move(name), std::move(module));
}

// --- names --------------------------------------------------------------------------------------

namespace {

std::string join(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : prefix + '.' + name;
}

}  // namespace

template <class Visit>
void Module::visit_modules(const std::string& prefix, const Visit& visit) const {
  visit(prefix, *this);
  for (const auto& [name, child] : children_) child->visit_modules(join(prefix, name), visit);
}

Module::NamedTensors Module::collect(std::vector<Named> Module::*list, bool keep_duplicates) const {
  NamedTensors result;
  std::unordered_set<const void*> seen;
  visit_modules("", [&](const std::string& prefix, const Module& module) {
    for (const Named& named : module.*list) {
      const bool is_new = seen.insert(named.tensor.impl().get()).second;
      if (is_new || keep_duplicates) result.emplace_back(join(prefix, named.name), named.tensor);
    }
  });
  return result;
}

Module::NamedTensors Module::named_parameters(bool keep_duplicates) const {
  return collect(&Module::parameters_, keep_duplicates);
}

Module::NamedTensors Module::named_buffers(bool keep_duplicates) const {
  return collect(&Module::buffers_, keep_duplicates);
}

Module::NamedModules Module::named_modules(bool keep_duplicates) {
  NamedModules result;
  std::unordered_set<const Module*> seen;
  visit_modules("", [&](const std::string& path, const Module& module) {
    const bool is_new = seen.insert(&module).second;
    if (is_new || keep_duplicates) result.emplace_back(path, const_cast<Module*>(&module));
  });
  return result;
}

Module::NamedModules Module::named_children() {
  NamedModules result;
  for (const auto& [name, child] : children_) result.emplace_back(name, child.get());
  return result;
}

const Module* Module::find_module(std::string_view path) const {
  const Module* module = this;
  while (!path.empty()) {
    const std::size_t dot = path.find('.');
    const std::string_view name = path.substr(0, dot);
    const auto& list = module->children_;
    const auto child =
        std::find_if(list.begin(), list.end(), [&](const auto& c) { return c.first == name; });
    if (child == list.end()) return nullptr;
    module = child->second.get();
    if (dot == std::string_view::npos) return module;
    path.remove_prefix(dot + 1);
    if (path.empty()) return nullptr;  // "a." names nothing
  }
  return module;
}

Module& Module::submodule(std::string_view path) {
  if (const Module* module = find_module(path)) return const_cast<Module&>(*module);
  std::vector<std::string> names;
  for (const auto& [name, module] : named_modules(true)) {
    if (!name.empty()) names.push_back(name);
  }
  throw ModuleError(fmt::format("[submodule] {} has no submodule {}{}", type_name(), text::quote(path),
                                text::nearest_names(path, names)));
}

Tensor Module::find_tensor(std::vector<Named> Module::*list, std::string_view kind,
                           std::string_view path) const {
  const std::size_t dot = path.rfind('.');
  const std::string_view parent = dot == std::string_view::npos ? "" : path.substr(0, dot);
  const std::string_view name = dot == std::string_view::npos ? path : path.substr(dot + 1);
  if (const Module* module = dot == 0 ? nullptr : find_module(parent)) {
    for (const Named& named : module->*list) {
      if (named.name == name) return named.tensor;
    }
  }
  std::vector<std::string> names;
  for (auto& entry : collect(list, true)) names.push_back(std::move(entry.first));
  throw ModuleError(fmt::format("[{}] {} has no {} {}{}", kind, type_name(), kind, text::quote(path),
                                text::nearest_names(path, names)));
}

Tensor Module::parameter(std::string_view path) const {
  return find_tensor(&Module::parameters_, "parameter", path);
}

Tensor Module::buffer(std::string_view path) const {
  return find_tensor(&Module::buffers_, "buffer", path);
}

// --- state --------------------------------------------------------------------------------------

void Module::train(bool on) {
  for (const auto& [name, module] : named_modules()) *module->training_ = on;
}

bool Module::training() const {
  const bool now = *training_;
  Interpreter& interpreter = current_interpreter();
  if (interpreter.is_recording()) {
    interpreter.on_mode_read({this, &type_name(), now, has_hooks(), &training_});
  }
  return now;
}

void Module::requires_grad_(bool requires_grad) {
  for (const auto& [name, tensor] : named_parameters()) {
    tensor.impl()->requires_grad = requires_grad;
  }
}

std::vector<Tensor> Module::unique_tensors() const {
  std::vector<Tensor> result;
  std::unordered_set<const void*> seen;
  for (auto list : {&Module::parameters_, &Module::buffers_}) {
    for (auto& [name, tensor] : collect(list, false)) {
      if (seen.insert(tensor.impl().get()).second) result.push_back(tensor);
    }
  }
  return result;
}

std::vector<ExclusiveUse::Scope> Module::use_all(std::string_view what) const {
  std::vector<ExclusiveUse::Scope> uses;
  visit_modules("", [&](const std::string&, const Module& module) {
    uses.emplace_back(module.in_use_, what);
  });
  return uses;
}

void Module::convert(const std::function<TensorOptions(const Tensor&)>& target) {
  const auto uses = use_all("[to] the module");
  const NoGradGuard no_grad;
  const auto converted = [&](const Tensor& tensor) {
    if (!tensor) return tensor;
    const TensorOptions options = target(tensor);
    if (options.dtype == tensor.dtype() && options.device == tensor.device()) return tensor;
    Tensor result = empty(tensor.layout().sizes, options);
    result.copy_(tensor);
    return result;
  };
  struct Change {
    Tensor tensor, data, gradient;
  };
  std::vector<Change> changes;
  for (const Tensor& tensor : unique_tensors()) {
    changes.push_back({tensor, converted(tensor), converted(tensor.grad())});
  }
  for (auto& [tensor, data, gradient] : changes) {
    if (!data.is_same(tensor)) tensor.set_data_(data);
    tensor.impl()->grad = gradient.impl();
  }
}

void Module::to(Device device) {
  convert([&](const Tensor& tensor) { return TensorOptions{tensor.dtype(), device}; });
}

void Module::to(DType dtype) {
  TENON_CHECK(is_floating(dtype), DTypeError, "[to] given {}; needed a floating dtype",
              name(dtype));
  convert([&](const Tensor& tensor) {
    return TensorOptions{is_floating(tensor.dtype()) ? dtype : tensor.dtype(), tensor.device()};
  });
}

void Module::to(Device device, DType dtype) {
  TENON_CHECK(is_floating(dtype), DTypeError, "[to] given {}; needed a floating dtype",
              name(dtype));
  convert([&](const Tensor& tensor) {
    return TensorOptions{is_floating(tensor.dtype()) ? dtype : tensor.dtype(), device};
  });
}

// --- hooks --------------------------------------------------------------------------------------

HookHandle Module::register_forward_pre_hook(ForwardPreHook hook) {
  TENON_CHECK(hook != nullptr, ModuleError, "[register_forward_pre_hook] the hook is empty");
  const std::int64_t id = hooks_->numbers.add();
  hooks_->before.emplace_back(id, std::move(hook));
  return {hooks_, id};
}

HookHandle Module::register_forward_hook(ForwardHook hook) {
  TENON_CHECK(hook != nullptr, ModuleError, "[register_forward_hook] the hook is empty");
  const std::int64_t id = hooks_->numbers.add();
  hooks_->after.emplace_back(id, std::move(hook));
  return {hooks_, id};
}

std::shared_ptr<const HookSet> Module::hooks() { return {hooks_, &hooks_->numbers}; }

void Module::run_pre_hooks(std::span<Tensor> inputs) {
  if (hooks_->before.empty()) return;
  const auto hooks = hooks_->before;  // a copy: a hook may remove itself
  for (const auto& [id, hook] : hooks) hook(*this, inputs);
}

void Module::run_hooks(std::span<const Tensor> inputs, std::span<Tensor> outputs) {
  if (hooks_->after.empty()) return;
  const auto hooks = hooks_->after;
  for (const auto& [id, hook] : hooks) hook(*this, inputs, outputs);
}

std::vector<Tensor> Module::call_with_hooks(
    std::vector<Tensor> inputs,
    const std::function<std::vector<Tensor>(std::span<const Tensor>)>& forward) {
  run_pre_hooks(inputs);
  std::vector<Tensor> outputs = forward(inputs);
  run_hooks(inputs, outputs);
  return outputs;
}

bool Module::has_hooks() const { return !(hooks_->before.empty() && hooks_->after.empty()); }

// --- printing -----------------------------------------------------------------------------------

namespace {

// Every line break of `text` is followed by two more spaces.
std::string indented(const std::string& text) {
  std::string result;
  for (char c : text) {
    result += c;
    if (c == '\n') result += "  ";
  }
  return result;
}

}  // namespace

std::string Module::to_string() const {
  const std::string own = extra_repr();
  if (children_.empty() && own.find('\n') == std::string::npos)
    return type_name() + '(' + own + ')';
  std::string text = type_name() + '(';
  if (!own.empty()) text += "\n  " + indented(own);
  for (std::size_t i = 0; i < children_.size();) {
    const std::string child = children_[i].second->to_string();
    std::size_t end = i + 1;
    if (folds_equal_children()) {
      while (end < children_.size() && children_[end].second->to_string() == child) ++end;
    }
    const std::string label = end - i == 1 ? fmt::format("({}): ", children_[i].first)
                                           : fmt::format("({}-{}): {} x ", children_[i].first,
                                                         children_[end - 1].first, end - i);
    text += "\n  " + label + indented(child);
    i = end;
  }
  return text + "\n)";
}

std::ostream& operator<<(std::ostream& stream, const Module& module) {
  return stream << module.to_string();
}

}  // namespace tenon::nn
