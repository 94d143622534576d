// What randn, uniform, randint and randperm share: which numbers a call draws, and checks of its
// attributes.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "tensor/calls/random_values.h"
#include "tensor/calls/taken_numbers.h"
#include "tensor/interpreter.h"
#include "tensor/op.h"
#include "tensor/ops/attributes.h"
#include "tensor/philox.h"
#include "tensor/random.h"
#include "tensor/tensor.h"

namespace tenon::ops {

/// Which numbers a random tensor draws that is called now. One that belongs to a module call or a
/// trace has that one's next site; another the next stream of `generator` (null: the default one),
/// whose seed counts for the object's lifetime. TraceError for a generator in a trace, unless the
/// trace made it: then the call runs now, and its result is a constant.
class RandomCall {
 public:
  RandomCall(const Op& op, Generator* generator);
  std::int64_t site() const { return site_; }
  bool runs_now() const { return runs_now_; }

 private:
  std::int64_t site_ = 0;
  bool runs_now_ = false;
  CallSite call_site_;
  std::optional<CallSiteScope> scope_;
};

/// Calls a random tensor's op; all of its attributes but the site are given.
template <class A>
Tensor draw_tensor(const Op& op, A attrs, Generator* generator) {
  const TakenNumbers taken(generator != nullptr ? *generator : default_generator());
  const RandomCall call(op, generator);
  attrs.site = call.site();
  return call.runs_now() ? apply_eager(op, {}, attrs).at(0) : apply1(op, {}, attrs);
}

/// The spec of the result; ShapeError for a negative size.
std::vector<TensorSpec> random_tensor_spec(const InferContext& context,
                                           const RandomTensorAttrs& attrs);

/// What the kernels draw by. ValueError for a site that the counter cannot hold.
DropoutKey random_tensor_key(const KernelArgs& args, std::int64_t site);

/// ValueError unless uniform's bounds are as tensor.h says.
void check_uniform(double low, double high, DType dtype);
/// What uniform's kernels compute by; the bounds were checked.
random_values::UniformRange uniform_range(double low, double high, DType dtype);
/// ValueError unless all integers from `least` to `largest` are numbers of the dtype.
void check_integers(const Op& op, std::int64_t least, std::int64_t largest, DType dtype);

}  // namespace tenon::ops
