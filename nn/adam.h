// Adam and AdamW, with PyTorch's formulas and defaults; see nn/optimizer.h for how they are used.
#pragma once

#include <vector>

#include "nn/optimizer.h"

namespace tenon::nn {

/// Weight decay is added to the gradient.
struct AdamOptions {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  std::vector<std::string> no_decay = {};  ///< globs of names whose weight decay is 0
};

/// Weight decay shrinks the parameter.
struct AdamWOptions {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 1e-2;
  std::vector<std::string> no_decay = {};  ///< globs of names whose weight decay is 0
};

/// Kingma, Ba, "Adam: A Method for Stochastic Optimization", 2015.
class Adam : public Optimizer {
 public:
  explicit Adam(NamedTensors parameters, const AdamOptions& options = {},
                const OptimizerOptions& common = {});
  explicit Adam(const std::vector<ParameterGroup<AdamOptions>>& groups,
                const OptimizerOptions& common = {});

 protected:
  Adam(const char* type, const std::vector<ParameterGroup<AdamOptions>>& groups, bool decoupled,
       const OptimizerOptions& common);
  std::vector<UpdatedParameter> apply_updates(const Updates& updates) const override;

 private:
  std::vector<AdamOptions> options_;  // one a group
  bool decoupled_;
};

/// Loshchilov, Hutter, "Decoupled Weight Decay Regularization", 2019.
class AdamW : public Adam {
 public:
  explicit AdamW(NamedTensors parameters, const AdamWOptions& options = {},
                 const OptimizerOptions& common = {});
  explicit AdamW(const std::vector<ParameterGroup<AdamWOptions>>& groups,
                 const OptimizerOptions& common = {});
};

}  // namespace tenon::nn
