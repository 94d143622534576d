// multiply_panels by vectors of 64 bytes: this source alone is compiled for processors with AVX-512.
#include "tensor/cpu/panels_kernel.h"

namespace tenon::cpu::detail {

// 12 rows of 2 vectors are 24 of 32 registers.
void multiply_panels_64_bytes(const PanelProduct<float>& product) {
  multiply_all<64, 2, 2>(product);
}
void multiply_panels_64_bytes(const PanelProduct<double>& product) {
  multiply_all<64, 2, 2>(product);
}

}  // namespace tenon::cpu::detail
