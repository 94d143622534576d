#include "graph/profile.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "graph/detail/program_impl.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

/// "blocks.11.attn.fused_3" -> "blocks.*.attn.fused_*".
std::string without_numbers(const std::string& path) {
  std::string general;
  for (std::size_t i = 0; i < path.size(); ++i) {
    const bool starts = i == 0 || path[i - 1] == '.' || path[i - 1] == '_';
    const std::size_t end = std::min(path.find_first_not_of("0123456789", i), path.size());
    if (starts && end > i && (end == path.size() || path[end] == '.')) {
      general += '*';
      i = end - 1;
    } else {
      general += path[i];
    }
  }
  return general;
}

struct Sum {
  int calls = 0;
  double us = 0;
  double bytes = 0;
  double flops = 0;
};

/// Per µs, in units of 1e12 a second.
double tera(double amount, double us) { return us > 0 ? amount / us * 1e-6 : 0; }

std::string table(const std::string& heading, const std::map<std::string, Sum>& sums,
                  double total_us) {
  std::vector<std::pair<std::string, Sum>> rows(sums.begin(), sums.end());
  std::stable_sort(rows.begin(), rows.end(),
                   [](const auto& a, const auto& b) { return a.second.us > b.second.us; });
  std::size_t width = heading.size();
  for (const auto& [name, sum] : rows) width = std::max(width, name.size());
  std::string text = fmt::format("{:{}} {:>6} {:>11} {:>7} {:>7} {:>8}\n", heading, width, "calls",
                                 "us", "share", "TB/s", "TFLOP/s");
  for (const auto& [name, sum] : rows) {
    text += fmt::format("{:{}} {:6} {:11.2f} {:6.1f}% {:7.2f} {:>8}\n", name, width, sum.calls,
                        sum.us, total_us > 0 ? 100 * sum.us / total_us : 0, tera(sum.bytes, sum.us),
                        sum.flops > 0 ? fmt::format("{:.1f}", tera(sum.flops, sum.us)) : "");
  }
  return text;
}

template <class Key>
std::map<std::string, Sum> sums_by(const Profile& profile, const Key& key) {
  std::map<std::string, Sum> sums;
  for (const ProfiledInstruction& one : profile.instructions) {
    Sum& sum = sums[key(one.info)];
    ++sum.calls;
    sum.us += one.duration_us;
    sum.bytes += one.info.bytes;
    sum.flops += one.info.flops;
  }
  return sums;
}

}  // namespace

double Profile::total_us() const {
  double total = 0;
  for (const ProfiledInstruction& one : instructions) total += one.duration_us;
  return total;
}

std::string Profile::to_string() const {
  const double total = total_us();
  const auto module = [](const InstructionInfo& info) {
    return info.module.empty() ? std::string("(outside modules)") : without_numbers(info.module);
  };
  const auto kernel = [](const InstructionInfo& info) { return info.kernel; };
  std::string text =
      fmt::format("{}: {} instructions, {:.2f} us\n", device, instructions.size(), total) +
      table("module", sums_by(*this, module), total) + "\n" +
      table("kernel", sums_by(*this, kernel), total);
  std::vector<InstructionInfo> infos;
  for (const ProfiledInstruction& one : instructions) infos.push_back(one.info);
  for (const std::string& line : slow_paths(infos)) text += "slow: " + line + "\n";
  return text;
}

void Profile::write_chrome_trace(const std::string& path) const {
  using nlohmann::ordered_json;
  ordered_json events = {
      {{"ph", "M"}, {"name", "process_name"}, {"pid", 0}, {"args", {{"name", device}}}},
      {{"ph", "M"},
       {"name", "thread_name"},
       {"pid", 0},
       {"tid", 0},
       {"args", {{"name", "stream 0"}}}}};
  for (const ProfiledInstruction& one : instructions) {
    const InstructionInfo& info = one.info;
    const std::string place = info.module.empty() ? info.name : info.module;
    events.push_back({{"ph", "X"},
                      {"name", place + " " + info.kernel},
                      {"cat", "kernel"},
                      {"pid", 0},
                      {"tid", 0},
                      {"ts", one.start_us},
                      {"dur", one.duration_us},
                      {"args",
                       {{"module", info.module},
                        {"node", info.name},
                        {"kernel", info.kernel},
                        {"bytes", info.bytes},
                        {"flops", info.flops},
                        {"TB/s", tera(info.bytes, one.duration_us)},
                        {"TFLOP/s", tera(info.flops, one.duration_us)}}}});
  }
  const ordered_json trace = {{"displayTimeUnit", "ns"}, {"traceEvents", std::move(events)}};
  std::ofstream file(path);
  file << trace.dump(1) << "\n";
  TENON_CHECK(file.flush().good(), ValueError, "cannot write {}", path);
}

Profile profile(Program& program, std::span<const Tensor> inputs, const ProfileOptions& options,
                Generator& generator) {
  TENON_CHECK(options.runs >= 1, ValueError, "[profile] {} runs; needed at least 1", options.runs);
  const std::vector<InstructionInfo>& infos = program.instructions();
  std::vector<std::vector<double>> durations(infos.size());
  for (int run = 0; run < options.runs; ++run) {
    const std::vector<WorkTime> times = program.time_instructions(inputs, generator);
    for (std::size_t i = 0; i < times.size(); ++i) durations[i].push_back(times[i].duration);
  }
  const Device device = program.device();
  Profile result{device_backend(device.type).device_name(device.index), {}};
  double start = 0;
  for (std::size_t i = 0; i < infos.size(); ++i) {
    const auto middle = durations[i].begin() + options.runs / 2;
    std::nth_element(durations[i].begin(), middle, durations[i].end());
    result.instructions.push_back({infos[i], start, *middle});
    start += *middle;
  }
  return result;
}

}  // namespace tenon
