// Where committed test data lies: $TENON_TEST_DATA, or the folder that the build copies it to.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace tenon::test {

/// The path of tests/data/<name>.
inline std::string test_data(const std::string& name) {
  namespace fs = std::filesystem;
  if (const char* folder = std::getenv("TENON_TEST_DATA")) return fs::path(folder) / name;
  const fs::path program = fs::read_symlink("/proc/self/exe");
  return (program.parent_path() / TENON_TEST_DATA_DEFAULT / name).lexically_normal();
}

}  // namespace tenon::test
