// The same pairs with choices from libFuzzer's bytes: configure with clang and -DTENON_FUZZ=ON, then
// bin/fuzz_target CORPUS_FOLDER.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ostream>

#include "tensor/functional.h"
#include "tests/fuzz/pair.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static std::ostream nowhere(nullptr);  // what the print primitive writes
  tenon::set_print_stream(&nowhere);
  tenon::fuzz::ByteSource source({data, size});
  const tenon::fuzz::PairOptions options{
      .float32 = false, .replay = source.below(4) == 0, .verify = source.below(8) == 0};
  const tenon::fuzz::PairResult result = tenon::fuzz::run_pair(source, options);
  if (result.mismatch.empty()) return 0;
  std::fprintf(stderr, "model: %sschedule:\n", result.program.c_str());
  for (const auto& step : result.steps) std::fprintf(stderr, "  %s\n", step.c_str());
  std::fprintf(stderr, "%s\n", result.mismatch.c_str());
  std::abort();
}
