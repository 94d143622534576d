// Right rewrites of masks, positions, integers and state.
#include "examples/attention_model.h"
#include "examples/gpt_model.h"
#include "schedule/schedules.h"
#include "tests/schedule/findings.h"
#include "tests/support/attention_pattern.h"

namespace tenon::test {
namespace findings_legal_masks {

/// keys_outside_window by comparisons.
Tensor compared_window(const Dim& n, std::int64_t window) {
  const Tensor ahead = distances(n);
  return gt(cast(gt(ahead, 0), DType::float32) + cast(le(ahead, -window), DType::float32), 0);
}

template <std::int64_t kWindow, std::int64_t kLength>
Schedule window_by_comparisons() {
  return recomputed(
      {zeros({1, kLength, 2})},
      [](const Tensor& x) { return attention_without(x, keys_outside_window(x.size(1), kWindow)); },
      [](const Tensor& x) { return attention_without(x, compared_window(x.size(1), kWindow)); });
}

template <std::int64_t kWindow, std::int64_t kLength>
Schedule window_as_masked_attention() {
  return rewritten(
      function_model([](const Tensor& x) {
        return attention_without(x, keys_outside_window(x.size(1), kWindow));
      }),
      {zeros({1, kLength, 2})},
      [](const Tensor& x, const Tensor& hidden) { return attention_without(x, hidden); },
      [](const Tensor& x, const Tensor& hidden) {
        return scaled_dot_product_attention(x, x, x, eq(hidden, 0));
      });
}

/// A 0/1 mask of integers; `hidden` says it in another way, for every integer.
template <DType kDType, class F>
Schedule integer_mask(F hidden) {
  return recomputed(
      {randn({2, 5, 4}), zeros({2, 5}, {kDType, kCpu})},
      [](const Tensor& x, const Tensor& mask) {
        return attention_without(x, eq(mask, 0).unsqueeze(1));
      },
      [hidden](const Tensor& x, const Tensor& mask) {
        return attention_without(x, hidden(mask).unsqueeze(1));
      });
}

const std::vector<Finding> kMasks = {
    {"window of 16 by comparisons", window_by_comparisons<16, 96>},
    {"window of 64 by comparisons", window_by_comparisons<64, 96>},
    {"window of 4096 by comparisons", window_by_comparisons<4096, 96>},
    {"window of 16 as masked attention", window_as_masked_attention<16, 96>},
    {"window of 64 as masked attention", window_as_masked_attention<64, 96>},
    {"window of 4096 as masked attention", window_as_masked_attention<4096, 96>},
    {"causal mask as causal attention",
     [] {
       return recomputed(
           {zeros({1, 96, 2})},
           [](const Tensor& x) { return attention_without(x, later_keys(x.size(1))); },
           [](const Tensor& x) {
             return scaled_dot_product_attention(x, x, x, {}, {.is_causal = true});
           });
     }},
    {"a far diagonal by the rest",
     [] {
       return recomputed(
           {zeros({2, 12, 12})}, [](const Tensor& x) { return triu(x, 20); },
           [](const Tensor& x) { return x - tril(x, 19); });
     }},
    {"positions above 50, the other way round",
     [] {
       return recomputed(
           {zeros({2, 32})},
           [](const Tensor& x) { return where(gt(counted(x.size(1)), 50), x, x * 2.0); },
           [](const Tensor& x) { return where(lt(counted(x.size(1)), 51), x * 2.0, x); });
     }},
    {"the first 100 by their positions",
     [] {
       return recomputed(
           {zeros({2, 100})},
           [](const Tensor& x) {
             return cat({x.narrow(1, 0, 100) * 2.0, x.narrow(1, 100, x.size(1) - 100)}, 1);
           },
           [](const Tensor& x) { return where(le(counted(x.size(1)), 100), x * 2.0, x); });
     }},
    {"masked softmax as attention",
     [] {
       return rewritten(
           function_model(attention_without), {randn({2, 5, 4}), example_flags({2, 5, 5})},
           [](const Tensor& x, const Tensor& hidden) { return attention_without(x, hidden); },
           [](const Tensor& x, const Tensor& hidden) {
             return scaled_dot_product_attention(x, x, x, eq(hidden, 0));
           });
     }},
    {"an additive mask as attention's",
     [] {
       constexpr auto added = [](const Tensor& x, const Tensor& mask) {
         const Tensor scores = matmul(x, x.transpose(-2, -1)) / sqrt(x.size(-1)) + mask;
         return matmul(softmax(scores, -1), x);
       };
       return rewritten(function_model(added), {randn({2, 5, 4}), randn({2, 1, 5})}, added,
                        [](const Tensor& x, const Tensor& mask) {
                          return scaled_dot_product_attention(x, x, x, mask);
                        });
     }},
    {"an integer mask as bool",
     [] {
       return integer_mask<DType::int64>(
           [](const Tensor& m) { return eq(cast(m, DType::boolean), 0); });
     }},
    {"an int32 mask as bool",
     [] {
       return integer_mask<DType::int32>(
           [](const Tensor& m) { return eq(cast(m, DType::boolean), 0); });
     }},
    {"an integer mask as not unequal to 0",
     [] { return integer_mask<DType::int64>([](const Tensor& m) { return eq(ne(m, 0), 0); }); }},
    {"an integer mask by its amount",
     [] { return integer_mask<DType::int64>([](const Tensor& m) { return eq(abs(m), 0); }); }},
    {"an integer mask by the larger of both signs",
     [] {
       return integer_mask<DType::int64>([](const Tensor& m) { return eq(maximum(m, -m), 0); });
     }},
    {"an integer mask of both comparisons",
     [] {
       return integer_mask<DType::int64>([](const Tensor& m) {
         return eq(cast(gt(m, 0), DType::int64) + cast(lt(m, 0), DType::int64), 0);
       });
     }},
    {"an integer mask as attention's bool mask",
     [] {
       return recomputed(
           {randn({2, 5, 4}), example_integers({2, 5})},
           [](const Tensor& x, const Tensor& mask) {
             return attention_without(x, eq(mask, 0).unsqueeze(1));
           },
           [](const Tensor& x, const Tensor& mask) {
             return scaled_dot_product_attention(x, x, x, cast(mask, DType::boolean).unsqueeze(1));
           });
     }},
    {"a GPT's ready-made schedule",
     [] {
       ::gpt::GptOptions options;
       options.vocabulary = 11;
       options.context = 16;
       options.layers = 2;
       options.hidden = 8;
       options.heads = 2;
       options.dropout = 0.1;
       Schedule sch =
           create_schedule(nn::make<::gpt::Gpt>(options), {{"tokens", example_integers({2, 5})}});
       schedules::gpt(sch);
       return sch;
     }},
    {"an encoder's ready-made schedule",
     [] {
       Schedule sch =
           create_schedule(nn::make<Stack<EncoderLayer>>(3, std::int64_t{8}), {randn({2, 5, 8})});
       schedules::transformer_encoder(sch);
       return sch;
     }},
    {"one product for queries, keys and values in two layers",
     [] {
       Schedule sch = create_schedule(
           nn::make<Stack<tutorial::Attention>>(2, std::int64_t{8}, std::int64_t{2}),
           {{"hidden_states", randn({2, 5, 8})}});
       sch.replace(nn::make<tutorial::FusedQKV>(8, 2), sch["layer.0"].find(qkv_pattern(2)));
       sch.replace(nn::make<tutorial::FusedQKV>(8, 2), sch["layer.1"].find(qkv_pattern(2)));
       return sch;
     }},
};

/// Rows of a table by ids that start at `kFirst`.
template <std::int64_t kFirst>
Tensor rows_from(const Tensor& ids, const Tensor& table) {
  return embedding(ids - kFirst, table);
}

/// `other` in place of rows_from or of the tanh behind it.
template <std::int64_t kFirst>
Schedule ids_from() {
  return rewritten(
      with_parameter([](const Tensor& ids,
                        const Tensor& table) { return tanh(rows_from<kFirst>(ids, table)) * 2.0; },
                     randn({9, 4})),
      {full({2, 5}, kFirst, {DType::int64, kCpu})}, [](const Tensor& y) { return tanh(y) * 2.0; },
      [](const Tensor& y) { return tanh(y) + tanh(y); });
}
template <std::int64_t kFirst>
Schedule ids_from_in_two_steps() {
  return recomputed(with_parameter(rows_from<kFirst>, randn({9, 4})),
                    {full({2, 5}, kFirst, {DType::int64, kCpu})},
                    [](const Tensor& ids, const Tensor& table) {
                      return embedding(ids + (1 - kFirst) - 1, table);
                    });
}

template <std::int64_t kLast>
Tensor clipped_bucket(const Tensor& x, const Tensor& table) {
  return x + embedding(minimum(abs(distances(x.size(-1))), integer(kLast)), table).squeeze(-1);
}

const std::vector<Finding> kIntegersAndState = {
    {"ids from 1", ids_from<1>},
    {"ids from 10", ids_from<10>},
    {"ids from 1 in two steps", ids_from_in_two_steps<1>},
    {"ids from 10 in two steps", ids_from_in_two_steps<10>},
    {"ids from -3 in two steps", ids_from_in_two_steps<-3>},
    {"float positions as indices",
     [] {
       constexpr auto rows = [](const Tensor& positions, const Tensor& table) {
         return tanh(embedding(cast(positions, DType::int64), table));
       };
       return recomputed(with_parameter(rows, randn({9, 4})), {zeros({2, 5})},
                         [](const Tensor& positions, const Tensor& table) {
                           return tanh(embedding(cast(positions, DType::int32), table));
                         });
     }},
    {"distances clipped, the other way round",
     [] {
       return recomputed(with_parameter(clipped_bucket<24>, randn({25, 1})), {zeros({1, 12, 12})},
                         [](const Tensor& x, const Tensor& table) {
                           const Tensor distance = abs(distances(x.size(-1)));
                           const Tensor bucket = where(gt(distance, 24), integer(24), distance);
                           return x + embedding(bucket, table).squeeze(-1);
                         });
     }},
    {"id 101 forgotten by its complement",
     [] {
       constexpr auto rows = [](const Tensor& ids, const Tensor& table) {
         return embedding(ids, table) * cast(ne(ids, 101), DType::float32).unsqueeze(-1);
       };
       return recomputed(with_parameter(rows, randn({200, 4})), {example_integers({2, 5})},
                         [](const Tensor& ids, const Tensor& table) {
                           return masked_fill(embedding(ids, table), eq(ids, 101).unsqueeze(-1), 0);
                         });
     }},
    {"id 101 beside types of two rows",
     [] {
       constexpr auto rows = [](const Tensor& ids, const Tensor& types, const Tensor& table) {
         const Tensor special = cast(eq(ids, 101), DType::float32).unsqueeze(-1);
         return embedding(ids, table) + embedding(types, table.narrow(0, 0, 2)) + special;
       };
       struct Model : nn::Module {
         explicit Model(decltype(rows) f)
             : state(register_parameter("state", randn({200, 4}))), function(f) {}
         Tensor forward(const Tensor& ids, const Tensor& types) const {
           return function(ids, types, state);
         }
         Tensor state;
         decltype(rows) function;
       };
       return recomputed(
           nn::make<Model>(rows), {example_integers({2, 5}), example_integers({2, 5})},
           [](const Tensor& ids, const Tensor& types, const Tensor& table) {
             const Tensor other = cast(ne(ids, 101), DType::float32).unsqueeze(-1);
             return embedding(ids, table) + embedding(types, table.narrow(0, 0, 2)) + 1.0 - other;
           });
     }},
    {"padding of -1, the other way round",
     [] {
       constexpr auto rows = [](const Tensor& ids, const Tensor& table) {
         const Tensor found = embedding(where(eq(ids, -1), integer(0), ids), table);
         return found * cast(ne(ids, -1), DType::float32).unsqueeze(-1);
       };
       return recomputed(with_parameter(rows, randn({9, 4})), {example_integers({2, 5})},
                         [](const Tensor& ids, const Tensor& table) {
                           const Tensor found =
                               embedding(where(ne(ids, -1), ids, integer(0)), table);
                           return masked_fill(found, eq(ids, -1).unsqueeze(-1), 0);
                         });
     }},
    {"an integer offset in front",
     [] {
       constexpr auto moved = [](const Tensor& x, const Tensor& n) {
         return x + cast(n, DType::float32);
       };
       return rewritten(
           with_buffer(moved, integer(3)), {randn({3, 4})}, moved,
           [](const Tensor& x, const Tensor& n) { return cast(n, DType::float32) + x; });
     }},
    {"a mask buffer the other way round",
     [] {
       constexpr auto masked = [](const Tensor& x, const Tensor& m) {
         return masked_fill(x, m, -1.0);
       };
       return rewritten(
           with_buffer(masked, zeros({3, 4}, {DType::boolean, kCpu})), {randn({3, 4})}, masked,
           [](const Tensor& x, const Tensor& m) { return where(eq(m, 0), x, full({}, -1.0)); });
     }},
    {"a float mask compared in another way",
     [] {
       return recomputed(
           with_buffer([](const Tensor& x, const Tensor& m) { return masked_fill(x, eq(m, 0), 0); },
                       tril(ones({3, 4}))),
           {randn({3, 4})},
           [](const Tensor& x, const Tensor& m) { return masked_fill(x, eq(ne(m, 0), 0), 0); });
     }},
};

}  // namespace findings_legal_masks

std::vector<Finding> legal_masks() { return findings_legal_masks::kMasks; }
std::vector<Finding> legal_integers_and_state() { return findings_legal_masks::kIntegersAndState; }

}  // namespace tenon::test
