// The elements of any eager tensor as row-major bytes on the host.
#pragma once

#include <cstddef>
#include <span>

#include "tensor/interpreter.h"
#include "tensor/tensor.h"

namespace tenon::nn::detail {

/// Keeps the bytes alive: the tensor itself when it is contiguous on the CPU, else a copy.
class TensorBytes {
 public:
  explicit TensorBytes(const Tensor& tensor) : host_(tensor) {
    if (!tensor.device().is_cpu() || !tensor.is_contiguous()) {
      host_ = empty(tensor.layout().sizes, TensorOptions{tensor.dtype(), kCpu});
      const NoGradGuard no_grad;
      host_.copy_(tensor);
    }
  }
  std::span<const std::byte> span() const {
    const std::size_t count = static_cast<std::size_t>(host_.layout().numel());
    return {static_cast<const std::byte*>(host_.view_of_data().data),
            count * size_of(host_.dtype())};
  }

 private:
  Tensor host_;
};

}  // namespace tenon::nn::detail
