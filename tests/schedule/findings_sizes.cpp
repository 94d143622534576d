// Wrong rewrites that show at sizes, positions and integers which the model's constants point to.
#include "tests/schedule/findings.h"

namespace tenon::test {
namespace findings_sizes {

using Examples = std::vector<ExampleInput>;

template <std::int64_t kWindow, std::int64_t kLength>
Schedule window_as_causal_mask() {
  return recomputed(
      {zeros({1, kLength, 2})},
      [](const Tensor& x) { return attention_without(x, keys_outside_window(x.size(1), kWindow)); },
      [](const Tensor& x) { return attention_without(x, later_keys(x.size(1))); });
}

template <std::int64_t kWindow, std::int64_t kLength>
Schedule window_as_causal_attention() {
  return recomputed(
      {zeros({1, kLength, 2})},
      [](const Tensor& x) { return attention_without(x, keys_outside_window(x.size(1), kWindow)); },
      [](const Tensor& x) {
        return scaled_dot_product_attention(x, x, x, {}, {.is_causal = true});
      });
}

/// As a ready-made schedule would: the mask is one of the pattern's parameters.
template <std::int64_t kWindow>
Schedule window_taken_for_causal() {
  return rewritten(
      function_model([](const Tensor& x) {
        return attention_without(x, keys_outside_window(x.size(1), kWindow));
      }),
      {zeros({1, 96, 2})},
      [](const Tensor& x, const Tensor& hidden) { return attention_without(x, hidden); },
      [](const Tensor& x, const Tensor&) {
        return scaled_dot_product_attention(x, x, x, {}, {.is_causal = true});
      });
}

Schedule window_off_by_one() {
  return recomputed(
      {zeros({1, 96, 2})},
      [](const Tensor& x) { return attention_without(x, keys_outside_window(x.size(1), 16)); },
      [](const Tensor& x) { return attention_without(x, keys_outside_window(x.size(1), 17)); });
}

/// x (batch, n, n) and a table (buckets, 1).
template <std::int64_t kLast>
Tensor with_clipped_distances(const Tensor& x, const Tensor& table) {
  const Tensor bucket = minimum(abs(distances(x.size(-1))), integer(kLast));
  return x + embedding(bucket, table).squeeze(-1);
}

template <std::int64_t kLength>
Schedule distances_clipped_later() {
  return recomputed(
      with_parameter(with_clipped_distances<24>, randn({32, 1})), {zeros({1, kLength, kLength})},
      [](const Tensor& x, const Tensor& table) { return with_clipped_distances<31>(x, table); });
}

/// T5's buckets: exact below 16, then logarithmic up to a largest distance.
template <std::int64_t kLargest>
Tensor with_logarithmic_buckets(const Tensor& x, const Tensor& table) {
  const Tensor distance = abs(distances(x.size(-1)));
  const Tensor ratio = log(distance.to(DType::float32) / 16.0) / std::log(kLargest / 16.0);
  const Tensor far = minimum((ratio * 16.0).to(DType::int64) + 16, integer(31));
  return x + embedding(where(lt(distance, 16), distance, far), table).squeeze(-1);
}

Schedule logarithmic_buckets_of_another_range() {
  return recomputed(
      with_parameter(with_logarithmic_buckets<128>, randn({32, 1})), {zeros({1, 20, 20})},
      [](const Tensor& x, const Tensor& table) { return with_logarithmic_buckets<64>(x, table); });
}

/// A model whose lengths are multiples of 16.
struct Blocks : nn::Module {
  Tensor forward(const Tensor& x) const {
    if (x.size(1) % 16 != 0) throw ValueError("the length must be a multiple of 16");
    return tanh(mean(x, {1}));
  }
};

/// One whose lengths are at least 32.
struct Long : nn::Module {
  Tensor forward(const Tensor& x) const {
    if (x.size(1) < 32) throw ValueError("the length must be at least 32");
    return tanh(mean(x, {1}));
  }
};

template <class Model>
Schedule mean_by_the_traced_length() {
  return rewritten(
      nn::make<Model>(), {zeros({2, 32, 3})}, [](const Tensor& x) { return mean(x, {1}); },
      [](const Tensor& x) { return sum(x, {1}) / 32.0; });
}

const std::vector<Finding> kSizes = {
    {"window of 16 as a causal mask", window_as_causal_mask<16, 96>},
    {"window of 16 as causal attention", window_as_causal_attention<16, 96>},
    {"window of 64 as a causal mask", window_as_causal_mask<64, 96>},
    {"window of 64 as causal attention", window_as_causal_attention<64, 96>},
    {"window of 64 traced at 20", window_as_causal_attention<64, 20>},
    {"window of 4096 as a causal mask", window_as_causal_mask<4096, 96>},
    {"window of 4096 as causal attention", window_as_causal_attention<4096, 96>},
    {"window of 4096 traced at 128", window_as_causal_attention<4096, 128>},
    {"window of 16 found with its mask", window_taken_for_causal<16>},
    {"window of 64 found with its mask", window_taken_for_causal<64>},
    {"window of 4096 found with its mask", window_taken_for_causal<4096>},
    {"window off by one", window_off_by_one},
    {"distances clipped later, traced at 40", distances_clipped_later<40>},
    {"distances clipped later, traced at 12", distances_clipped_later<12>},
    {"logarithmic buckets of another range", logarithmic_buckets_of_another_range},
    {"a far upper diagonal dropped",
     [] {
       return recomputed(
           {zeros({2, 12, 12})},
           [](const Tensor& x) {
             return masked_fill(x, gt(triu(square_of_ones(x.size(-1)), 20), 0), -1.0);
           },
           [](const Tensor& x) { return x * 1.0; });
     }},
    {"a far lower diagonal dropped",
     [] {
       return recomputed(
           {zeros({2, 30, 30})}, [](const Tensor& x) { return x - tril(x, -20); },
           [](const Tensor& x) { return x - tril(x, -21); });
     }},
    {"a band of the input dropped",
     [] {
       return recomputed(
           {zeros({2, 12, 12})}, [](const Tensor& x) { return tril(x, 20); },
           [](const Tensor& x) { return x * 1.0; });
     }},
    {"mean divided by the traced length under a guard", mean_by_the_traced_length<Blocks>},
    {"mean divided by the traced length at least 32", mean_by_the_traced_length<Long>},
    {"what stands behind the first 100",
     [] {
       return recomputed(
           {zeros({2, 100})},
           [](const Tensor& x) {
             return cat({x.narrow(1, 0, 100) * 2.0, x.narrow(1, 100, x.size(1) - 100)}, 1);
           },
           [](const Tensor& x) { return x * 2.0; });
     }},
    {"the sum of what stands behind the first 100",
     [] {
       return recomputed(
           {zeros({2, 100})},
           [](const Tensor& x) {
             return sum(x, {1}) - sum(x.narrow(1, 100, x.size(1) - 100), {1}) * 2.0;
           },
           [](const Tensor& x) { return sum(x, {1}); });
     }},
    {"positions above 50",
     [] {
       return recomputed(
           {zeros({2, 32})},
           [](const Tensor& x) { return where(gt(counted(x.size(1)), 50), x, x * 2.0); },
           [](const Tensor& x) { return x * 2.0; });
     }},
    {"position 50 alone",
     [] {
       return recomputed(
           {zeros({2, 32})},
           [](const Tensor& x) { return masked_fill(x, eq(counted(x.size(1)), 50), 0); },
           [](const Tensor& x) { return x * 1.0; });
     }},
};

/// Logits (batch, 60) and targets.
template <std::int64_t kIgnored>
Tensor loss_without(const Tensor& x, const Tensor& target) {
  return cross_entropy(x, target, {.ignore_index = kIgnored});
}

template <std::int64_t kOwn, std::int64_t kOther>
Schedule another_ignored_target() {
  return recomputed(
      {zeros({5, 60}), example_integers({5})},
      [](const Tensor& x, const Tensor& target) { return loss_without<kOwn>(x, target); },
      [](const Tensor& x, const Tensor& target) { return loss_without<kOther>(x, target); });
}

/// Rows of a table, zero where the number is `kSpecial`.
template <std::int64_t kSpecial>
Tensor rows_but(const Tensor& ids, const Tensor& table) {
  return embedding(ids, table) * ne(ids, kSpecial).to(DType::float32).unsqueeze(-1);
}

template <std::int64_t kSpecial, std::int64_t kRows>
Schedule special_id_forgotten() {
  return recomputed(
      with_parameter(rows_but<kSpecial>, randn({kRows, 4})), {example_integers({2, 5})},
      [](const Tensor& ids, const Tensor& table) { return embedding(ids, table) * 1.0; });
}

/// Token ids and types as BERT takes them; id 101 is special.
struct TokensAndTypes : nn::Module {
  TokensAndTypes()
      : tokens(add<nn::Embedding>("tokens", 200, 4)), types(add<nn::Embedding>("types", 2, 4)) {}
  Tensor forward(const Tensor& ids, const Tensor& type) const {
    const Tensor special = eq(ids, 101).to(DType::float32).unsqueeze(-1);
    return tokens(ids) + types(type) + special;
  }
  nn::Child<nn::Embedding> tokens, types;
};

const std::vector<Finding> kIntegers = {
    {"targets of -1 ignored instead of -100", another_ignored_target<-100, -1>},
    {"targets of 3 ignored instead of -100", another_ignored_target<-100, 3>},
    {"targets of 50 ignored instead of -100", another_ignored_target<-100, 50>},
    {"targets of 50 not ignored", another_ignored_target<50, -100>},
    {"targets of 0 not ignored", another_ignored_target<0, -100>},
    {"targets of 1000 ignored instead of -1", another_ignored_target<-1, 1000>},
    {"id 50 of 64 forgotten", special_id_forgotten<50, 64>},
    {"id 101 of 200 forgotten", special_id_forgotten<101, 200>},
    {"id 101 of 30522 forgotten", special_id_forgotten<101, 30522>},
    {"id 0 of 64 forgotten", special_id_forgotten<0, 64>},
    {"id 63, the last, forgotten", special_id_forgotten<63, 64>},
    {"id 101 without a table",
     [] {
       return recomputed(
           {example_integers({2, 5})},
           [](const Tensor& ids) { return eq(ids, 101).to(DType::float32) + 1.0; },
           [](const Tensor& ids) { return ids.to(DType::float32) * 0.0 + 1.0; });
     }},
    {"id 101 beside types of two rows",
     [] {
       return rewritten(
           nn::make<TokensAndTypes>(), {example_integers({2, 5}), example_integers({2, 5})},
           [](const Tensor& x, const Tensor& ids) {
             return x + cast(eq(ids, 101), DType::float32).unsqueeze(-1);
           },
           [](const Tensor& x, const Tensor&) { return x * 1.0; });
     }},
    {"padding of -1 not zeroed",
     [] {
       constexpr auto padded = [](const Tensor& ids, const Tensor& table) {
         const Tensor rows = embedding(where(eq(ids, -1), integer(0), ids), table);
         return rows * ne(ids, -1).to(DType::float32).unsqueeze(-1);
       };
       return recomputed(with_parameter(padded, randn({9, 4})), {example_integers({2, 5})},
                         [](const Tensor& ids, const Tensor& table) {
                           return embedding(where(eq(ids, -1), integer(0), ids), table);
                         });
     }},
    {"padding of -1 in another row",
     [] {
       constexpr auto padded = [](const Tensor& ids, const Tensor& table) {
         return embedding(where(eq(ids, -1), integer(0), ids), table);
       };
       return recomputed(
           with_parameter(padded, randn({9, 4})), {example_integers({2, 5})},
           [](const Tensor& ids, const Tensor& table) { return embedding(abs(ids), table); });
     }},
    {"a row beyond the 100th",
     [] {
       constexpr auto rows = [](const Tensor& ids, const Tensor& table) {
         return embedding(ids, table);
       };
       return rewritten(with_parameter(rows, randn({128, 3})), {example_integers({2, 5})}, rows,
                        [](const Tensor& ids, const Tensor& table) {
                          return embedding(minimum(ids, integer(100)), table);
                        });
     }},
};

}  // namespace findings_sizes

std::vector<Finding> wrong_at_sizes() { return findings_sizes::kSizes; }
std::vector<Finding> wrong_integers() { return findings_sizes::kIntegers; }

}  // namespace tenon::test
