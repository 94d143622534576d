#include "graph/svg.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string_view>

#include "tensor/support/check.h"

namespace tenon {
namespace {

void write_file(const std::string& path, std::string_view text) {
  std::ofstream file(path, std::ios::binary);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  TENON_CHECK(file.flush(), ValueError, "cannot write {}", path);
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A folder that nobody else has, removed with this object.
class TemporaryFolder {
 public:
  TemporaryFolder() : path_((std::filesystem::temp_directory_path() / "tenon-XXXXXX").string()) {
    TENON_CHECK(mkdtemp(path_.data()) != nullptr, ValueError, "cannot make a folder {}: {}", path_,
                std::strerror(errno));
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string file(const char* name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// Runs `dot -Tsvg -o OUTPUT INPUT`, its messages going to a file; whether it succeeded.
bool run_dot(std::string input, std::string output, const std::string& messages) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, messages.c_str(), O_WRONLY | O_CREAT,
                                   0600);
  std::array<std::string, 4> words = {"dot", "-Tsvg", "-o", std::move(output)};
  std::array<char*, 6> arguments = {words[0].data(), words[1].data(), words[2].data(),
                                    words[3].data(), input.data(),    nullptr};
  pid_t child = -1;
  const int error = posix_spawnp(&child, "dot", &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  TENON_CHECK(error != ENOENT, ValueError,
              "there is no program 'dot' to draw an SVG with; install graphviz (on Debian or "
              "Ubuntu: apt-get install graphviz)");
  TENON_CHECK(error == 0, ValueError, "cannot run dot: {}", std::strerror(error));
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

std::string to_svg(const std::string& dot) {
  const TemporaryFolder folder;
  const std::string input = folder.file("graph.dot");
  const std::string output = folder.file("graph.svg");
  const std::string messages = folder.file("messages");
  write_file(input, dot);
  const bool done = run_dot(input, output, messages);
  std::string svg = read_file(output);
  if (done && !svg.empty()) return svg;
  std::string reason = read_file(messages);
  reason.erase(reason.find_last_not_of(" \n") + 1);
  detail::fail<ValueError>("dot failed: {}", reason.empty() ? "it gave no reason" : reason);
}

void write_svg(const std::string& path, const std::string& dot) { write_file(path, to_svg(dot)); }

}  // namespace tenon
