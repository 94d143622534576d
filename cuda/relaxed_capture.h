// A scope in which calls are allowed that a capture in another mode would refuse although they do not
// touch its stream: cudaMalloc, loading a kernel.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/check.h"

namespace tenon::cuda {

class RelaxedCapture {
 public:
  RelaxedCapture() { note_quietly(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  ~RelaxedCapture() { note_quietly(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace tenon::cuda
