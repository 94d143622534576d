// A user's program: builds against an installed Tenon through find_package(tenon).
#include <tensor/dtype.h>
#include <tensor/tensor.h>
#include <tensor/version.h>

#include <iostream>

int main() {
  std::cout << "tenon " << TENON_VERSION << " knows " << tenon::name(tenon::DType::bfloat16)
            << '\n';
  return tenon::size_of(tenon::DType::bfloat16) == 2 ? 0 : 1;
}
