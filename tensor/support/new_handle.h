// Another handle on a tensor's value.
#pragma once

#include <memory>

#include "tensor/tensor.h"

namespace tenon::detail {

/// A copy of all but gradient and hooks, which are not even read: another thread may be setting
/// those of a leaf that both compute with.
inline std::shared_ptr<TensorImpl> new_handle(const TensorImpl& impl) {
  auto handle = std::make_shared<TensorImpl>();
  handle->spec = impl.spec;
  handle->layout = impl.layout;
  handle->storage = impl.storage;
  handle->payload = impl.payload;
  handle->requires_grad = impl.requires_grad;
  handle->producer = impl.producer;
  handle->output_index = impl.output_index;
  handle->is_recorded_view = impl.is_recorded_view;
  handle->version = impl.version;
  return handle;
}

}  // namespace tenon::detail
