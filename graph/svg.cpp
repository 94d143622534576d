#include "graph/svg.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>
#include <string_view>

#include "tensor/support/check.h"

namespace tenon {
namespace {

[[noreturn]] void fail_with_errno(const char* what) {
  detail::fail<ValueError>("cannot run dot: {}: {}", what, std::strerror(errno));
}

/// A connected pair of sockets that children do not inherit. Sockets, because writing to a closed one
/// can be told from outside to be an error and not a signal.
class Channel {
 public:
  Channel() {
    std::array<int, 2> ends{};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
      fail_with_errno("socketpair");
    }
    ours_ = ends[0];
    theirs_ = ends[1];
    if (fcntl(ours_, F_SETFL, O_NONBLOCK) != 0) {
      close_both();
      fail_with_errno("fcntl");
    }
  }
  ~Channel() { close_both(); }
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  int ours() const { return ours_; }
  int theirs() const { return theirs_; }
  void close_theirs() { close_end(theirs_); }
  void close_ours() { close_end(ours_); }

 private:
  static void close_end(int& end) {
    if (end >= 0) close(end);
    end = -1;
  }
  void close_both() {
    close_end(ours_);
    close_end(theirs_);
  }
  int ours_ = -1;
  int theirs_ = -1;
};

/// A child process, killed and reaped with this object unless wait() did the latter.
class Process {
 public:
  Process(Channel& in, Channel& out, Channel& err) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in.theirs(), STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out.theirs(), STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, err.theirs(), STDERR_FILENO);
    std::string name = "dot";
    std::string format = "-Tsvg";
    std::array<char*, 3> arguments = {name.data(), format.data(), nullptr};
    const int error = posix_spawnp(&pid_, "dot", &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    TENON_CHECK(error != ENOENT, ValueError,
                "there is no program 'dot' to draw an SVG with; install graphviz (on Debian or "
                "Ubuntu: apt-get install graphviz)");
    TENON_CHECK(error == 0, ValueError, "cannot run dot: {}", std::strerror(error));
    for (Channel* channel : {&in, &out, &err}) channel->close_theirs();
  }
  ~Process() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    wait();
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  /// The status that waitpid tells.
  int wait() {
    int status = 0;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return status;
  }

 private:
  pid_t pid_ = -1;
};

/// Sends what fits; closes the channel after the last byte, or when nobody reads it any more.
void send_some(Channel& channel, std::string_view& left) {
  const ssize_t sent = send(channel.ours(), left.data(), left.size(), MSG_NOSIGNAL);
  if (sent < 0 && (errno == EAGAIN || errno == EINTR)) return;
  left.remove_prefix(sent < 0 ? left.size() : static_cast<std::size_t>(sent));
  if (left.empty()) channel.close_ours();
}

/// Appends what is there; closes the channel at its end.
void receive_some(Channel& channel, std::string& text) {
  std::array<char, 1 << 16> buffer{};
  const ssize_t got = recv(channel.ours(), buffer.data(), buffer.size(), 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    channel.close_ours();
  } else {
    text.append(buffer.data(), static_cast<std::size_t>(got));
  }
}

std::string trimmed(const std::string& text) {
  const std::size_t end = text.find_last_not_of(" \n");
  return end == std::string::npos ? "it gave no reason" : text.substr(0, end + 1);
}

}  // namespace

std::string to_svg(const std::string& dot) {
  Channel in;
  Channel out;
  Channel err;
  Process process(in, out, err);
  std::string_view left = dot;
  if (left.empty()) in.close_ours();
  std::string svg;
  std::string errors;
  // All three at once: dot may fill one of them while it waits for another.
  while (out.ours() >= 0 || err.ours() >= 0) {
    // poll() passes over descriptors that are -1.
    std::array<pollfd, 3> waiting = {pollfd{in.ours(), POLLOUT, 0}, pollfd{out.ours(), POLLIN, 0},
                                     pollfd{err.ours(), POLLIN, 0}};
    if (poll(waiting.data(), waiting.size(), -1) < 0) {
      if (errno == EINTR) continue;
      fail_with_errno("poll");
    }
    if (waiting[0].revents != 0) send_some(in, left);
    if (waiting[1].revents != 0) receive_some(out, svg);
    if (waiting[2].revents != 0) receive_some(err, errors);
  }
  const int status = process.wait();
  TENON_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0 && !svg.empty(), ValueError,
              "dot failed: {}", trimmed(errors));
  return svg;
}

void write_svg(const std::string& path, const std::string& dot) {
  const std::string svg = to_svg(dot);
  std::ofstream file(path, std::ios::binary);
  file.write(svg.data(), static_cast<std::streamsize>(svg.size()));
  TENON_CHECK(file.flush(), ValueError, "cannot write {}", path);
}

}  // namespace tenon
