// float16 conversion by the processor's instructions where it has them.
#include "tensor/support/convert.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace tenon::cpu {

void widen_halves(const Half* source, std::int64_t n, float* target) {
  std::int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm256_storeu_ps(target + i, _mm256_cvtph_ps(halves));
  }
#endif
  for (; i < n; ++i) target[i] = static_cast<float>(source[i]);
}

void narrow_to_halves(const float* source, std::int64_t n, Half* target) {
  std::int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= n; i += 8) {
    const __m256 floats = _mm256_loadu_ps(source + i);
    const __m128i halves = _mm256_cvtps_ph(floats, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i), halves);
  }
#endif
  for (; i < n; ++i) target[i] = Half(source[i]);
}

}  // namespace tenon::cpu
