#include "schedule/saving/graph_edit.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <set>
#include <utility>

#include "schedule/saving/attr_json.h"
#include "tensor/support/base64.h"
#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

using nlohmann::json;

int to_int(const json& number) {
  const std::int64_t wide = integer_from_json(number);
  TENON_CHECK(std::in_range<int>(wide), ScheduleError, "{} is too large or small", wide);
  return static_cast<int>(wide);
}

/// The digits that the text begins with, taken off it.
int take_number(std::string_view& text, std::string_view whole) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  TENON_CHECK(error == std::errc() && number >= 0 && text[0] != '-', ScheduleError,
              "'{}' is no reference to a value", whole.substr(0, 80));
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return number;
}

/// "n12:1" -> 12, 1; "i2" -> 2, 0.
std::pair<int, int> parse_reference(const std::string& whole) {
  std::string_view text = std::string_view(whole).substr(1);
  const int number = take_number(text, whole);
  int output = 0;
  if (whole[0] == 'n' && text.starts_with(":")) {
    text.remove_prefix(1);
    output = take_number(text, whole);
  }
  TENON_CHECK(text.empty(), ScheduleError, "'{}' is no reference to a value", whole.substr(0, 80));
  return {number, output};
}

json tensor_to_json(const Value& value) {
  const Tensor host = value.tensor.to(kCpu).contiguous();
  const TensorView view = host.view_of_data();
  const auto bytes = static_cast<std::size_t>(view.numel()) * size_of(view.dtype);
  return {{"kind", value.kind == ValueKind::parameter ? "parameter"
                   : value.kind == ValueKind::buffer  ? "buffer"
                                                      : "constant"},
          {"name", value.name},
          {"dtype", std::string(name(view.dtype))},
          {"shape", shape_to_json(value.spec.shape)},
          {"requires_grad", value.tensor.requires_grad()},
          {"base64", text::base64_encode({static_cast<const std::byte*>(view.data), bytes})}};
}

/// ScheduleError unless the text may be the values: nothing is allocated on the word of a shape.
void check_bytes(const std::string& name, const Shape& shape, DType dtype, std::size_t length) {
  auto bytes = static_cast<std::int64_t>(size_of(dtype));
  bool fits = shape.rank() <= kMaxRank;
  for (const Dim& size : shape) {
    fits = fits && hint_of(size) >= 0 && !__builtin_mul_overflow(bytes, hint_of(size), &bytes);
  }
  TENON_CHECK(fits && text::base64_size(static_cast<std::size_t>(bytes)) == length, ScheduleError,
              "the values of '{}' are not those of {}{} in base64", name, tenon::name(dtype),
              shape.to_string());
}

void add_state(Graph& graph, const json& state) {
  const DType dtype = parse_dtype(state.at("dtype").get<std::string>());
  const std::string name = state.at("name").get<std::string>();
  const std::string text = state.at("base64").get<std::string>();
  const Shape shape = shape_from_json(state.at("shape"), {});
  check_bytes(name, shape, dtype, text.size());
  Tensor tensor = empty(shape, {dtype, kCpu});
  const TensorView view = tensor.view_of_data();
  const auto bytes = static_cast<std::size_t>(view.numel()) * size_of(dtype);
  TENON_CHECK(text::base64_decode(text, {static_cast<std::byte*>(view.data), bytes}), ScheduleError,
              "the values of '{}' are not {} bytes in base64", name, bytes);
  // It lives where the model does, and in its floating dtype.
  for (ValueId id : graph.values()) {
    const Value& value = graph.value(id);
    if (value.kind != ValueKind::parameter) continue;
    if (is_floating(dtype)) tensor = tensor.to(value.spec.dtype);
    tensor = tensor.to(value.spec.device);
    break;
  }
  tensor.requires_grad_(state.at("requires_grad").get<bool>());
  const std::string kind = state.at("kind").get<std::string>();
  TENON_CHECK(kind == "parameter" || kind == "buffer" || kind == "constant", ScheduleError,
              "'{}' is no kind of state", kind.substr(0, 80));
  graph.add_state(kind == "parameter" ? ValueKind::parameter
                  : kind == "buffer"  ? ValueKind::buffer
                                      : ValueKind::constant,
                  name, std::move(tensor));
}

/// The attributes with the device of a random tensor replaced: a schedule may be replayed
/// elsewhere.
Attrs placed(Attrs attrs, const Device& device) {
  for (std::size_t i = 0; i < attrs.size(); ++i) {
    if (attrs.kind(i) == FieldKind::device) attrs = attrs.with(i, device);
  }
  return attrs;
}

/// Where a Graph's nodes run.
Device device_of(const Graph& graph) {
  return graph.order().empty()
             ? kCpu
             : graph.value(graph.node(graph.order()[0]).outputs.at(0)).spec.device;
}

/// Writes the JSON of one edit.
class EditWriter {
 public:
  EditWriter(const Graph& before, const Graph& after, GraphNumbering& numbering)
      : before_(before), after_(after), numbering_(numbering) {}

  json run() {
    write_states();
    write_calls();
    write_nodes();
    write_call_values();
    for (NodeId id : before_.order()) {
      if (!after_.has_node(id)) edit_["removed"].push_back(numbering_.number_of(id));
    }
    write_replaced_values();
    if (before_.outputs() != after_.outputs()) edit_["outputs"] = references(after_.outputs());
    write_state_writes();
    for (std::int32_t region : after_.discarding_regions()) {
      if (!before_.discards_results(region)) edit_["discarding_regions"].push_back(region);
    }
    if (before_.annotations() != after_.annotations()) edit_["notes"] = after_.annotations();
    write_facts();
    return std::move(edit_);
  }

 private:
  json references(const std::vector<ValueId>& ids) const {
    json list = json::array();
    for (ValueId id : ids) list.push_back(numbering_.reference(after_, id));
    return list;
  }

  void write_states() {
    std::set<std::string> known;
    for (ValueId id : before_.values()) {
      if (before_.value(id).tensor) known.insert(before_.value(id).name);
    }
    for (ValueId id : after_.values()) {
      const Value& value = after_.value(id);
      if (value.tensor && !known.contains(value.name)) {
        edit_["states"].push_back(tensor_to_json(value));
      }
    }
  }

  void write_calls() {
    for (const ModuleCall& call : after_.calls()) {
      const auto index = static_cast<std::size_t>(call.id);
      const bool is_new = index >= before_.calls().size();
      if (is_new) numbering_.add_call(call.id);
      const json fields = call_fields(call);
      if (is_new) {
        edit_["calls"].push_back(fields);
        edit_["calls"].back()["parent"] = numbering_.call_number(call.parent);
      } else if (fields != call_fields(before_.call(call.id))) {
        edit_["changed_calls"].push_back(fields);
        edit_["changed_calls"].back()["call"] = numbering_.call_number(call.id);
      }
    }
  }

  static json call_fields(const ModuleCall& call) {
    json fields = {{"path", call.path},    {"type", call.type},       {"repr", call.repr},
                   {"leaf", call.leaf},    {"hooks", call.has_hooks}, {"flattened", call.flattened},
                   {"closed", call.closed}};
    if (call.mode != DropoutMode::follow) fields["mode"] = std::string(enum_name(call.mode));
    return fields;
  }

  /// What code that the primitive recorded asked of the host; its module is not there when the edit
  /// is done again.
  void write_facts() {
    const auto held = after_.facts().held_mode();
    if (held && !before_.facts().held_mode()) edit_["holds_for_training"] = *held;
    if (after_.facts().reads_grad_mode() && !before_.facts().reads_grad_mode()) {
      edit_["reads_grad_mode"] = true;
    }
  }

  void write_call_values() {
    for (const ModuleCall& call : after_.calls()) {
      const auto index = static_cast<std::size_t>(call.id);
      if (index < before_.calls().size() && before_.call(call.id).inputs == call.inputs &&
          before_.call(call.id).outputs == call.outputs) {
        continue;
      }
      edit_["call_values"].push_back({{"call", numbering_.call_number(call.id)},
                                      {"inputs", references(call.inputs)},
                                      {"outputs", references(call.outputs)}});
    }
  }

  void write_nodes() {
    NodeId previous = kNone;
    for (NodeId id : after_.order()) {
      const Node& node = after_.node(id);
      if (before_.has_node(id)) {
        write_change(before_.node(id), node);
      } else {
        numbering_.add_node(id);
        json fields = node_fields(node);
        fields["after"] = previous == kNone ? json() : json(numbering_.number_of(previous));
        fields["op"] = node.op->name;
        fields["call"] = numbering_.call_number(node.call);
        edit_["nodes"].push_back(std::move(fields));
      }
      previous = id;
    }
  }

  void write_change(const Node& before, const Node& after) {
    if (&before == &after) return;  // shared between the two
    json changed;
    const json now = node_fields(after);
    if (before.inputs != after.inputs) changed["inputs"] = now.at("inputs");
    if (!(before.attrs == after.attrs)) changed["attrs"] = now.at("attrs");
    if (before.name != after.name) changed["name"] = after.name;
    if (before.kernel != after.kernel) changed["kernel"] = after.kernel;
    if (before.region != after.region) changed["region"] = after.region;
    if (changed.is_null()) return;
    changed["node"] = numbering_.number_of(after.id);
    edit_["changed_nodes"].push_back(std::move(changed));
  }

  json node_fields(const Node& node) const {
    return {{"inputs", references(node.inputs)},
            {"attrs", attrs_to_json(node.attrs)},
            {"name", node.name},
            {"kernel", node.kernel},
            {"region", node.region}};
  }

  /// What now stands for values of the Graph before, which a listing tells.
  void write_replaced_values() {
    const auto& log = after_.replaced_values();
    const std::size_t first = before_.replaced_values().size();
    const std::unordered_map<ValueId, ValueId> replaced(log.begin() + first, log.end());
    for (auto entry = log.begin() + first; entry != log.end(); ++entry) {
      ValueId now = entry->second;
      for (auto next = replaced.find(now); next != replaced.end(); next = replaced.find(now)) {
        now = next->second;
      }
      const bool gone = before_.has_value(entry->first) && !after_.has_value(entry->first);
      if (!gone || !after_.has_value(now)) continue;
      edit_["replaced"].push_back(
          {numbering_.reference(before_, entry->first), numbering_.reference(after_, now)});
    }
  }

  void write_state_writes() {
    const auto same = [](const StateWrite& a, const StateWrite& b) {
      return a.state == b.state && a.value == b.value;
    };
    const auto& now = after_.writes();
    const auto& old = before_.writes();
    if (std::equal(now.begin(), now.end(), old.begin(), old.end(), same)) return;
    edit_["writes"] = json::array();
    for (const StateWrite& write : now)
      edit_["writes"].push_back(references({write.state, write.value}));
  }

  const Graph& before_;
  const Graph& after_;
  GraphNumbering& numbering_;
  json edit_ = json::object();
};

/// Does to a Graph what the JSON of an edit says.
class EditReader {
 public:
  EditReader(Graph& graph, const json& edit, GraphNumbering& numbering)
      : graph_(graph),
        edit_(edit),
        numbering_(numbering),
        symbols_(size_symbols(graph)),
        device_(device_of(graph)) {}

  void run() {
    for (const json& state : list("states")) add_state(graph_, state);
    for (const json& fields : list("calls")) add_call(fields);
    for (const json& fields : list("changed_calls")) {
      set_call(graph_.mutable_call(numbering_.call_at(fields.at("call"))), fields);
    }
    for (const json& fields : list("nodes")) add_node(fields);
    for (const json& fields : list("changed_nodes")) change_node(fields);
    for (const json& pair : list("replaced")) {
      graph_.replace_all_uses(present(pair.at(0)), present(pair.at(1)));
    }
    if (edit_.contains("outputs")) {
      std::vector<ValueId> outputs;
      for (const json& output : list("outputs")) outputs.push_back(present(output));
      graph_.set_outputs(std::move(outputs));
    }
    if (edit_.contains("writes")) {
      graph_.drop_writes();
      for (const json& write : list("writes")) {
        graph_.set_write(present(write.at(0)), present(write.at(1)));
      }
    }
    remove_nodes();
    for (const json& fields : list("call_values")) {
      ModuleCall& call = graph_.mutable_call(numbering_.call_at(fields.at("call")));
      call.inputs = values(fields.at("inputs"));
      call.outputs = values(fields.at("outputs"));
    }
    for (const auto& [id, name] : names_) graph_.set_name(still_there(id), name);
    for (const json& region : list("discarding_regions")) {
      graph_.discard_results(region_of(region));
    }
    if (edit_.contains("holds_for_training")) {
      graph_.mutable_facts().hold_mode(edit_.at("holds_for_training").get<bool>());
    }
    if (edit_.contains("reads_grad_mode")) graph_.mutable_facts().add_grad_mode();
    if (edit_.contains("notes")) {
      for (const auto& [target, notes] : edit_.at("notes").items()) {
        for (const auto& [key, text] : notes.items()) {
          graph_.annotate(target, key, text.get<std::string>());
        }
      }
    }
  }

 private:
  const json& list(const char* key) const {
    static const json& kEmpty = *new json(json::array());  // never destroyed
    if (!edit_.contains(key)) return kEmpty;
    TENON_CHECK(edit_.at(key).is_array(), ScheduleError, "'{}' is not a list", key);
    return edit_.at(key);
  }
  NodeId still_there(NodeId id) const {
    TENON_CHECK(graph_.has_node(id), ScheduleError,
                "a node is removed twice, or removed and named");
    return id;
  }
  ValueId value(const json& reference) const { return numbering_.value_at(graph_, reference); }
  ValueId present(const json& reference) const {
    TENON_CHECK(!reference.is_null(), ScheduleError, "a value is needed where there is none");
    return value(reference);
  }
  std::vector<ValueId> values(const json& references) const {
    std::vector<ValueId> ids;
    for (const json& reference : references) ids.push_back(value(reference));
    return ids;
  }

  static std::int32_t region_of(const json& number) {
    const int region = to_int(number);
    // Later primitives count on.
    TENON_CHECK(region >= kNone && region < std::numeric_limits<std::int32_t>::max(), ScheduleError,
                "there is no region {}", region);
    return region;
  }

  static void check_operands(const Op& op, const std::vector<ValueId>& operands) {
    const bool variadic = !op.operands.empty() && op.operands.back().variadic;
    const bool fits =
        variadic ? operands.size() >= op.operands.size() : operands.size() == op.operands.size();
    TENON_CHECK(fits, ScheduleError, "[{}] {} operands given; needed {}", op.name, operands.size(),
                op.operands.size());
    for (std::size_t i = 0; i < operands.size(); ++i) {
      const Operand& operand = op.operands[std::min(i, op.operands.size() - 1)];
      TENON_CHECK(operands[i] != kNone || operand.optional, ScheduleError,
                  "[{}] operand '{}' is absent", op.name, operand.name);
    }
  }

  static void set_call(ModuleCall& call, const json& fields) {
    call.path = fields.at("path").get<std::string>();
    call.type = fields.at("type").get<std::string>();
    call.repr = fields.at("repr").get<std::string>();
    call.leaf = fields.at("leaf").get<bool>();
    call.has_hooks = fields.at("hooks").get<bool>();
    call.flattened = fields.at("flattened").get<bool>();
    call.closed = fields.at("closed").get<bool>();
    call.mode = parse_enum(DropoutMode{}, fields.value("mode", "follow"));
  }

  void add_call(const json& fields) {
    ModuleCall call;
    set_call(call, fields);
    call.parent = numbering_.call_at(fields.at("parent"));
    numbering_.add_call(graph_.add_call(std::move(call)));
  }

  void add_node(const json& fields) {
    const json& after = fields.at("after");
    const std::size_t position =
        after.is_null() ? 0 : graph_.position(numbering_.node_at(graph_, after)) + 1;
    const Op& op = get_op(fields.at("op").get<std::string>());
    std::vector<ValueId> inputs = values(fields.at("inputs"));
    check_operands(op, inputs);
    const NodeId id = graph_.add_node(
        op, std::move(inputs), placed(attrs_from_json(fields.at("attrs"), symbols_), device_),
        numbering_.call_at(fields.at("call")), position);
    numbering_.add_node(id);
    set_marks(id, fields);
  }

  void change_node(const json& fields) {
    const NodeId id = numbering_.node_at(graph_, fields.at("node"));
    if (fields.contains("inputs")) {
      const std::vector<ValueId> inputs = values(fields.at("inputs"));
      TENON_CHECK(inputs.size() == graph_.node(id).inputs.size(), ScheduleError,
                  "{} has {} operands, not {}", graph_.full_name(id), graph_.node(id).inputs.size(),
                  inputs.size());
      check_operands(*graph_.node(id).op, inputs);
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        graph_.set_operand(id, static_cast<int>(i), inputs[i]);
      }
    }
    if (fields.contains("attrs")) {
      const Attrs attrs = placed(attrs_from_json(fields.at("attrs"), symbols_), device_);
      TENON_CHECK(attrs.type_name() == graph_.node(id).attrs.type_name(), ScheduleError,
                  "{} has attributes of type '{}', not '{}'", graph_.full_name(id),
                  graph_.node(id).attrs.type_name(), attrs.type_name());
      for (std::size_t i = 0; i < attrs.size(); ++i) graph_.set_attribute(id, i, attrs.value(i));
    }
    set_marks(id, fields);
  }

  void set_marks(NodeId id, const json& fields) {
    if (fields.contains("name")) names_.emplace_back(id, fields.at("name").get<std::string>());
    if (fields.contains("kernel")) graph_.bind_kernel(id, fields.at("kernel").get<std::string>());
    if (fields.contains("region")) graph_.set_region(id, region_of(fields.at("region")));
  }

  void remove_nodes() {
    std::vector<NodeId> removed;
    for (const json& number : list("removed")) {
      removed.push_back(numbering_.node_at(graph_, number));
    }
    std::sort(removed.begin(), removed.end(),
              [&](NodeId a, NodeId b) { return graph_.position(a) > graph_.position(b); });
    for (NodeId id : removed) graph_.erase_node(still_there(id));
  }

  Graph& graph_;
  const json& edit_;
  GraphNumbering& numbering_;
  const SizeSymbols symbols_;
  const Device device_;
  std::vector<std::pair<NodeId, std::string>> names_;
};

}  // namespace

GraphNumbering::GraphNumbering(const Graph& traced) {
  for (NodeId id : traced.order()) add_node(id);
  for (const ModuleCall& call : traced.calls()) add_call(call.id);
}

void GraphNumbering::add_node(NodeId id) {
  numbers_[id] = static_cast<int>(nodes_.size());
  nodes_.push_back(id);
}

void GraphNumbering::add_call(CallId id) {
  call_numbers_[id] = static_cast<int>(calls_.size());
  calls_.push_back(id);
}

NodeId GraphNumbering::node_at(const Graph& graph, const json& number) const {
  const int index = to_int(number);
  TENON_CHECK(index >= 0 && static_cast<std::size_t>(index) < nodes_.size(), ScheduleError,
              "there is no node {}", index);
  const NodeId id = nodes_[static_cast<std::size_t>(index)];
  TENON_CHECK(graph.has_node(id), ScheduleError, "node {} is gone", index);
  return id;
}

CallId GraphNumbering::call_at(const json& reference) const {
  const int number = to_int(reference);
  TENON_CHECK(number >= 0 && static_cast<std::size_t>(number) < calls_.size(), ScheduleError,
              "there is no module call {}", number);
  return calls_[static_cast<std::size_t>(number)];
}

json GraphNumbering::reference(const Graph& graph, ValueId id) const {
  if (id == kNone) return {};
  const Value& value = graph.value(id);
  if (value.tensor) return "%" + value.name;
  if (value.kind == ValueKind::input) {
    const auto& inputs = graph.inputs();
    return fmt::format("i{}", std::find(inputs.begin(), inputs.end(), id) - inputs.begin());
  }
  const std::string node = fmt::format("n{}", number_of(value.producer));
  return value.output_index == 0 ? node : fmt::format("{}:{}", node, value.output_index);
}

ValueId GraphNumbering::value_at(const Graph& graph, const json& reference) const {
  if (reference.is_null()) return kNone;
  const std::string text = reference.get<std::string>();
  if (text.starts_with("%")) {
    for (ValueId id : graph.values()) {
      if (graph.value(id).tensor && graph.value(id).name == text.substr(1)) return id;
    }
    fail<ScheduleError>("there is no state {}", text.substr(0, 80));
  }
  if (text.starts_with("i")) {
    const auto index = static_cast<std::size_t>(parse_reference(text).first);
    TENON_CHECK(index < graph.inputs().size(), ScheduleError, "there is no input {}",
                text.substr(0, 80));
    return graph.inputs()[index];
  }
  TENON_CHECK(text.starts_with("n"), ScheduleError, "'{}' is no reference to a value",
              text.substr(0, 80));
  const auto [number, output] = parse_reference(text);
  const NodeId id = node_at(graph, number);
  TENON_CHECK(static_cast<std::size_t>(output) < graph.node(id).outputs.size(), ScheduleError,
              "there is no value {}", text.substr(0, 80));
  return graph.node(id).outputs[static_cast<std::size_t>(output)];
}

json describe_edit(const Graph& before, const Graph& after, GraphNumbering& numbering) {
  return EditWriter(before, after, numbering).run();
}

void apply_edit(Graph& graph, const json& edit, GraphNumbering& numbering) {
  EditReader(graph, edit, numbering).run();
}

std::vector<std::string> structure_lines(const Graph& traced) {
  constexpr const char* kKinds[] = {"input", "parameter", "buffer", "constant"};
  const auto described = [&](ValueId id) {
    const Value& value = traced.value(id);
    return fmt::format("{} {}{}", kKinds[static_cast<int>(value.kind)], value.name,
                       value.spec.shape.to_string());
  };
  std::vector<std::string> lines;
  for (ValueId id : traced.inputs()) lines.push_back(described(id));
  for (ValueId id : traced.values()) {
    if (traced.value(id).tensor) lines.push_back(described(id));
  }
  for (const ModuleCall& call : traced.calls()) {
    lines.push_back(fmt::format("module '{}': {}({})", call.path, call.type, call.repr));
  }
  for (NodeId id : traced.order()) {
    const Node& node = traced.node(id);
    std::string line = fmt::format("{} = {}(", traced.full_name(id), node.op->name);
    for (ValueId input : node.inputs) {
      line += input == kNone ? "none, " : traced.value_name(input) + ", ";
    }
    line += placed(node.attrs, kCpu).to_string() + ")";
    for (ValueId output : node.outputs) line += " " + traced.value(output).spec.shape.to_string();
    lines.push_back(std::move(line));
  }
  for (const StateWrite& write : traced.writes()) {
    lines.push_back(fmt::format("write {} <- {}", traced.value_name(write.state),
                                traced.value_name(write.value)));
  }
  std::string returned = "return";
  for (ValueId id : traced.outputs()) returned += " " + traced.value_name(id);
  lines.push_back(std::move(returned));
  return lines;
}

}  // namespace tenon::detail
