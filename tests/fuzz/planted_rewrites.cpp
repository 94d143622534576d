// Wrong rewrites that the IR verifier accepts, against schedule verification; and, for comparison,
// against a forward check in eval mode on one input (relative tolerance 1e-5). Then right ones, which
// it must accept.
//
//   planted_rewrites [--json] [--filter TEXT]
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>

#include "examples/command_line.h"
#include "graph/verify.h"
#include "schedule/verification.h"
#include "tensor/error.h"
#include "tensor/random.h"
#include "tests/fuzz/planted.h"

namespace tenon::fuzz {

std::vector<Planted> all_planted() {
  std::vector<Planted> all;
  for (const auto& list : {planted_in_attention(), planted_in_models(), planted_in_values(),
                           planted_in_state(), planted_in_layers(), planted_out_of_reach()}) {
    all.insert(all.end(), list.begin(), list.end());
  }
  return all;
}

}  // namespace tenon::fuzz

namespace {

using namespace tenon;

std::vector<Tensor> one_input(const Graph& graph) {
  Generator generator(1);
  std::vector<Tensor> inputs;
  for (const ValueId id : graph.inputs()) {
    const TensorSpec& spec = graph.value(id).spec;
    Shape shape;
    for (const Dim& size : spec.shape) shape.push_back(size.hint());
    inputs.push_back(is_floating(spec.dtype)
                         ? randn(shape, {spec.dtype, kCpu}, &generator)
                         : cast(uniform(shape, 0, 2, {}, &generator), spec.dtype));
  }
  return inputs;
}

bool all_close(const Tensor& a, const Tensor& b) {
  const auto x = a.to_doubles();
  const auto y = b.to_doubles();
  if (x.size() != y.size()) return false;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i]) && std::isnan(y[i])) continue;
    if (!(std::abs(x[i] - y[i]) <= 1e-8 + 1e-5 * std::abs(y[i]))) return false;
  }
  return true;
}

/// What a check of outputs alone sees.
bool forward_differs(const Graph& plain, const Graph& wrong) {
  const std::vector<Tensor> inputs = one_input(plain);
  std::vector<TensorSpec> specs;
  for (const Tensor& input : inputs) specs.push_back(input.spec());
  const auto expected = lower(plain, specs)->run(inputs);
  const auto given = lower(wrong, specs)->run(inputs);
  if (expected.size() != given.size()) return true;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (!all_close(given[i], expected[i])) return true;
  }
  return false;
}

/// The first finding of a report, in a few words.
std::string finding(const VerifyReport& report) {
  if (!report.errors.empty()) return report.errors[0];
  if (!report.masks_missing.empty()) return "mask not drawn: " + report.masks_missing[0];
  for (const Comparison& c : report.results) {
    if (!c.ok) return c.name + " (" + c.trial + ", " + (c.training ? "training" : "eval") + ")";
  }
  return "nothing";
}

struct Count {
  int planted = 0;
  int caught = 0;
  int forward_only = 0;
  int legal = 0;
  int accepted = 0;
};

/// A scene's schedule, and its Graph after the edit.
struct Edited {
  Schedule schedule;
  Graph graph;
};

Edited edited(const fuzz::Planted& planted) {
  Schedule schedule = planted.scene();
  const VerifyReport clean = verify(schedule);
  if (!clean.ok()) {
    throw VerificationError("false alarm before '" + std::string(planted.name) + "' is planted:\n" +
                            clean.to_string());
  }
  Graph graph = schedule.graph();
  fuzz::GraphEdit edit(graph);
  planted.edit(edit);
  graph.eliminate_dead_code();
  verify(graph);  // well-formed, or it would be no test of schedule verification
  return {std::move(schedule), std::move(graph)};
}

void try_one(const fuzz::Planted& planted, Count& count, std::ostream& out) {
  auto [schedule, wrong] = edited(planted);
  const bool by_forward = forward_differs(schedule.graph(), wrong);
  const VerifyReport report = verify(fuzz::with_graph(schedule, std::move(wrong)));
  ++count.planted;
  count.caught += !report.ok();
  count.forward_only += by_forward;
  out << (report.ok() ? "MISSED " : "caught ") << (by_forward ? "forward " : "        ")
      << planted.name << ": " << finding(report) << "\n";
  if (report.ok()) std::cerr << report.to_string();
}

void try_legal(const fuzz::Planted& planted, Count& count, std::ostream& out) {
  auto [schedule, right] = edited(planted);
  const VerifyReport report = verify(fuzz::with_graph(schedule, std::move(right)));
  ++count.legal;
  count.accepted += report.ok();
  out << (report.ok() ? "accepted        " : "REFUSED         ") << planted.name
      << (report.ok() ? "" : ": " + finding(report)) << "\n";
  if (!report.ok()) std::cerr << report.to_string();
}

using Try = void (*)(const fuzz::Planted&, Count&, std::ostream&);

/// How many could not be tried.
int try_all(const std::vector<fuzz::Planted>& list, Try try_it, const std::string& filter,
            Count& count, std::ostream& out) {
  int failed = 0;
  for (const fuzz::Planted& planted : list) {
    if (std::string(planted.name).find(filter) == std::string::npos) continue;
    try {
      try_it(planted, count, out);
    } catch (const std::exception& error) {
      ++failed;
      std::cerr << "error: " << planted.name << ": " << error.what() << "\n";
    }
  }
  return failed;
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line("Tries wrong rewrites on schedule verification");
  bool json = false;
  std::string filter;
  line.flag("--json", json, "one JSON object on stdout; everything else on stderr");
  line.option("--filter", filter, "only rewrites whose name contains this");
  line.footer("Exit status: 0 all are caught and all right ones accepted; 1 not so; 2 an error.");
  if (const auto status = line.parse(argc, argv)) return *status;
  std::ostream& out = json ? std::cerr : std::cout;
  Count count;
  const int failed = try_all(fuzz::all_planted(), try_one, filter, count, out) +
                     try_all(fuzz::planted_legal(), try_legal, filter, count, out);
  if (json) {
    const nlohmann::ordered_json object = {{"planted", count.planted},
                                           {"caught", count.caught},
                                           {"caught_forward_only", count.forward_only},
                                           {"legal", count.legal},
                                           {"accepted", count.accepted}};
    std::cout << object.dump() << std::endl;
  } else {
    out << count.caught << " of " << count.planted
        << " caught; a forward check in eval mode catches " << count.forward_only << "\n"
        << count.accepted << " of " << count.legal << " right ones accepted\n";
  }
  if (failed > 0) return 2;
  return count.caught == count.planted && count.accepted == count.legal ? 0 : 1;
}
