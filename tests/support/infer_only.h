// An interpreter that infers shapes and computes nothing, as a tracer does.
#pragma once

#include <utility>
#include <vector>

#include "tensor/interpreter.h"

namespace tenon::test {

class InferOnly final : public Interpreter {
 public:
  std::vector<Tensor> apply(const Op& op, std::span<const Tensor> inputs,
                            const Attrs& attrs) override {
    std::vector<const TensorSpec*> specs;
    for (const Tensor& input : inputs) specs.push_back(input ? &input.spec() : nullptr);
    std::vector<Tensor> outputs;
    for (TensorSpec& spec : infer(op, specs, attrs)) {
      outputs.push_back(Tensor::symbolic(std::move(spec)));
    }
    last_attrs = attrs;
    return outputs;
  }
  Attrs last_attrs;  // of the latest call
};

}  // namespace tenon::test
