// Numbers as operands on the GPU: integers arrive exactly and everything is rounded once, so results
// are those of the CPU bit for bit.
#include <bit>
#include <limits>

#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace cuda_number_test {

constexpr std::int64_t kLarge = (std::int64_t{1} << 53) + 1;  // no double
constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kMin = std::numeric_limits<std::int64_t>::min();
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// Bits of the elements; all NaN are one.
std::vector<std::uint64_t> bits_of(const Tensor& tensor) {
  std::vector<std::uint64_t> bits;
  if (is_floating(tensor.dtype())) {
    for (const double value : tensor.to_doubles()) {
      bits.push_back(std::isnan(value) ? 0x7ff8ULL << 48 : std::bit_cast<std::uint64_t>(value));
    }
  } else {
    for (const std::int64_t value : tensor.cpu().to(DType::int64).to_vector<std::int64_t>()) {
      bits.push_back(static_cast<std::uint64_t>(value));
    }
  }
  return bits;
}

/// f on a CPU tensor and on its copy on the GPU; where one throws, both must.
template <class F>
void expect_same(const Tensor& x, const std::string& what, const F& f) {
  std::string refused;
  Tensor expected;
  try {
    expected = f(x);
  } catch (const Error& error) {
    refused = error.what();
  }
  if (!refused.empty()) {
    EXPECT_THROW(f(x.to(kCuda)), Error) << what << ": " << refused;
    return;
  }
  const Tensor got = f(x.to(kCuda));
  EXPECT_EQ(got.dtype(), expected.dtype()) << what;
  EXPECT_EQ(bits_of(got), bits_of(expected)) << what;
}

/// Values around the edges of a dtype, 67 of them, so that vectors and single elements occur.
Tensor edges(DType dtype) {
  const Number seeds[] = {0,   1,      2,    3,    -1,   44,  254,  255,   256,
                          300, kLarge, kMax, kMin, -3.5, 0.1, 1e-3, 65504, kLarge - 1};
  std::vector<Tensor> parts;
  for (int i = 0; i < 67; ++i) {
    parts.push_back(full({1}, seeds[static_cast<std::size_t>(i) % std::size(seeds)], {dtype}));
  }
  return cat(parts);
}

const std::vector<Scalar>& numbers() {
  static const std::vector<Scalar> list = {0,
                                           1,
                                           2,
                                           3,
                                           44,
                                           255,
                                           256,
                                           300,
                                           -1,
                                           kLarge,
                                           kLarge - 1,
                                           kMax,
                                           kMin,
                                           0.5,
                                           -0.5,
                                           255.5,
                                           1e30,
                                           kInf,
                                           -kInf,
                                           kNan,
                                           -0.0,
                                           0.1,
                                           1 + 0x1p-11 + 0x1p-40,
                                           1 + 0x1p-8 + 0x1p-40,
                                           (std::int64_t{1} << 60) + (1LL << 36) + 1};
  return list;
}

constexpr DType kDTypes[] = {DType::float32, DType::float64, DType::float16, DType::bfloat16,
                             DType::int64,   DType::int32,   DType::uint8,   DType::boolean};

TEST(CudaNumbers, ArithmeticIsTheCpusBitForBit) {
  SKIP_WITHOUT_GPU();
  using Binary = Tensor (*)(const Tensor&, const Scalar&);
  const std::pair<const char*, Binary> ops[] = {{"add", add}, {"sub", sub}, {"rsub", rsub},
                                                {"mul", mul}, {"div", div}, {"rdiv", rdiv}};
  for (const DType dtype : kDTypes) {
    const Tensor x = edges(dtype);
    for (const auto& [op, call] : ops) {
      for (const Scalar& number : numbers()) {
        const std::string what =
            std::string(op) + " " + number.to_string() + " " + std::string(name(dtype));
        expect_same(x, what, [&](const Tensor& in) { return call(in, number); });
      }
    }
  }
}

TEST(CudaNumbers, ComparisonsAreExact) {
  SKIP_WITHOUT_GPU();
  using Binary = Tensor (*)(const Tensor&, const Scalar&);
  const std::pair<const char*, Binary> ops[] = {{"eq", eq}, {"ne", ne}, {"lt", lt},
                                                {"le", le}, {"gt", gt}, {"ge", ge}};
  for (const DType dtype : kDTypes) {
    const Tensor x = edges(dtype);
    for (const auto& [op, call] : ops) {
      for (const Scalar& number : numbers()) {
        const std::string what =
            std::string(op) + " " + number.to_string() + " " + std::string(name(dtype));
        expect_same(x, what, [&](const Tensor& in) { return call(in, number); });
      }
    }
  }
  const Tensor ids = tensor({kLarge - 1, kLarge, kLarge + 1}, {3}, {DType::int64}).to(kCuda);
  EXPECT_EQ(eq(ids, kLarge).to_doubles(), (std::vector<double>{0, 1, 0}));
}

TEST(CudaNumbers, FilledElementsAreRoundedOnce) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kDTypes) {
    const Tensor x = edges(dtype);
    for (const Scalar& number : numbers()) {
      const std::string what = number.to_string() + " as " + std::string(name(dtype));
      expect_same(x, "masked_fill of " + what,
                  [&](const Tensor& in) { return masked_fill(in, eq(in, in), number); });
      const TensorOptions on_gpu{dtype, kCuda};
      EXPECT_EQ(bits_of(full({9}, number, on_gpu)), bits_of(full({9}, number, {dtype}))) << what;
    }
  }
}

TEST(CudaNumbers, CastsOfIntegersRoundOnce) {
  SKIP_WITHOUT_GPU();
  const std::int64_t middle = (std::int64_t{1} << 62) + (std::int64_t{1} << 54);
  const Tensor x = tensor({middle, middle + 1, middle - 1, -middle - 1, -middle + 1, kLarge, kMax,
                           kMin, (std::int64_t{1} << 60) + (1LL << 36) + 1},
                          {9}, {DType::int64});
  for (const DType dtype : kDTypes) {
    expect_same(x, std::string(name(dtype)), [&](const Tensor& in) { return in.to(dtype); });
  }
  EXPECT_EQ(x.to(kCuda).narrow(0, 5, 1).item<std::int64_t>(), kLarge);
  EXPECT_THROW(x.to(kCuda).narrow(0, 5, 1).item<std::int32_t>(), ValueError);
}

TEST(CudaNumbers, CompoundOperatorsWriteTheSameMemory) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloats) {
    const Tensor start = edges(dtype).view({67, 1}).expand({67, 5}).contiguous();
    expect_same(start, std::string(name(dtype)), [](const Tensor& in) {
      Tensor x = in.clone();
      const Tensor view = x.narrow(0, 1, 3);
      x += 0.5;
      x -= x.narrow(1, 0, 1).clone();
      x *= 3;
      x /= 7.0;
      x.narrow(1, 2, 2) += 1;
      return cat({x, view});
    });
  }
}

}  // namespace cuda_number_test
}  // namespace tenon::test
