// EVP context held by RAII.
#include "nn/detail/sha256.h"

#include <openssl/evp.h>

#include <array>

#include "tensor/support/check.h"

namespace tenon::nn::detail {

struct Sha256::Context {
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> md{EVP_MD_CTX_new(), &EVP_MD_CTX_free};
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  TENON_INTERNAL(context_->md && EVP_DigestInit_ex(context_->md.get(), EVP_sha256(), nullptr) == 1,
                 "SHA-256 is not available in this OpenSSL");
}

Sha256::~Sha256() = default;

void Sha256::update(std::span<const std::byte> bytes) {
  TENON_INTERNAL(EVP_DigestUpdate(context_->md.get(), bytes.data(), bytes.size()) == 1,
                 "EVP_DigestUpdate failed");
}

std::string Sha256::hex() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned length = 0;
  TENON_INTERNAL(EVP_DigestFinal_ex(context_->md.get(), digest.data(), &length) == 1,
                 "EVP_DigestFinal_ex failed");
  std::string text;
  for (unsigned i = 0; i < length; ++i) text += fmt::format("{:02x}", digest[i]);
  return text;
}

}  // namespace tenon::nn::detail
