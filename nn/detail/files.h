// Reading regular files only, and writing a file so that it is there whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace tenon::nn::detail {

/// A file descriptor that closes itself.
class FileHandle {
 public:
  FileHandle() = default;
  explicit FileHandle(int descriptor) : descriptor_(descriptor) {}
  FileHandle(FileHandle&& other) noexcept : descriptor_(other.release()) {}
  FileHandle& operator=(FileHandle&& other) noexcept;
  ~FileHandle();
  int get() const { return descriptor_; }
  int release() noexcept;

 private:
  int descriptor_ = -1;
};

/// Where the symbolic links of `path` itself lead, be there a file or not; `path` when it is none.
/// CheckpointError that starts with `where` for links in a circle.
std::filesystem::path follow_links(std::filesystem::path path, const std::string& where);

/// An open regular file, read from start to end. Every failure is a CheckpointError that starts
/// with `where` ("[load_checkpoint] model.json").
class InputFile {
 public:
  /// Never blocks: a FIFO or a device is refused, not waited for.
  InputFile(const std::filesystem::path& path, std::string where);
  std::uint64_t size() const { return size_; }
  /// Reads exactly this many bytes; an error when the file became shorter.
  void read(std::span<std::byte> bytes);
  /// Continues at this byte.
  void seek(std::uint64_t offset);

 private:
  std::string where_;
  FileHandle file_;
  std::uint64_t size_ = 0;
};

/// A temporary file in the target's folder; commit() syncs it, renames it over the target and syncs
/// the folder. Without a commit it is removed and the target is as it was. A link that stands at the
/// target is replaced, not followed; what is neither a file nor a folder (a device) is refused.
class AtomicFile {
 public:
  AtomicFile(std::filesystem::path target, std::string where);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  void commit() { commit_as(target_); }
  /// Renames to another name of the same folder instead.
  void commit_as(const std::filesystem::path& target);
  /// Whether the file stands under its name: commit() may fail after that, in syncing the folder.
  bool is_in_place() const { return is_in_place_; }

 private:
  void flush();
  [[noreturn]] void fail(const char* action);

  std::filesystem::path target_;
  std::filesystem::path temporary_;
  std::string where_;
  FileHandle file_;
  std::string buffer_;
  bool is_in_place_ = false;
};

}  // namespace tenon::nn::detail
