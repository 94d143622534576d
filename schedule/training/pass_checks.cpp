#include "schedule/training/pass_checks.h"

#include <algorithm>

#include "tensor/support/check.h"

namespace tenon::detail {

void PassChecks::compare(const char* pass, const Graph& before, const Graph& after) {
  const std::size_t agreed_before = agreed_.size();
  const VerifyReport report = verify_graphs(before, after, {}, {.eval = false}, &agreed_);
  milliseconds_ += report.milliseconds;
  TENON_CHECK(report.ok(), VerificationError,
              "{} refused: the pass {} changes the results of the step; it can be switched off "
              "(JointPasses)\n{}",
              caller_, pass, report.to_string());
  if (report.regions == 0) return;
  auto count = std::find_if(counts_.begin(), counts_.end(),
                            [&](const Count& known) { return known.pass == pass; });
  if (count == counts_.end()) count = counts_.insert(count, {pass});
  count->regions += report.regions;
  count->structures += agreed_.size() - agreed_before;
  results_ += report.results.size();
  left_out_ += report.left_out.size();
  not_compared_ += report.not_compared.size();
}

std::size_t PassChecks::regions() const {
  std::size_t sum = 0;
  for (const Count& count : counts_) sum += count.regions;
  return sum;
}

std::string PassChecks::summary() const {
  if (counts_.empty()) {
    return fmt::format("passes: nothing was rewritten ({:.1f} ms)", milliseconds_);
  }
  std::vector<std::string> texts;
  for (const Count& count : counts_) {
    texts.push_back(fmt::format("{} {} of {}", count.pass, count.regions, count.structures));
  }
  return fmt::format(
      "passes: verified {} rewritten region{} (by structures: {}): {} results agree, {} not "
      "compared, {} left out; {:.1f} ms",
      regions(), regions() == 1 ? "" : "s", fmt::join(texts, ", "), results_, not_compared_,
      left_out_, milliseconds_);
}

}  // namespace tenon::detail
