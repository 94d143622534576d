// One call of an op as its implementations see it. Light, so that sources of kernels, which nvcc parses
// several times each, need not know ops, attributes and tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <typeinfo>

#include "tensor/tensor_view.h"

namespace tenon {

class Attrs;
class Op;

/// The position of a run in the dropout sequence: masks depend on these, a site and an element index.
struct RandomState {
  std::uint64_t seed = 0;
  std::uint32_t forward = 0;
  /// Device memory that holds the forward number instead, for work that is recorded once and launched
  /// again with another number; null: `forward` counts.
  const std::uint32_t* forward_cell = nullptr;
};

/// One kernel invocation. Inputs and outputs are in the op's operand order; an absent optional
/// operand has present == false. At kernel selection the data pointers may be null.
struct KernelArgs {
  const Op* op = nullptr;
  std::span<const TensorView> inputs;
  std::span<const TensorView> outputs;
  const Attrs* attrs = nullptr;
  bool training = false;
  RandomState random = {};
  void* stream = nullptr;     // the device's stream (cudaStream_t), null on the CPU
  void* workspace = nullptr;  // of Kernel::workspace_bytes bytes, aligned to 256; null for 0

  /// The op's name.
  const char* name() const;
  /// The attributes; ValueError when they are another struct.
  template <class A>
  const A& attributes() const {
    return *static_cast<const A*>(attributes_of_type(typeid(A)));
  }

 private:
  const void* attributes_of_type(const std::type_info& type) const;
};

/// How a call's images, operands and results of four axes (N, C, H, W), lie in a Program.
enum class ImageLayout : std::uint8_t {
  row_major,      ///< as other tensors
  as_operands,    ///< all channels-last where an operand is, else row-major
  channels_last,  ///< (N, H, W, C) in memory
};

/// One implementation of an op on one kind of device.
struct Kernel {
  std::string_view name;  // "cpu.flash", "cuda.layer_norm"
  void (*run)(const KernelArgs&) = nullptr;
  /// Whether this implementation can take the call; null: always.
  bool (*supports)(const KernelArgs&) = nullptr;
  /// Whether operand i may have this layout; null: only contiguous. What is refused is copied first.
  bool (*accepts)(int operand, const TensorView&) = nullptr;
  /// The output may have any dense (permuted) strides, not only row-major.
  bool strided_output = false;
  /// With strided_output: any result may also be a part of a larger tensor, such as one third of a
  /// joined QKV gradient, with row-major neighbours that stay untouched.
  bool sliced_output = false;
  /// Bytes of device memory that a call needs beside its operands, from their sizes; null: none. A
  /// Program plans them in its arena.
  std::size_t (*workspace_bytes)(const KernelArgs&) = nullptr;
  /// Calls, among those supported, that it is taken for even before implementations that were added
  /// earlier; null: none.
  bool (*preferred)(const KernelArgs&) = nullptr;
  /// How images lie, which `accepts` then has no say in; null: row_major. Before this is asked, and at
  /// selection, operands may still lie otherwise. Eager results are row-major.
  ImageLayout (*image_layout)(const KernelArgs&) = nullptr;
  /// Why a supported call is expected to reach less than a quarter of the rate that another dtype,
  /// layout, mask or size would have, and what would help: "head size 20: tensor cores take multiples
  /// of 8 up to 256; pad it". Empty where it is not slow; null: never.
  std::string (*slow_because)(const KernelArgs&) = nullptr;
};

/// Adds a device implementation to a registered op; called once per kernel, at start-up.
void register_kernel(std::string_view op, DeviceType device, Kernel kernel);
}  // namespace tenon
