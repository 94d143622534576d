// POSIX file access with every return code checked.
#include "nn/detail/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <system_error>
#include <utility>

#include "tensor/support/check.h"

namespace tenon::nn::detail {

namespace {

constexpr std::size_t kBuffer = std::size_t{1} << 20;
constexpr std::size_t kMaxTransfer = std::size_t{1} << 30;

std::string reason_of(int error) { return std::generic_category().message(error); }

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

// What stands at `path` when it is not a regular file.
const char* kind_of(mode_t mode) {
  return S_ISDIR(mode)    ? "a directory"
         : S_ISFIFO(mode) ? "a FIFO"
         : S_ISSOCK(mode) ? "a socket"
                          : "a device";
}

}  // namespace

std::filesystem::path follow_links(std::filesystem::path path, const std::string& where) {
  constexpr int kMaxLinks = 40;  // Linux's own limit
  std::error_code error;
  for (int i = 0; std::filesystem::is_symlink(std::filesystem::symlink_status(path, error)); ++i) {
    TENON_CHECK(i < kMaxLinks, CheckpointError, "{}: cannot be opened: {}", where,
                reason_of(ELOOP));
    const std::filesystem::path target = std::filesystem::read_symlink(path, error);
    TENON_CHECK(!error, CheckpointError, "{}: cannot be opened: {}", where, error.message());
    path = path.parent_path() / target;  // the target alone where it is absolute
  }
  return path;
}

FileHandle& FileHandle::operator=(FileHandle&& other) noexcept {
  if (this != &other) {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = other.release();
  }
  return *this;
}

FileHandle::~FileHandle() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

int FileHandle::release() noexcept { return std::exchange(descriptor_, -1); }

InputFile::InputFile(const std::filesystem::path& path, std::string where)
    : where_(std::move(where)) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  const int error = errno;
  TENON_CHECK(descriptor >= 0, CheckpointError, "{}: cannot be opened: {}", where_,
              reason_of(error));
  file_ = FileHandle(descriptor);
  struct stat status {};
  TENON_CHECK(::fstat(descriptor, &status) == 0, CheckpointError, "{}: cannot be examined: {}",
              where_, reason_of(errno));
  TENON_CHECK(S_ISREG(status.st_mode), CheckpointError, "{}: is {}; needed a regular file", where_,
              kind_of(status.st_mode));
  size_ = static_cast<std::uint64_t>(status.st_size);
}

void InputFile::read(std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::read(file_.get(), bytes.data(), std::min(bytes.size(), kMaxTransfer));
    if (count < 0 && errno == EINTR) continue;
    TENON_CHECK(count >= 0, CheckpointError, "{}: cannot be read: {}", where_, reason_of(errno));
    TENON_CHECK(count > 0, CheckpointError, "{}: became shorter while it was read", where_);
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
}

void InputFile::seek(std::uint64_t offset) {
  TENON_CHECK(::lseek(file_.get(), static_cast<off_t>(offset), SEEK_SET) >= 0, CheckpointError,
              "{}: cannot be read: {}", where_, reason_of(errno));
}

AtomicFile::AtomicFile(std::filesystem::path target, std::string where)
    : target_(std::move(target)), where_(std::move(where)) {
  struct stat status {};
  const bool is_there = ::stat(target_.c_str(), &status) == 0;
  TENON_CHECK(!is_there || S_ISREG(status.st_mode) || S_ISDIR(status.st_mode), CheckpointError,
              "{}: is {}; needed a regular file or a new name", where_, kind_of(status.st_mode));
  static std::atomic<unsigned> counter{0};
  // A temporary of a killed process must not block this one, so the number counts on.
  for (int attempt = 0; attempt < 1000 && file_.get() < 0; ++attempt) {
    temporary_ = target_;
    temporary_ += fmt::format(".tmp-{}-{}", ::getpid(), counter++);
    file_ = FileHandle(::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (file_.get() < 0 && errno != EEXIST) break;
  }
  if (file_.get() < 0) {
    temporary_.clear();
    fail("cannot be created");
  }
  if (is_there && S_ISREG(status.st_mode) && ::fchmod(file_.get(), status.st_mode & 07777) != 0) {
    fail("cannot get the mode of the file it replaces");
  }
}

AtomicFile::~AtomicFile() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::fail(const char* action) {
  const int error = errno;
  if (!temporary_.empty()) ::unlink(temporary_.c_str());  // the constructor may throw
  temporary_.clear();
  throw CheckpointError(fmt::format("{}: {}: {}", where_, action, reason_of(error)));
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  write(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

void AtomicFile::write(std::string_view text) {
  while (!text.empty()) {
    const std::size_t part = std::min(text.size(), kBuffer - buffer_.size());
    buffer_.append(text.substr(0, part));
    text.remove_prefix(part);
    if (buffer_.size() == kBuffer) flush();
  }
}

void AtomicFile::flush() {
  std::string_view rest = buffer_;
  while (!rest.empty()) {
    const ssize_t count = ::write(file_.get(), rest.data(), rest.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail("cannot be written");
    rest.remove_prefix(static_cast<std::size_t>(count));
  }
  buffer_.clear();
}

void AtomicFile::commit_as(const std::filesystem::path& target) {
  flush();
  if (::fsync(file_.get()) != 0) fail("cannot be synced");
  if (::close(file_.release()) != 0) fail("cannot be closed");
  if (::rename(temporary_.c_str(), target.c_str()) != 0) fail("cannot be renamed into place");
  temporary_.clear();
  is_in_place_ = true;
  const FileHandle folder(::open(folder_of(target).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // Some file systems cannot sync a folder and say so with EINVAL.
  if (folder.get() < 0 || (::fsync(folder.get()) != 0 && errno != EINVAL)) {
    fail("its folder cannot be synced");
  }
}

}  // namespace tenon::nn::detail
