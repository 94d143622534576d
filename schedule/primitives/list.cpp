// The list of primitives, as data.
#include <array>

#include "schedule/schedule.h"

namespace tenon {

std::span<const PrimitiveInfo> list_primitives() {
  static constexpr std::array kPrimitives = std::to_array<PrimitiveInfo>({
      {"annotate", "note a key and a value on a module, parameter or buffer"},
      {"bind", "choose the implementation that matched nodes run"},
      {"checkpoint", "run a module or each match again in backward instead of keeping its values"},
      {"decompose", "split a module's ops into the plainer ops they consist of"},
      {"find", "modules by name or class, nodes by predicate, subgraphs by a function on Tensors"},
      {"fold", "let a convolution or Linear do the batch norm behind it, in evaluation"},
      {"fuse", "put the one fused op that is registered for a composition in its place"},
      {"fuse_parallel", "join Linears of one input into one product"},
      {"print", "write a line about a value whenever the Graph runs"},
      {"replace", "put a module or function in place of a module or of matches"},
      {"replace_all", "replace every module of a class"},
      {"trace", "see the modules below as nodes of this one (flatten), or as modules again"},
      {"undo", "take the last primitive back"},
  });
  return kPrimitives;
}

}  // namespace tenon
