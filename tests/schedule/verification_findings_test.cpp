// Wrong rewrites that verification must refuse, and build with it.
#include <gtest/gtest.h>

#include "schedule/verification.h"
#include "tensor/random.h"
#include "tests/schedule/findings.h"

namespace tenon::test {
namespace {

class WrongRewrite : public ::testing::TestWithParam<Finding> {
 protected:
  void SetUp() override { manual_seed(20261122); }
};

bool names_a_trial(const VerifyReport& report) {
  const auto fails = [](const Comparison& c) { return !c.ok && !c.trial.empty(); };
  return std::any_of(report.results.begin(), report.results.end(), fails) ||
         !report.errors.empty() || !report.masks_missing.empty() || !report.masks_added.empty();
}

TEST_P(WrongRewrite, IsRefused) {
  const Schedule sch = GetParam().make();
  const VerifyReport report = verify(sch);
  EXPECT_FALSE(report.ok()) << report.to_string();
  EXPECT_TRUE(report.ok() || names_a_trial(report)) << report.to_string();
  EXPECT_THROW(build(sch), VerificationError);
}

class HardlyFinite : public WrongRewrite {};

TEST_P(HardlyFinite, IsNotBuilt) { EXPECT_THROW(build(GetParam().make()), VerificationError); }

class NeverFinite : public WrongRewrite {};

TEST_P(NeverFinite, IsBuiltWhereThatIsAccepted) {
  const Schedule sch = GetParam().make();
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
  EXPECT_FALSE(report.not_compared.empty());
  EXPECT_THROW(build(sch), VerificationError);
  EXPECT_NO_THROW(build(sch, {.accept_uncompared = true}));
}

INSTANTIATE_TEST_SUITE_P(Values, HardlyFinite, ::testing::ValuesIn(hardly_finite()), name_of);
INSTANTIATE_TEST_SUITE_P(Values, NeverFinite, ::testing::ValuesIn(never_finite()), name_of);
INSTANTIATE_TEST_SUITE_P(Sizes, WrongRewrite, ::testing::ValuesIn(wrong_at_sizes()), name_of);
INSTANTIATE_TEST_SUITE_P(Integers, WrongRewrite, ::testing::ValuesIn(wrong_integers()), name_of);
INSTANTIATE_TEST_SUITE_P(Constants, WrongRewrite, ::testing::ValuesIn(wrong_constants()), name_of);
INSTANTIATE_TEST_SUITE_P(BehindOthers, WrongRewrite, ::testing::ValuesIn(wrong_behind_others()),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Kernels, WrongRewrite, ::testing::ValuesIn(wrong_kernels()), name_of);
INSTANTIATE_TEST_SUITE_P(State, WrongRewrite, ::testing::ValuesIn(wrong_state()), name_of);
INSTANTIATE_TEST_SUITE_P(Borders, WrongRewrite, ::testing::ValuesIn(wrong_borders()), name_of);

}  // namespace
}  // namespace tenon::test
