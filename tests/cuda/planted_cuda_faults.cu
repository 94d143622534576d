// Tiny kernels with one planted fault each, of a kind that a tool of compute-sanitizer is for, and
// the same kernels without: tools/sanitize_cuda.py shows with them that the tools find what is
// there.
//
//   compute-sanitizer --tool racecheck planted_cuda_faults --fault shared_race
//
//   out_of_bounds       memcheck   writes one element past the end of an allocation
//   shared_race         racecheck  reads what another warp writes, with no barrier between
//   foreign_barrier     synccheck  a barrier of lanes that a lane which is none of them waits at
//   uninitialized_read  initcheck  reads memory that nobody has written
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "examples/command_line.h"

namespace {

constexpr int kThreads = 64;  // two warps

/// A thread for each element, or one too many.
__global__ void write_each(float* data) { data[threadIdx.x] = static_cast<float>(threadIdx.x); }

template <bool kBarrier>
__global__ void reverse(const float* source, float* target) {
  __shared__ float elements[kThreads];
  elements[threadIdx.x] = source[threadIdx.x];
  if constexpr (kBarrier) __syncthreads();
  target[threadIdx.x] = elements[kThreads - 1 - threadIdx.x];
}

/// Half a warp exchanges elements; `lanes` of its lanes come to the barrier of that half.
__global__ void swap_neighbours(const float* source, float* target, int lanes) {
  __shared__ float elements[kThreads];
  constexpr int kHalf = 16;
  const int thread = static_cast<int>(threadIdx.x);
  const unsigned half = __ballot_sync(~0U, thread % 32 < kHalf);
  if (thread >= lanes) return;
  elements[thread] = source[thread];
  __syncwarp(half);
  target[thread] = elements[thread ^ 1];
}

__global__ void copy_each(const float* source, float* target) {
  target[threadIdx.x] = source[threadIdx.x];
}

/// Ends the program unless the call has succeeded.
void require(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "error: %s: %s\n", call, cudaGetErrorString(status));
  std::exit(2);
}
#define REQUIRE(call) require((call), #call)

/// kThreads floats in an allocation of their own, all 0 or as they come.
class Floats {
 public:
  explicit Floats(bool zero = true) {
    REQUIRE(cudaMalloc(&data_, kThreads * sizeof(float)));
    if (zero) REQUIRE(cudaMemset(data_, 0, kThreads * sizeof(float)));
  }
  ~Floats() { static_cast<void>(cudaFree(data_)); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  float* data() const { return data_; }

 private:
  float* data_ = nullptr;
};

/// Whether a kernel runs: the one whose fault is asked for, or all as they should be.
bool is_run(const std::string& fault, const char* name) { return fault == "none" || fault == name; }

/// Launches what `fault` names; the device's answer.
cudaError_t run(const std::string& fault) {
  const bool planted = fault != "none";
  const Floats source, target;
  if (is_run(fault, "out_of_bounds")) {
    write_each<<<1, planted ? kThreads + 1 : kThreads>>>(target.data());
  }
  if (is_run(fault, "shared_race")) {
    planted ? reverse<false><<<1, kThreads>>>(source.data(), target.data())
            : reverse<true><<<1, kThreads>>>(source.data(), target.data());
  }
  if (is_run(fault, "foreign_barrier")) {
    swap_neighbours<<<1, 32>>>(source.data(), target.data(), planted ? 17 : 16);
  }
  if (is_run(fault, "uninitialized_read")) {
    const Floats unwritten(/*zero=*/!planted);
    copy_each<<<1, kThreads>>>(unwritten.data(), target.data());
  }
  const cudaError_t launched = cudaGetLastError();
  return launched != cudaSuccess ? launched : cudaDeviceSynchronize();
}

}  // namespace

int main(int argc, char** argv) {
  tenon::CommandLine line("Runs tiny kernels with a planted fault, for compute-sanitizer to find");
  std::string fault = "none";
  bool json = false;
  line.option("--fault", fault, "what is planted")
      .one_of({"none", "out_of_bounds", "shared_race", "foreign_barrier", "uninitialized_read"});
  line.flag("--json", json, "one JSON object on stdout");
  line.footer(
      "Exit status: 0 the kernels ran, whatever they did wrong, or there is no GPU; 1 without a "
      "fault\n"
      "they failed; 2 an error.");
  if (const auto status = line.parse(argc, argv)) return *status;
  int devices = 0;
  const cudaError_t found = cudaGetDeviceCount(&devices);
  if (found != cudaSuccess || devices == 0) {
    const char* reason = found != cudaSuccess ? cudaGetErrorString(found) : "no CUDA device";
    std::printf(json ? "{\"fault\":\"%s\",\"skipped\":\"%s\"}\n" : "%s: skipped: %s\n",
                fault.c_str(), reason);
    return 0;
  }
  // A tool may stop a kernel that it finds at fault.
  const cudaError_t status = run(fault);
  std::printf(json ? "{\"fault\":\"%s\",\"status\":\"%s\"}\n" : "%s: %s\n", fault.c_str(),
              cudaGetErrorString(status));
  return status != cudaSuccess && fault == "none" ? 1 : 0;
}
