// A bottleneck ResNet whose parameters have torchvision's names: ResNet-50 where `width` is 64,
// WideResNet-50-2 where it is 128 (S. Zagoruyko, N. Komodakis, "Wide Residual Networks", 2016).
#pragma once

#include <string>
#include <vector>

#include "nn/nn.h"

namespace tenon::bench {

inline nn::Child<nn::Conv2d> convolution(std::int64_t in, std::int64_t out, std::int64_t kernel,
                           std::int64_t stride) {
  return nn::make<nn::Conv2d>(in, out, kernel, stride, kernel / 2, 1, 1, /*bias=*/false);
}

class Bottleneck : public nn::Module {
 public:
  Bottleneck(std::int64_t in, std::int64_t middle, std::int64_t out, std::int64_t stride)
      : conv1_(register_module("conv1", convolution(in, middle, 1, 1))),
        bn1_(add<nn::BatchNorm2d>("bn1", middle)),
        conv2_(register_module("conv2", convolution(middle, middle, 3, stride))),
        bn2_(add<nn::BatchNorm2d>("bn2", middle)),
        conv3_(register_module("conv3", convolution(middle, out, 1, 1))),
        bn3_(add<nn::BatchNorm2d>("bn3", out)) {
    if (stride == 1 && in == out) return;
    downsample_ = register_module(
        "downsample",
        nn::make<nn::Sequential>(convolution(in, out, 1, stride), nn::make<nn::BatchNorm2d>(out)));
  }

  Tensor forward(const Tensor& x) const {
    Tensor y = relu(bn1_(conv1_(x)));
    y = relu(bn2_(conv2_(y)));
    y = bn3_(conv3_(y));
    return relu(y + (downsample_ ? downsample_(x) : x));
  }

 private:
  nn::Child<nn::Conv2d> conv1_;
  nn::Child<nn::BatchNorm2d> bn1_;
  nn::Child<nn::Conv2d> conv2_;
  nn::Child<nn::BatchNorm2d> bn2_;
  nn::Child<nn::Conv2d> conv3_;
  nn::Child<nn::BatchNorm2d> bn3_;
  nn::Child<nn::Sequential> downsample_;
};

class ResNet : public nn::Module {
 public:
  explicit ResNet(std::int64_t width)
      : conv1_(register_module("conv1", convolution(3, 64, 7, 2))),
        bn1_(add<nn::BatchNorm2d>("bn1", 64)),
        fc_(nn::make<nn::Linear>(2048, 1000)) {
    constexpr std::int64_t kBlocks[] = {3, 4, 6, 3};
    std::int64_t in = 64;
    for (int stage = 0; stage < 4; ++stage) {
      const std::int64_t planes = std::int64_t{64} << stage;
      const auto layer = add<nn::ModuleList<Bottleneck>>("layer" + std::to_string(stage + 1));
      for (std::int64_t i = 0; i < kBlocks[stage]; ++i) {
        layer->emplace_back(in, planes * width / 64, 4 * planes, i == 0 && stage > 0 ? 2 : 1);
        in = 4 * planes;
      }
      layers_.push_back(layer);
    }
    register_module("fc", fc_);
  }

  Tensor forward(const Tensor& images) const {
    Tensor x = max_pool2d(relu(bn1_(conv1_(images))), {3, 3}, {2, 2}, {1, 1});
    for (const auto& layer : layers_) {
      for (const auto& block : *layer) x = block(x);
    }
    return fc_(mean(x, {2, 3}));
  }

 private:
  nn::Child<nn::Conv2d> conv1_;
  nn::Child<nn::BatchNorm2d> bn1_;
  std::vector<nn::Child<nn::ModuleList<Bottleneck>>> layers_;
  nn::Child<nn::Linear> fc_;
};

}  // namespace tenon::bench
