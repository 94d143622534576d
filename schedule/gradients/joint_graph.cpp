#include "schedule/joint_graph.h"

#include <algorithm>

#include "autograd/autograd.h"
#include "graph/passes/accumulate.h"
#include "graph/passes/fuse_gelu_gradient.h"
#include "graph/passes/join_slices.h"
#include "graph/passes/recompute.h"
#include "graph/verify.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

std::vector<Dim> symbols_of(const Graph& graph) {
  std::vector<Dim> symbols;
  for (ValueId id : graph.inputs()) {
    const Shape& shape = graph.value(id).spec.shape;
    symbols.insert(symbols.end(), shape.begin(), shape.end());
  }
  return symbols;
}

/// What draws beside the forward Graph, a loss with dropout say, takes sites from here on.
std::int64_t unused_site(const Graph& graph) {
  std::int64_t next = 0;
  for (NodeId id : graph.order()) {
    if (const auto mask = mask_of(graph.node(id))) next = std::max(next, mask->site + 1);
  }
  return next;
}

/// In this order. What a pass returns, how much it rewrote, is for its own tests.
struct Pass {
  const char* name;
  bool JointPasses::*on;
  int (*run)(Graph&);
};
constexpr Pass kPasses[] = {
    {"join_slices", &JointPasses::join_slices, join_slices},
    {"fuse_gelu_gradients", &JointPasses::fuse_gelu_gradient, fuse_gelu_gradients},
    {"accumulate_gradients", &JointPasses::accumulate, accumulate_gradients},
    {"recompute_regions", &JointPasses::recompute, recompute_regions},
    {"fuse_gelus_again", &JointPasses::fuse_gelu_gradient, fuse_gelus_again},
};

}  // namespace

JointGraph::JointGraph(const Graph& forward, const ModuleTree& tree)
    : forward_(forward), graph_(forward.without_nodes()), builder_(graph_, SIZE_MAX, 0) {
  builder_.add_tree(tree, "");
  builder_.run_in_training();
  builder_.record_gradients();
  for (ValueId id : graph_.inputs()) {
    inputs_.push_back(builder_.tensor(id));
    symbols_ += graph_.value(id).spec.shape.rank();
  }
}

Tensor JointGraph::add_input(const ExampleInput& input) {
  TensorSpec spec = input.spec;
  spec.shape = symbolic_shape(spec.shape, graph_, symbols_);
  return builder_.tensor(graph_.add_input(input.name, std::move(spec)));
}

Graph JointGraph::record(const std::function<std::vector<Tensor>(std::span<const Tensor>)>& step,
                         const JointPasses& passes, const PassObserver& observer) {
  // What this step demands of sizes concerns this Graph only: the forward Graph's list is restored.
  const GuardTransaction forward_guards(graph_.guards(), symbols_of(forward_));
  std::vector<Tensor> results;
  {
    const GradModeGuard grad_mode(true);
    const InterpreterGuard guard(builder_);
    const RandomSiteScope sites(unused_site(forward_));
    const std::vector<Tensor> outputs = builder_.replay(forward_, inputs_);
    results = step(outputs);
  }
  std::vector<ValueId> ids;
  for (const Tensor& result : results) ids.push_back(builder_.value_of(result, "return"));
  graph_.set_outputs(std::move(ids));
  results.clear();
  builder_.forget_temporaries();
  graph_.eliminate_dead_code();
  run_passes(passes, observer);
  graph_.eliminate_dead_code();
  verify(graph_);
  graph_.own_guards();
  return std::move(graph_);
}

void JointGraph::run_passes(const JointPasses& passes, const PassObserver& observer) {
  for (const Pass& pass : kPasses) {
    if (!(passes.*pass.on)) continue;
    const Graph before = observer ? graph_ : Graph();
    pass.run(graph_);
    if (observer) observer(pass.name, before, graph_);
  }
}

namespace {

struct Leaf {
  std::string name;
  Tensor tensor;
  std::size_t input = SIZE_MAX;  // which one; a parameter is none
};

/// What gradients are taken by: parameters that ask for one, and inputs.
std::vector<Leaf> differentiated(const Graph& forward, JointGraph& joint,
                                 const std::vector<bool>* inputs) {
  std::vector<Leaf> leaves;
  for (ValueId id : forward.values()) {
    const Value& value = forward.value(id);
    if (value.tensor.requires_grad()) leaves.push_back({value.name, value.tensor});
  }
  for (std::size_t i = 0; i < forward.inputs().size(); ++i) {
    const bool wanted = inputs == nullptr || (*inputs)[i];
    if (!wanted || !is_floating(joint.input(i).dtype())) continue;
    leaves.push_back(
        {"input " + forward.value(forward.inputs()[i]).name, joint.input(i).requires_grad_(), i});
  }
  return leaves;
}

/// An input with the sizes of an output: symbols of its own, so that lowering can bind them, which
/// are then known to equal the output's.
Tensor cotangent_of(JointGraph& joint, const Tensor& output, std::size_t index) {
  Tensor cotangent = joint.add_input({fmt::format("cotangent of output {}", index), output.spec()});
  for (int axis = 0; axis < output.dim(); ++axis) unify(cotangent.size(axis), output.size(axis));
  return cotangent;
}

}  // namespace

GradientGraph differentiate(const Graph& forward, const ModuleTree& tree, const JointPasses& passes,
                            const std::vector<bool>* inputs) {
  GradientGraph result;
  Graph pure = forward;
  for (const StateWrite& write : forward.writes()) {
    std::vector<ValueId> outputs = pure.outputs();
    outputs.push_back(write.value);
    pure.set_outputs(std::move(outputs));
  }
  pure.drop_writes();
  JointGraph joint(pure, tree);
  const auto leaves = differentiated(forward, joint, inputs);
  const std::size_t num_outputs = forward.outputs().size();
  result.graph = joint.record(
      [&](std::span<const Tensor> outputs) {
        std::vector<Tensor> results(outputs.begin(),
                                    outputs.begin() + static_cast<std::ptrdiff_t>(num_outputs));
        std::vector<Tensor> roots;
        std::vector<Tensor> cotangents;
        for (std::size_t i = 0; i < num_outputs; ++i) {
          result.outputs.push_back(fmt::format("output {}", i));
          if (!outputs[i].requires_grad()) continue;
          roots.push_back(outputs[i]);
          cotangents.push_back(cotangent_of(joint, outputs[i], i));
          result.cotangents.push_back(i);
        }
        if (!roots.empty()) {
          std::vector<Tensor> wanted;
          for (const Leaf& leaf : leaves) wanted.push_back(leaf.tensor);
          const auto gradients =
              grad(roots, wanted, cotangents, {.allow_unused = true, .leaf_hooks = false});
          for (std::size_t i = 0; i < leaves.size(); ++i) {
            if (!gradients[i]) continue;
            result.outputs.push_back("gradient of " + leaves[i].name);
            if (leaves[i].input != SIZE_MAX) result.gradient_inputs.push_back(leaves[i].input);
            results.push_back(gradients[i]);
          }
        }
        for (std::size_t i = num_outputs; i < outputs.size(); ++i) {
          const ValueId state = forward.writes()[i - num_outputs].state;
          result.outputs.push_back("buffer " + forward.value(state).name);
          results.push_back(outputs[i].detach());
        }
        return results;
      },
      passes);
  return result;
}

}  // namespace tenon
