// Convolutions and their gradients as a Program runs them: kernel, layout and time of each.
//
//   bench_conv --sizes 64 64 56 56 256 1 1 1 0 --json
//
// --sizes N C H W O KERNEL GROUPS STRIDE PADDING, again and again. Operands lie as the kernel wants them in a
// Program; microseconds are medians of captured launches, of the result, the images' gradient and the
// filters'. fused: with a bias, the residual and ReLU in the same call.
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "benchmarks/measure.h"
#include "tensor/device_backend.h"
#include "tensor/error.h"
#include "tensor/op.h"
#include "tensor/ops/vision_attributes.h"
#include "tensor/tensor.h"

namespace {

using namespace tenon;

struct Options : bench::CommonOptions {
  std::vector<std::int64_t> sizes;
  int runs = 10;
};

class Measurement {
 public:
  explicit Measurement(const Options& o)
      : o_(o), device_(o.chosen_device()), dtype_(parse_dtype(o.dtype)), generator_(o.seed) {
    if (!device_.is_cuda()) throw DeviceError("bench_conv measures a GPU; needed --device cuda");
    if (o.sizes.empty() || o.sizes.size() % kNumbers != 0) {
      throw ValueError("needed --sizes N C H W O KERNEL GROUPS STRIDE PADDING");
    }
    backend_ = &device_backend(DeviceType::cuda);
  }

  nlohmann::ordered_json run() {
    nlohmann::ordered_json rows = nlohmann::ordered_json::array();
    for (std::size_t i = 0; i < o_.sizes.size(); i += kNumbers) {
      rows.push_back(row(&o_.sizes[i]));
      std::cerr << rows.back().dump() << "\n";
    }
    return {{"device", backend_->device_name(device_.index)}, {"rows", std::move(rows)}};
  }

 private:
  static constexpr std::size_t kNumbers = 9;

  nlohmann::ordered_json row(const std::int64_t* s) {
    const std::int64_t n = s[0], c = s[1], h = s[2], w = s[3], o = s[4], k = s[5], groups = s[6];
    const std::int64_t stride = s[7], padding = s[8];
    const auto positions = [&](std::int64_t size) { return (size + 2 * padding - k) / stride + 1; };
    const Shape images{n, c, h, w}, filters{o, c / groups, k, k};
    const Shape result{n, o, positions(h), positions(w)};
    const Conv2dAttrs attrs{{stride, stride}, {padding, padding}, {1, 1}, groups};
    const auto backward = [&](const Shape& shape) {
      return Conv2dBackwardAttrs{attrs.stride, attrs.padding, attrs.dilation, groups, shape};
    };
    nlohmann::ordered_json row = {{"sizes", std::vector<std::int64_t>(s, s + kNumbers)}};
    row["forward"] = measure("conv2d", {images, filters, {}}, result, attrs);
    if (find_op("conv2d_relu") != nullptr) {
      row["fused"] = measure("conv2d_relu", {images, filters, {o}, result}, result, attrs);
    }
    row["d_images"] = measure("conv2d_backward_input", {result, filters}, images, backward(images));
    row["d_filters"] =
        measure("conv2d_backward_weight", {result, images}, filters, backward(filters));
    return row;
  }

  TensorView view_of(const Shape& shape) const {
    TensorView view;
    view.present = shape.rank() > 0;
    view.dtype = dtype_;
    view.device = device_;
    for (const Dim& dim : shape) view.sizes.push_back(dim.value());
    view.strides = contiguous_strides(view.sizes);
    return view;
  }

  /// As lowering does it: the kernel and its layout are chosen before addresses are known.
  nlohmann::ordered_json measure(const char* name, const std::vector<Shape>& operands,
                                 const Shape& result, const Attrs& attrs) {
    const Op& op = get_op(name);
    std::vector<TensorView> inputs;
    for (const Shape& shape : operands) inputs.push_back(view_of(shape));
    TensorView outputs[1] = {view_of(result)};
    KernelArgs args{&op, inputs, outputs, &attrs};
    args.stream = backend_->stream(device_.index);
    const Kernel* kernel = select_kernel(op, DeviceType::cuda, args);
    if (kernel == nullptr) return {{"kernel", "none"}};
    const bool channels_last =
        kernel->image_layout != nullptr && kernel->image_layout(args) == ImageLayout::channels_last;
    std::vector<Tensor> memory;
    const auto place = [&](TensorView& view) {
      if (!view.present) return;
      if (channels_last && view.sizes.size() == 4) view.strides = channels_last_strides(view.sizes);
      memory.push_back(randn({view.numel()}, {dtype_, device_}, &generator_));
    };
    for (TensorView& view : inputs) place(view);
    place(outputs[0]);
    const std::size_t bytes = kernel->workspace_bytes ? kernel->workspace_bytes(args) : 0;
    const Tensor workspace = empty({static_cast<std::int64_t>(bytes)}, {DType::uint8, device_});
    std::size_t next = 0;
    for (TensorView& view : inputs) {
      if (view.present) view.data = memory[next++].view_of_data().data;
    }
    outputs[0].data = memory[next].view_of_data().data;
    if (bytes > 0) args.workspace = workspace.view_of_data().data;
    const double time = time_us([&] {
      args.stream = backend_->stream(device_.index);
      kernel->run(args);
    });
    return {{"kernel", kernel->name},
            {"channels_last", channels_last},
            {"workspace_bytes", bytes},
            {"microseconds", time}};
  }

  template <class F>
  double time_us(const F& one) {
    one();
    const auto work = backend_->capture(device_.index, [&](const auto*) {
      for (int i = 0; i < o_.runs; ++i) one();
    });
    work->launch(0);
    std::vector<double> times;
    for (int repeat = 0; repeat < 5; ++repeat) {
      times.push_back(backend_->time_ms(device_.index, [&] { work->launch(0); }) * 1e3 / o_.runs);
    }
    return bench::median(std::move(times));
  }

  Options o_;
  Device device_;
  DType dtype_;
  Generator generator_;
  DeviceBackend* backend_ = nullptr;
};

}  // namespace

int main(int argc, char** argv) {
  CommandLine line("Times convolutions and their gradients");
  Options options;
  options.add_to(line);
  line.option("--sizes", options.sizes, "N C H W O KERNEL GROUPS STRIDE PADDING of each")
      .without_default();
  line.option("--runs", options.runs, "launches of a measurement").positive();
  return bench::run_program(line, argc, argv, options, [&] { return Measurement(options).run(); });
}
