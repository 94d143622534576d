// All committed operator cases, on the CPU and, where there is one, on the GPU. The GPU's tests are
// in a suite of their own, so that they can run as a separate, labelled entry.
#include "tests/conformance/conformance.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tensor/device_backend.h"
#include "tests/support/test_data.h"

namespace tenon::conformance {
namespace {

void run_all(Device device) {
  int passed = 0;
  for (const CaseFile& file : read_cases(test::test_data("conformance"))) {
    for (const auto& test_case : file.cases) {
      const Outcome outcome = run_case(file.op, test_case, device);
      if (outcome.status == Status::passed) ++passed;
      EXPECT_EQ(outcome.status, Status::passed) << outcome.name << ": " << outcome.reason;
    }
  }
  EXPECT_EQ(passed, 1271);
}

TEST(ConformanceCpu, CommittedCasesPass) { run_all(kCpu); }

TEST(ConformanceCuda, CommittedCasesPass) {
  if (!is_available(kCuda)) GTEST_SKIP() << "no CUDA device, or built without CUDA";
  run_all(kCuda);
}

nlohmann::json relu_case() {
  return nlohmann::json::parse(R"({
    "name": "relu_by_hand", "attrs": {}, "rtol": 0, "atol": 1e-6,
    "inputs": [{"dtype": "float32", "shape": [2, 2], "data": [-1, 2, "nan", "inf"],
                "layout": "reversed_axes"}],
    "outputs": [{"dtype": "float32", "shape": [2, 2], "data": [0, 2, "nan", "inf"]}],
    "cotangents": [{"dtype": "float32", "shape": [2, 2], "data": [3, 4, 5, 6],
                    "layout": "reversed_axes"}],
    "grads": [{"dtype": "float32", "shape": [2, 2], "data": [0, 4, 5, 6]}]})");
}

TEST(ConformanceCpu, ACorrectCasePasses) {
  EXPECT_EQ(run_case("relu", relu_case(), kCpu).status, Status::passed);
}

TEST(ConformanceCpu, AWrongValueFails) {
  auto test_case = relu_case();
  test_case["outputs"][0]["data"][1] = 2.00001;
  const Outcome outcome = run_case("relu", test_case, kCpu);
  EXPECT_EQ(outcome.status, Status::failed);
  EXPECT_NE(outcome.reason.find("element 1: got 2; expected 2.00001"), std::string::npos)
      << outcome.reason;
}

TEST(ConformanceCpu, AWrongShapeOrDtypeFails) {
  auto test_case = relu_case();
  test_case["outputs"][0]["shape"] = {4};
  EXPECT_EQ(run_case("relu", test_case, kCpu).status, Status::failed);
  test_case = relu_case();
  test_case["outputs"][0]["dtype"] = "float64";
  EXPECT_EQ(run_case("relu", test_case, kCpu).status, Status::failed);
}

TEST(ConformanceCpu, AWrongGradientFailsBesideAWrongOutput) {
  auto test_case = relu_case();
  test_case["grads"][0]["data"][1] = 4.5;
  EXPECT_EQ(run_case("relu", test_case, kCpu).reason,
            "gradient 0: 1 of 4 elements differ, element 1: got 4; expected 4.5");
  test_case["outputs"][0]["data"][1] = 3;
  EXPECT_EQ(run_case("relu", test_case, kCpu).reason,
            "output 0: 1 of 4 elements differ, element 1: got 2; expected 3; "
            "gradient 0: 1 of 4 elements differ, element 1: got 4; expected 4.5");
}

TEST(ConformanceCpu, AMissingOrUnexpectedGradientFails) {
  auto test_case = relu_case();
  test_case["grads"].push_back(test_case["grads"][0]);
  EXPECT_EQ(run_case("relu", test_case, kCpu).reason, "1 gradients; expected 2");
  test_case = relu_case();
  test_case["cotangents"] = nlohmann::json::array();
  EXPECT_EQ(run_case("relu", test_case, kCpu).reason, "1 outputs for 0 cotangents");
  test_case = relu_case();
  test_case["cotangents"][0]["shape"] = {4};
  EXPECT_TRUE(run_case("relu", test_case, kCpu).reason.starts_with("backward: "));
}

TEST(ConformanceCpu, ArgumentsInAnyOfPyTorchsSpellings) {
  const auto run = [](const char* op, const char* attrs, const char* output) {
    auto test_case = relu_case();
    test_case.erase("grads");
    test_case["inputs"][0]["data"] = {1, 2, 3, 4};
    test_case["attrs"] = nlohmann::json::parse(attrs);
    test_case["outputs"] = {nlohmann::json::parse(output)};
    return run_case(op, test_case, kCpu).reason;
  };
  const char* same = R"({"dtype": "float32", "shape": [2, 2], "data": [1, 2, 3, 4]})";
  EXPECT_EQ(run("relu", R"({"inplace": false})", same), "");
  EXPECT_EQ(run("squeeze", R"({"dim": null})", same), "");
  EXPECT_EQ(run("squeeze", R"({"dim": [0, -1]})", same), "");
  EXPECT_EQ(run("reshape", R"({"shape": [2, -1]})", same), "");
  EXPECT_EQ(run("sum", R"({"dim": null, "keepdim": false, "dtype": "float64"})",
                R"({"dtype": "float64", "shape": [], "data": [10]})"),
            "");
  EXPECT_EQ(run("le", R"({"other": "inf"})",
                R"({"dtype": "bool", "shape": [2, 2], "data": [true, true, true, true]})"),
            "");
  EXPECT_EQ(run("le", R"({"other": "many"})", same), "'many' is not a number");
}

TEST(ConformanceCpu, UnknownOpsAndOptionsAreSkipped) {
  EXPECT_EQ(run_case("conv9d", relu_case(), kCpu).reason, "there is no op 'conv9d'");
  auto test_case = relu_case();
  test_case["attrs"]["inplace"] = true;
  const Outcome outcome = run_case("relu", test_case, kCpu);
  EXPECT_EQ(outcome.status, Status::skipped);
  EXPECT_EQ(outcome.reason, "without option 'inplace'");
}

TEST(ConformanceCpu, AMalformedCaseFails) {
  EXPECT_EQ(run_case("relu", nlohmann::json::object(), kCpu).status, Status::failed);
  EXPECT_EQ(run_case("relu", nlohmann::json(3), kCpu).status, Status::failed);
}

}  // namespace
}  // namespace tenon::conformance
