// Wrong rewrites of the model's state, and of the borders between layers that have one structure.
#include "examples/attention_model.h"
#include "tests/schedule/findings.h"

namespace tenon::test {
namespace findings_state {

using E = fuzz::GraphEdit;

/// `part`, which reads a buffer, becomes `other`; the buffer's value now makes them equal.
template <class Part, class Other>
Schedule as_of_now(const Tensor& buffer, Part part, Other other, const Tensor& x = randn({3, 4})) {
  return rewritten(with_buffer(part, buffer), {x}, part, other);
}
template <class Part, class Other>
Schedule constant_of_now(const Tensor& buffer, Part part, Other other) {
  return recomputed(with_buffer(part, buffer), {randn({3, 4})}, other);
}

Tensor filled(DType dtype, std::int64_t value) { return full({3, 4}, value, {dtype, kCpu}); }

const std::vector<Finding> kState = {
    {"an integer offset of 3 as a number",
     [] {
       return as_of_now(
           integer(3), [](const Tensor& x, const Tensor& n) { return x + cast(n, DType::float32); },
           [](const Tensor& x, const Tensor&) { return x + 3.0; });
     }},
    {"integer offsets of 0 dropped",
     [] {
       return as_of_now(
           filled(DType::int64, 0),
           [](const Tensor& x, const Tensor& n) { return x + cast(n, DType::float32); },
           [](const Tensor& x, const Tensor&) { return x * 1.0; });
     }},
    {"a mask of int32 ones dropped",
     [] {
       return constant_of_now(
           filled(DType::int32, 1),
           [](const Tensor& x, const Tensor& m) { return masked_fill(x, eq(m, 0), 0); },
           [](const Tensor& x) { return x * 1.0; });
     }},
    {"a mask that hides nothing dropped",
     [] {
       return as_of_now(
           filled(DType::boolean, 0),
           [](const Tensor& x, const Tensor& m) { return masked_fill(x, m, 0); },
           [](const Tensor& x, const Tensor&) { return x * 1.0; });
     }},
    {"a causal mask taken for what it is now",
     [] {
       return constant_of_now(
           gt(triu(ones({3, 4}), 1), 0),
           [](const Tensor& x, const Tensor& m) { return masked_fill(x, m, -1.0); },
           [](const Tensor& x) {
             return masked_fill(x, gt(triu(full({3, 4}, 1.0), 1), 0), -1.0);
           });
     }},
    {"a float mask as a constant",
     [] {
       const Tensor mask = tril(ones({3, 4}));
       return constant_of_now(
           mask, [](const Tensor& x, const Tensor& m) { return x * m; },
           [copy = mask.clone()](const Tensor& x) { return x * copy; });
     }},
    {"a float mask dropped that is all ones",
     [] {
       return as_of_now(
           ones({3, 4}), [](const Tensor& x, const Tensor& m) { return x * m; },
           [](const Tensor& x, const Tensor&) { return x * 1.0; });
     }},
    {"a scale of 2 as a number",
     [] {
       return as_of_now(
           full({}, 2.0), [](const Tensor& x, const Tensor& s) { return x * s; },
           [](const Tensor& x, const Tensor&) { return x * 2.0; });
     }},
    {"a buffer of zeros dropped",
     [] {
       return as_of_now(
           zeros({3, 4}), [](const Tensor& x, const Tensor& s) { return x + s; },
           [](const Tensor& x, const Tensor&) { return x * 1.0; });
     }},
    {"an order of columns dropped that is the identity",
     [] {
       return as_of_now(
           arange(4, {DType::int64, kCpu}),
           [](const Tensor& x, const Tensor& order) {
             return index_select(x.narrow(1, 0, 4), 1, order);
           },
           [](const Tensor& x, const Tensor&) { return x.narrow(1, 0, 4) * 1.0; });
     }},
    {"position numbers taken for 0, 1, 2",
     [] {
       return constant_of_now(
           arange(4, {DType::int64, kCpu}),
           [](const Tensor& x, const Tensor& order) { return x + cast(order, DType::float32); },
           [](const Tensor& x) { return x + (cast(counted(4), DType::float32) - 1.0); });
     }},
};

/// A layer of which a model has several.
struct Layer : nn::Module {
  Layer()
      : key(add<nn::Linear>("key", 6, 6)),
        drop(add<nn::Dropout>("drop", 0.3)),
        norm(add<nn::BatchNorm2d>("norm", 2)) {}
  Tensor forward(const Tensor& x) const {  // (batch, 2, n, 6)
    return norm(drop(tanh(key(x))) + x);
  }
  nn::Child<nn::Linear> key;
  nn::Child<nn::Dropout> drop;
  nn::Child<nn::BatchNorm2d> norm;
};

/// Returns what each layer gives.
struct Layers : nn::Module {
  Layers() : layer(add<nn::ModuleList<Layer>>("layer")) {
    for (int i = 0; i < 3; ++i) layer->push_back(nn::make<Layer>());
  }
  std::vector<Tensor> forward(const Tensor& x) const {
    std::vector<Tensor> results{x};
    for (const auto& one : *layer) results.push_back(one(results.back()));
    results.erase(results.begin());
    return results;
  }
  nn::Child<nn::ModuleList<Layer>> layer;
};

template <class Edit>
Schedule layers_edited(Edit edit) {
  return edited(nn::make<Layers>(), {randn({2, 2, 3, 6})}, edit);
}

/// Two nodes of an op read each other's state as operand `i`.
void swap_operands(E& e, const char* op, std::size_t i, std::size_t a = 0, std::size_t b = 1) {
  const auto read = [&](std::size_t n) {
    return e.graph().value(e.graph().node(e.nth(op, n)).inputs.at(i)).tensor;
  };
  const Tensor first = read(a);
  const Tensor second = read(b);
  e.feed(e.nth(op, a), i, [&](const Tensor&) { return second; });
  e.feed(e.nth(op, b), i, [&](const Tensor&) { return first; });
}

AttrValue site_of(E& e, std::size_t n) {
  const Attrs& attrs = e.graph().node(e.nth("dropout", n)).attrs;
  return attrs.value(attrs.find("site"));
}

void swap_sites(E& e) {
  const AttrValue first = site_of(e, 0);
  const AttrValue second = site_of(e, 1);
  e.set(e.nth("dropout", 0), "site", second);
  e.set(e.nth("dropout", 1), "site", first);
}

/// Two layers of attention, each with a mask of its own.
struct TwoMasks : nn::Module {
  Tensor forward(const Tensor& x, const Tensor& first, const Tensor& second) const {
    return attention_without(attention_without(x, first) + x, second);
  }
};

Schedule two_masks(void (*edit)(E&)) {
  return edited(nn::make<TwoMasks>(),
                {randn({2, 5, 4}), example_flags({2, 5, 5}), example_flags({2, 5, 5})}, edit);
}

/// Two embeddings of one shape; the logits are tied to the first.
struct TiedToOne : nn::Module {
  TiedToOne()
      : tokens(add<nn::Embedding>("tokens", 9, 6)), others(add<nn::Embedding>("others", 9, 6)) {}
  Tensor forward(const Tensor& ids) const {
    const Tensor token = tokens(ids);
    return linear(tanh(token - others(ids) * 0.5), tokens->weight);
  }
  nn::Child<nn::Embedding> tokens, others;
};

Schedule attention_layers(void (*edit)(E&)) {
  return edited(nn::make<Stack<tutorial::Attention>>(2, std::int64_t{8}, std::int64_t{2}),
                {{"hidden_states", randn({2, 5, 8})}}, edit);
}

const std::vector<Finding> kBorders = {
    {"weights of two layers swapped",
     [] { return layers_edited([](E& e) { swap_operands(e, "linear", 1); }); }},
    {"biases of two layers swapped",
     [] { return layers_edited([](E& e) { swap_operands(e, "linear", 2); }); }},
    {"keys of two attention layers swapped",
     [] { return attention_layers([](E& e) { swap_operands(e, "linear", 1, 1, 5); }); }},
    {"keys of one layer read twice",
     [] {
       return attention_layers([](E& e) {
         const Tensor key = e.state("layer.0.self_attn.k_proj.weight");
         e.feed(e.nth("linear", 5), 1, [&](const Tensor&) { return key; });
       });
     }},
    {"norms of two attention layers swapped",
     [] { return attention_layers([](E& e) { swap_operands(e, "layer_norm", 1); }); }},
    {"dropout sites of two layers swapped", [] { return layers_edited(swap_sites); }},
    {"dropout sites of attention layers swapped", [] { return attention_layers(swap_sites); }},
    {"masks of two layers swapped",
     [] {
       return two_masks([](E& e) {
         e.feed(e.nth("masked_fill", 0), 1, [&](const Tensor&) { return e.input(2); });
         e.feed(e.nth("masked_fill", 1), 1, [&](const Tensor&) { return e.input(1); });
       });
     }},
    {"one layer's mask in both",
     [] {
       return two_masks([](E& e) {
         e.feed(e.nth("masked_fill", 1), 1, [&](const Tensor&) { return e.input(1); });
       });
     }},
    {"running means of two layers swapped",
     [] { return layers_edited([](E& e) { swap_operands(e, "batch_norm", 1); }); }},
    {"running variances of two layers swapped",
     [] { return layers_edited([](E& e) { swap_operands(e, "batch_norm", 2); }); }},
    {"statistics of two layers written into each other",
     [] {
       return layers_edited([](E& e) {
         const auto writes = e.graph().writes();
         e.graph().drop_writes();
         for (std::size_t i = 0; i < writes.size(); ++i) {
           const std::size_t from = i < 4 ? (i + 2) % 4 : i;
           e.graph().set_write(writes[i].state, writes[from].value);
         }
       });
     }},
    {"outputs of two layers swapped",
     [] {
       return layers_edited([](E& e) {
         auto outputs = e.graph().outputs();
         std::swap(outputs[0], outputs[1]);
         e.graph().set_outputs(outputs);
       });
     }},
    {"a layer reads what the one before it read",
     [] {
       return layers_edited(
           [](E& e) { e.feed(e.nth("linear", 1), 0, [&](const Tensor&) { return e.input(0); }); });
     }},
    {"a residual of another layer",
     [] {
       return layers_edited([](E& e) {
         const NodeId first = e.nth("batch_norm", 0);
         e.feed(e.nth("add", 2), 1, [&](const Tensor&) { return e.result(first); });
       });
     }},
    {"a tied weight replaced by another of its shape",
     [] {
       return edited(nn::make<TiedToOne>(), {example_integers({2, 5})}, [](E& e) {
         const Tensor other = e.state("others.weight");
         e.feed(e.nth("linear"), 1, [&](const Tensor&) { return other; });
       });
     }},
    {"a tied weight read in place of another",
     [] {
       return edited(nn::make<TiedToOne>(), {example_integers({2, 5})}, [](E& e) {
         const Tensor tied = e.state("tokens.weight");
         e.feed(e.nth("embedding", 1), 1, [&](const Tensor&) { return tied; });
       });
     }},
    {"two embeddings of one shape swapped",
     [] {
       return edited(nn::make<TiedToOne>(), {example_integers({2, 5})},
                     [](E& e) { swap_operands(e, "embedding", 1); });
     }},
};

}  // namespace findings_state

std::vector<Finding> wrong_state() { return findings_state::kState; }
std::vector<Finding> wrong_borders() { return findings_state::kBorders; }

}  // namespace tenon::test
