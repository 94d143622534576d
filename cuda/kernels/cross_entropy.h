// Rows of logits on the GPU: their losses, and in the same pass their gradients. What cross_entropy, its
// gradient and linear_cross_entropy launch.
#pragma once

#include <cstdint>

#include "cuda/launch.h"
#include "tensor/dtype.h"

namespace tenon::cuda {

struct LossRows {
  const void* logits = nullptr;  // (rows, classes), rows `pitch` elements apart
  std::int64_t pitch = 0;
  const std::int64_t* targets = nullptr;
  std::int64_t rows = 0;
  std::int64_t classes = 0;
  std::int64_t ignore_index = 0;
  double smoothing = 0;
  void* losses = nullptr;      // (rows), null: not wanted
  bool rounds_losses = false;  // to the logits' dtype; else in the type they are computed in
  void* gradients = nullptr;   // laid out as the logits, which they may replace; null: not wanted
  const void* grad = nullptr;  // of the loss, in the logits' dtype: () or (rows); null: 1
  bool grad_per_row = false;
  const double* counted = nullptr;  // gradients are divided by it; null: they are not
};

/// Losses and gradients of the rows; `dtype` is that of the logits.
void launch_loss_rows(Stream stream, const char* name, DType dtype, const LossRows& rows);
/// *counted = the number of targets that are not ignored.
void launch_count_targets(Stream stream, const char* name, const std::int64_t* targets,
                          std::int64_t rows, std::int64_t ignore_index, double* counted);
/// *total = the sum of the losses, in a fixed order, divided by *counted where that is not null.
/// `losses` are in the compute type of `total_dtype`.
void launch_total_loss(Stream stream, const char* name, const void* losses, std::int64_t rows,
                       const double* counted, DType total_dtype, void* total);

}  // namespace tenon::cuda
