// Scaled dot-product attention by cuDNN's fused kernels: which calls go there.
#pragma once

#include <cstdint>
#include <string>

#include "tensor/op.h"

namespace tenon::cuda {

/// The name of cuDNN's implementations, as `bind` takes it.
inline constexpr const char* kCudnnAttention = "cudnn";

/// Whether cuDNN has kernels for these operands: 16-bit floats, head sizes multiples of 8 up to 256.
bool cudnn_attention_takes(DType dtype, std::int64_t head, std::int64_t head_v);

/// Whether its kernels are worth it where the schedule does not say: for long rows, and in a Program,
/// which runs often enough to earn back the second that a plan takes to compile.
bool cudnn_attention_preferred(std::int64_t length, std::int64_t keys, bool in_program);

/// Why cuDNN does not take a call of attention or its gradient; empty when it does.
std::string cudnn_attention_refusal(const KernelArgs& args);

}  // namespace tenon::cuda
