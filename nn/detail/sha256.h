// SHA-256 (FIPS 180-4) of a stream of bytes, through OpenSSL's EVP interface.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace tenon::nn::detail {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void update(std::span<const std::byte> bytes);
  /// 64 lower-case hexadecimal digits; ends the stream.
  std::string hex();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

}  // namespace tenon::nn::detail
