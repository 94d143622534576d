// What the tests of hostile checkpoints share: a file's error, and pieces of malformed files.
#pragma once

#include <gtest/gtest.h>
#include <openssl/evp.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "nn/nn.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace tenon::test {

// The text after "[load_checkpoint] <path>: " of the CheckpointError that loading throws.
inline std::string load_error(const std::string& path) {
  const std::string text = error_text<CheckpointError>([&] { (void)nn::load_checkpoint(path); });
  const std::string prefix = "[load_checkpoint] " + path + ": ";
  EXPECT_TRUE(text.starts_with(prefix)) << text;
  return text.size() > prefix.size() ? text.substr(prefix.size()) : text;
}

// A file and its error.
struct Case {
  std::string text;
  std::string error;
};

// A message at a column of line 1.
inline std::string at(const std::string& message, int column) {
  return message + " (line 1, column " + std::to_string(column) + ")";
}

// A .safetensors file of this header and data.
inline std::string safetensors(const std::string& header, const std::string& data) {
  std::string file(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(file.data(), &length, 8);
  return file + header + data;
}

inline std::string sha256(const std::string& text) {
  unsigned char digest[32];
  EVP_Digest(text.data(), text.size(), digest, nullptr, EVP_sha256(), nullptr);
  std::string hex;
  for (unsigned char byte : digest) {
    hex += "0123456789abcdef"[byte >> 4];
    hex += "0123456789abcdef"[byte & 15];
  }
  return hex;
}

// One tensor of such a header.
inline std::string entry(const std::string& name, const std::string& dtype,
                         const std::string& shape, const std::string& offsets) {
  return '"' + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
         offsets + "}";
}

}  // namespace tenon::test
