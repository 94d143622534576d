#include "schedule/schedule_json.h"

#include <nlohmann/json.hpp>

#include "schedule/rewriting/state.h"
#include "schedule/saving/graph_edit.h"
#include "tensor/support/check.h"
#include "tensor/support/json_stream.h"

namespace tenon {
namespace {

using nlohmann::json;

constexpr const char* kFormat = "tenon.schedule";
constexpr int kVersion = 1;

/// The text as a tree, after the strict reader passed it: no duplicate keys, no deep nesting.
json parse(const std::string& text) {
  try {
    text::JsonReader reader(text, "load_schedule");
    reader.skip();
    reader.finish();
    return json::parse(text);
  } catch (const CheckpointError& error) {
    throw ScheduleError(error.what());
  } catch (const json::exception& error) {
    detail::fail<ScheduleError>("load_schedule: {}", error.what());
  }
}

void check_header(const json& root) {
  TENON_CHECK(root.is_object() && root.value("format", "") == kFormat, ScheduleError,
              "load_schedule: this is no schedule; needed \"format\": \"{}\"", kFormat);
  TENON_CHECK(root.at("version") == kVersion, ScheduleError,
              "load_schedule: version {} is not known; needed {}", root.at("version").dump(),
              kVersion);
}

void check_structure(const json& saved, const Graph& traced) {
  const std::vector<std::string> lines = detail::structure_lines(traced);
  for (std::size_t i = 0; i < std::max(lines.size(), saved.size()); ++i) {
    const std::string theirs = i < saved.size() ? saved.at(i).get<std::string>() : "nothing more";
    const std::string ours = i < lines.size() ? lines[i] : "nothing more";
    TENON_CHECK(theirs == ours, ScheduleError,
                "load_schedule: the schedule was made for a model of another structure; the first "
                "difference: it has `{}`, this model `{}`",
                theirs.substr(0, 300), ours);
  }
}

/// "[a, b, … 24 in all]": bracketed lists with at most `shown` items each, less inside of them.
std::string abbreviated(const std::string& text, std::size_t& at, std::size_t shown) {
  std::string result = "[";
  std::size_t items = 0;
  std::string item;
  const auto end_item = [&] {
    if (++items <= shown) result += (items > 1 ? "," : "") + item;
    item.clear();
  };
  int depth = 0;  // of parentheses
  for (++at; at < text.size(); ++at) {
    const char c = text[at];
    if (c == ']') break;
    if (c == '[') {
      item += abbreviated(text, at, 3);
    } else if (c == ',' && depth == 0) {
      end_item();
    } else {
      depth += c == '(' ? 1 : c == ')' ? -1 : 0;
      item += c;
    }
  }
  end_item();
  return result + (items > shown ? fmt::format(", … {} in all]", items) : "]");
}

/// Long lists of matches, which open a step's detail, are cut to the first match and their number.
std::string readable(const std::string& detail) {
  constexpr std::size_t kLong = 80;
  if (detail.size() <= kLong || !detail.starts_with("[[")) return detail;
  std::size_t end = 0;
  const std::string matches = abbreviated(detail, end, 1);
  return matches + detail.substr(std::min(end + 1, detail.size()));
}

}  // namespace

std::string save_schedule(const Schedule& schedule) {
  detail::GraphNumbering numbering(schedule.original());
  json root = {{"format", kFormat},
               {"version", kVersion},
               {"model", schedule.model().type_name()},
               {"structure", detail::structure_lines(schedule.original())},
               {"steps", json::array()}};
  for (std::size_t i = 0; i < schedule.applied().size(); ++i) {
    const AppliedPrimitive& step = schedule.applied()[i];
    root["steps"].push_back(
        {{"primitive", step.primitive},
         {"path", step.path},
         {"detail", step.detail},
         {"edit", detail::describe_edit(schedule.graph_before(i), schedule.graph_before(i + 1),
                                        numbering)}});
  }
  return root.dump(1) + "\n";
}

void load_schedule(Schedule& schedule, const std::string& text) {
  TENON_CHECK(schedule.applied().empty(), ScheduleError,
              "load_schedule: {} primitives were applied to this schedule already; load into a "
              "fresh one",
              schedule.applied().size());
  const json root = parse(text);
  try {
    check_header(root);
    check_structure(root.at("structure"), schedule.original());
    detail::GraphNumbering numbering(schedule.original());
    for (const json& step : root.at("steps")) {
      schedule.apply_edit(
          {step.at("primitive").get<std::string>(), step.at("path").get<std::string>(),
           step.at("detail").get<std::string>()},
          [&](Graph& graph) { detail::apply_edit(graph, step.at("edit"), numbering); });
    }
  } catch (const json::exception& error) {
    while (!schedule.applied().empty()) schedule.undo();
    detail::fail<ScheduleError>("load_schedule: a part is missing or of another type: {}",
                                error.what());
  } catch (...) {
    while (!schedule.applied().empty()) schedule.undo();
    throw;
  }
}

std::string list_steps(const Schedule& schedule) {
  std::string text;
  for (std::size_t i = 0; i < schedule.applied().size(); ++i) {
    const AppliedPrimitive& step = schedule.applied()[i];
    text += fmt::format("{}. {}{}{}\n", i + 1, step.primitive,
                        step.path.empty() ? "" : fmt::format(" on '{}'", step.path),
                        step.detail.empty() ? "" : ": " + readable(step.detail));
  }
  return text;
}

}  // namespace tenon
