#include "tensor/cpu/panels.h"

#include "tensor/cpu/panels_kernel.h"

namespace tenon::cpu {
namespace {

#if defined(TENON_WITH_64_BYTE_VECTORS)
bool has_64_byte_vectors() {
  static const bool result =
      __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
      __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512bw") != 0;
  return result;
}
#endif

}  // namespace

template <class C>
void multiply_panels(const PanelProduct<C>& product) {
#if defined(TENON_WITH_64_BYTE_VECTORS)
  if (has_64_byte_vectors()) return detail::multiply_panels_64_bytes(product);
#endif
  multiply_all<32, 1, 1>(product);  // 6 rows of 2 vectors are 12 of 16 registers
}

template void multiply_panels<float>(const PanelProduct<float>&);
template void multiply_panels<double>(const PanelProduct<double>&);

}  // namespace tenon::cpu
