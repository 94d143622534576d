// Right rewrites that verification must accept, by regions and as a whole, and build with it.
#include <gtest/gtest.h>

#include "schedule/verification.h"
#include "tensor/random.h"
#include "tests/schedule/findings.h"

namespace tenon::test {

class LegalRewrite : public ::testing::TestWithParam<Finding> {
 protected:
  void SetUp() override { manual_seed(20261122); }
};

TEST_P(LegalRewrite, IsAccepted) {
  const Schedule sch = GetParam().make();
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
  EXPECT_NO_THROW(build(sch));
}

TEST_P(LegalRewrite, IsAcceptedInTheWholeModel) {
  const VerifyReport report = verify(GetParam().make(), {.whole = true});
  EXPECT_TRUE(report.ok()) << report.to_string();
}

INSTANTIATE_TEST_SUITE_P(Proof, LegalRewrite, ::testing::ValuesIn(legal_by_proof()), name_of);
INSTANTIATE_TEST_SUITE_P(Spelling, LegalRewrite, ::testing::ValuesIn(legal_spellings()), name_of);
INSTANTIATE_TEST_SUITE_P(Masks, LegalRewrite, ::testing::ValuesIn(legal_masks()), name_of);
INSTANTIATE_TEST_SUITE_P(IntegersAndState, LegalRewrite,
                         ::testing::ValuesIn(legal_integers_and_state()), name_of);

}  // namespace tenon::test
