// Hostile files around checkpoints: other formats, what is not a regular file, .safetensors
// headers, side files and their paths, and disks that fill up while writing.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstring>

#include "nn/nn.h"
#include "tests/error/checkpoint_cases.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace tenon {
namespace {

namespace fs = std::filesystem;
using test::at;
using test::Case;
using test::entry;
using test::load_error;
using test::safetensors;
using test::sha256;
using test::TempFolder;
using test::write_file;

const char* const kEmpty = R"({"format": "tenon.checkpoint", "version": 1, "tensors": {}})";

TEST(CheckpointFile, OtherFormatsAreNamed) {
  const TempFolder folder;
  const std::string tail =
      "; needed a JSON checkpoint or a .safetensors file, as tools/export_checkpoint.py writes "
      "them";
  const std::vector<Case> cases = {
      {std::string("PK\x03\x04", 4) + "xxxxxxxx",
       "is a zip archive (a PyTorch .pt or NumPy .npz file?)"},
      {"\x80\x02}q", "is a Python pickle"},
      {"\x80\x05\x95", "is a Python pickle"},
      {"GGUF\x03", "is a GGUF file"},
      {"\x89HDF\r\n\x1a\n", "is an HDF5 file"},
      {"\x1f\x8b\x08", "is gzip-compressed"},
      {"\x93NUMPY\x01", "is a NumPy array"},
  };
  for (const std::string name : {"m.json", "m.safetensors", "m.bin"}) {
    for (const Case& c : cases) {
      write_file(folder / name, c.text);
      EXPECT_EQ(load_error(folder / name), c.error + tail);
    }
  }
}

TEST(CheckpointFile, OnlyRegularFilesAreRead) {
  const TempFolder folder;
  EXPECT_EQ(load_error(folder / "none.json"), "cannot be opened: No such file or directory");
  EXPECT_EQ(load_error(folder.path().string()), "is a directory; needed a regular file");
  ASSERT_EQ(::mkfifo((folder / "fifo.json").c_str(), 0600), 0);
  EXPECT_EQ(load_error(folder / "fifo.json"), "is a FIFO; needed a regular file");
  EXPECT_EQ(load_error("/dev/zero"), "is a device; needed a regular file");
  fs::create_symlink("loop.json", folder / "loop.json");
  EXPECT_EQ(load_error(folder / "loop.json"),
            "cannot be opened: Too many levels of symbolic links");
  fs::create_symlink("nothing", folder / "dangling.json");
  EXPECT_EQ(load_error(folder / "dangling.json"), "cannot be opened: No such file or directory");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, (folder / "socket").c_str(), sizeof(address.sun_path) - 1);
  const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(::bind(socket, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(load_error(folder / "socket"), "cannot be opened: No such device or address");
  ::close(socket);
  if (::geteuid() != 0) {
    write_file(folder / "secret.json", kEmpty);
    fs::permissions(folder / "secret.json", fs::perms::none);
    EXPECT_EQ(load_error(folder / "secret.json"), "cannot be opened: Permission denied");
  }
}

TEST(CheckpointFile, PathsAreEscapedInMessages) {
  const TempFolder folder;
  const std::string text =
      test::error_text<CheckpointError>([&] { (void)nn::load_checkpoint(folder / "a\nb.json"); });
  EXPECT_EQ(text, "[load_checkpoint] " + folder.path().string() +
                      "/a\\x0ab.json: cannot be opened: No such file or directory");
}

TEST(CheckpointFile, ALargeManifestIsRefusedByItsSize) {
  const TempFolder folder;
  write_file(folder / "m.json", kEmpty);
  EXPECT_EQ(test::error_text<CheckpointError>(
                [&] { (void)nn::load_checkpoint(folder / "m.json", {.max_manifest_bytes = 10}); }),
            "[load_checkpoint] " + (folder / "m.json") +
                ": the manifest has 59 bytes; at most 10 are read");
  fs::resize_file(folder / "m.json", std::uintmax_t{1} << 40);  // sparse
  EXPECT_EQ(load_error(folder / "m.json"),
            "the manifest has 1099511627776 bytes; at most 2147483648 are read");
}

TEST(Safetensors, HeadersAreChecked) {
  const TempFolder folder;
  const std::string good = "{" + entry("w", "U8", "[2]", "[0,2]") + "}";
  const auto length_of = [](std::uint64_t length, const std::string& rest) {
    std::string file(8, '\0');
    std::memcpy(file.data(), &length, 8);
    return file + rest;
  };
  const std::vector<Case> cases = {
      {"abc", "has 3 bytes; a .safetensors file starts with 8 bytes of header length"},
      {length_of(0, ""), "the header does not start with '{'"},
      {length_of(0, "xx"), "the header does not start with '{'"},
      {length_of(std::uint64_t{1} << 63, good),
       "the header length is 9223372036854775808; at most 100000000 is allowed"},
      {length_of(~std::uint64_t{0}, good),
       "the header length is 18446744073709551615; at most 100000000 is allowed"},
      {length_of(100'000'001, good),
       "the header length is 100000001; at most 100000000 is allowed"},
      {length_of(__builtin_bswap64(good.size()), good + "xx"),
       "the header length is 3819052484010180608; at most 100000000 is allowed"},
      {length_of(1000, good),
       "the header is 1000 bytes long, but the file has only 61; is it truncated?"},
      {safetensors(" " + good, "xx"), "the header does not start with '{'"},
      {safetensors("[]", ""), "the header does not start with '{'"},
      {safetensors(good + "x", "xx"), at("text after the end of the document", 54)},
      {safetensors(good, "xxx"), "1 bytes follow the last tensor; needed none"},
      {safetensors(good, "x"),
       "tensor \"w\": data_offsets [0, 2] reach outside the 1 bytes of data; is the file "
       "truncated?"},
      {safetensors(
           "{" + entry("a", "U8", "[2]", "[0,2]") + "," + entry("b", "U8", "[2]", "[1,3]") + "}",
           "xxx"),
       "tensor \"b\": starts at byte 1, where byte 2 is next: tensors overlap"},
      {safetensors(
           "{" + entry("a", "U8", "[2]", "[0,2]") + "," + entry("b", "U8", "[2]", "[0,2]") + "}",
           "xx"),
       "tensor \"b\": starts at byte 0, where byte 2 is next: tensors overlap"},
      {safetensors(
           "{" + entry("a", "U8", "[1]", "[0,1]") + "," + entry("b", "U8", "[1]", "[2,3]") + "}",
           "xxx"),
       "tensor \"b\": starts at byte 2, where byte 1 is next: there is a hole"},
      {safetensors("{" + entry("a", "U8", "[1]", "[1,2]") + "}", "xx"),
       "tensor \"a\": starts at byte 1, where byte 0 is next: there is a hole"},
      {safetensors("{" + entry("a", "U8", "[1]", "[2,1]") + "}", "xx"),
       at("tensor \"a\": data_offsets [2, 1] do not span the 1 bytes of uint8(1,)", 53)},
      {safetensors("{" + entry("a", "F32", "[1]", "[0,2]") + "}", "xx"),
       at("tensor \"a\": data_offsets [0, 2] do not span the 4 bytes of float32(1,)", 54)},
      {safetensors("{" + entry("a", "U8", "[1]", "[-1,0]") + "}", ""),
       at("tensor \"a\": an offset is -1; needed an integer in [0, 2^63)", 50)},
      {safetensors("{" + entry("a", "U8", "[1]", "[0]") + "}", "x"),
       at("tensor \"a\": data_offsets has 1 numbers; needed 2", 50)},
      {safetensors("{" + entry("a", "U8", "[1]", "[0,1,1]") + "}", "x"),
       at("tensor \"a\": data_offsets has more than 2 numbers", 52)},
      {safetensors("{" + entry("a", "F8_E4M3", "[2]", "[0,1]") + "}", "x"),
       at("tensor \"a\": data_offsets [0, 1] do not span the 2 bytes of F8_E4M3(2,)", 58)},
      {safetensors("{" + entry("a", "U8", "[4194305,4194305,211106198978564]", "[0,4]") + "}",
                   "xxxx"),
       at("tensor \"a\": shape (4194305, 4194305, 211106198978564) has more than 2^63 elements",
          60)},
      {safetensors(
           "{" + entry("a", "U8", "[1]", "[0,1]") + "," + entry("a", "U8", "[1]", "[1,2]") + "}",
           "xx"),
       at("the key \"a\" stands twice", 57)},
      {safetensors("{\"__metadata__\":{\"a\":1}," + good.substr(1), "xx"),
       at("\"a\" of __metadata__ is a number; needed a string", 22)},
      {safetensors("{\"__metadata__\":{\"a\":\"1\",\"a\":\"1\"}," + good.substr(1), "xx"),
       at("the key \"a\" stands twice", 29)},
      {safetensors(R"({"a":{"dtype":"U8","shape":[1]}})", ""),
       at("tensor \"a\": data_offsets is missing", 32)},
      {safetensors(R"({"a":{"dtype":"U8","shape":[1],"x":1}})", ""),
       at("tensor \"a\": unknown key \"x\"; needed dtype, shape and data_offsets", 36)},
      {safetensors("{" + entry("", "U8", "[1]", "[0,1]") + "}", "x"),
       "tensor \"\": the name is empty"},
      {safetensors("{" + entry("a", "BOOL", "[1]", "[0,1]") + "}", "\x02"),
       "tensor \"a\": a byte of a bool tensor is neither 0 nor 1"},
  };
  for (const Case& c : cases) {
    write_file(folder / "m.safetensors", c.text);
    EXPECT_EQ(load_error(folder / "m.safetensors"), c.error);
  }
  const std::string whole = safetensors(good, "xy");
  for (std::size_t length = 1; length < whole.size(); ++length) {
    write_file(folder / "m.safetensors", whole.substr(0, length));
    EXPECT_FALSE(load_error(folder / "m.safetensors").empty());
  }
}

TEST(Safetensors, OddButValidHeaders) {
  const TempFolder folder;
  // Trailing spaces, an odd header length (unaligned doubles), empty tensors, another file name.
  std::string header = R"({"__metadata__":{"format":"pt"},)" + entry("w", "F64", "[1]", "[0,8]") +
                       "," + entry("e", "F32", "[0,3]", "[8,8]") + "," +
                       entry("s", "U8", "[]", "[8,9]") + "}";
  header += header.size() % 2 == 0 ? " " : "  ";
  const double value = 0.1;
  std::string data(8, '\0');
  std::memcpy(data.data(), &value, 8);
  for (const std::string name : {"m.safetensors", "m.bin"}) {
    write_file(folder / name, safetensors(header, data + "\x07"));
    const nn::Checkpoint loaded = nn::load_checkpoint(folder / name);
    EXPECT_EQ(loaded.tensors.at("w").to_doubles(), std::vector<double>{0.1});
    EXPECT_EQ(loaded.tensors.at("e").shape().to_string(), "(0, 3)");
    EXPECT_EQ(loaded.tensors.at("s").to_doubles(), std::vector<double>{7});
    EXPECT_EQ(loaded.metadata.string("format"), "pt");
  }
}

TEST(Safetensors, ASparseFileOfATerabyteIsNotBelieved) {
  const TempFolder folder;
  write_file(folder / "m.safetensors",
             safetensors("{" + entry("w", "U8", "[2]", "[0,2]") + "}", "xx"));
  fs::resize_file(folder / "m.safetensors", std::uintmax_t{1} << 40);
  EXPECT_EQ(load_error(folder / "m.safetensors"),
            "1099511627713 bytes follow the last tensor; needed none");
}

// --- side files ---------------------------------------------------------------------------------

class SideFile : public ::testing::Test {
 protected:
  // A manifest whose tensor "w" is uint8(4) at `offsets` of side.safetensors.
  std::string manifest(const std::string& path, std::size_t size, const std::string& hash,
                       const std::string& offsets = "[0, 4]", const std::string& more = "") const {
    return R"({"format": "tenon.checkpoint", "version": 1, "files": {"f": {"path": ")" + path +
           R"(", "size": )" + std::to_string(size) + R"(, "sha256": ")" + hash +
           R"("}}, "tensors": {"w": {"dtype": "uint8", "shape": [4], "file": "f", "data_offsets": )" +
           offsets + "}" + more + "}}";
  }
  std::string error_with(const std::string& text) {
    write_file(folder_ / "m.json", text);
    return load_error(folder_ / "m.json");
  }
  std::string prefix(const std::string& path = "side.safetensors") const {
    return "file \"f\" (" + path + "): ";
  }
  TempFolder folder_;
  std::string side_ = safetensors(
      "{" + entry("w", "U8", "[4]", "[0,4]") + "," + entry("v", "U8", "[2]", "[4,6]") + "}",
      "abcdef");
};

TEST_F(SideFile, IsReadAndChecked) {
  write_file(folder_ / "side.safetensors", side_);
  write_file(folder_ / "m.json", manifest("side.safetensors", side_.size(), sha256(side_)));
  EXPECT_EQ(nn::load_checkpoint(folder_ / "m.json").tensors.at("w").to_doubles(),
            (std::vector<double>{'a', 'b', 'c', 'd'}));
  // Every single flipped bit is noticed: in the header by its grammar or the hash.
  for (std::size_t bit = 0; bit < side_.size() * 8; bit += 5) {
    std::string damaged = side_;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    write_file(folder_ / "side.safetensors", damaged);
    EXPECT_TRUE(load_error(folder_ / "m.json").starts_with(prefix())) << bit;
  }
  std::string damaged = side_;
  damaged.back() = 'x';  // of a tensor that the manifest does not even use
  write_file(folder_ / "side.safetensors", damaged);
  EXPECT_EQ(load_error(folder_ / "m.json"), prefix() + "its SHA-256 is " + sha256(damaged) +
                                                "; the manifest says " + sha256(side_) +
                                                ": the file is damaged or another one");
  EXPECT_EQ(nn::load_checkpoint(folder_ / "m.json", {.verify_sha256 = false})
                .tensors.at("w")
                .to_doubles(),
            (std::vector<double>{'a', 'b', 'c', 'd'}));
}

TEST_F(SideFile, MustBeThereAndFit) {
  const std::string hash = sha256(side_);
  EXPECT_EQ(error_with(manifest("side.safetensors", side_.size(), hash)),
            prefix() + "cannot be opened: No such file or directory");
  write_file(folder_ / "side.safetensors", side_);
  EXPECT_EQ(error_with(manifest("side.safetensors", side_.size() + 1, hash)),
            prefix() + "has " + std::to_string(side_.size()) + " bytes; the manifest says " +
                std::to_string(side_.size() + 1));
  EXPECT_EQ(
      error_with(manifest("side.safetensors", side_.size(), hash, "[4, 8]")),
      prefix() + "tensor \"w\": data_offsets [4, 8] reach outside the file's 6 bytes of data");
  EXPECT_EQ(error_with(manifest("side.safetensors", side_.size(), hash, "[1, 5]")),
            prefix() +
                "tensor \"w\": the manifest says uint8(4,) at [1, 5], the file's header uint8(4,) "
                "at [0, 4]");
  const std::string head = "tensor \"w\": data_offsets [0, 5] do not span the 4 bytes of uint8(4,)";
  EXPECT_TRUE(
      error_with(manifest("side.safetensors", side_.size(), hash, "[0, 5]")).starts_with(head));
  EXPECT_EQ(error_with(manifest(
                "side.safetensors", side_.size(), hash, "[0, 4]",
                R"(, "u": {"dtype": "uint8", "shape": [2], "file": "f", "data_offsets": [3, 5]})")),
            prefix() + "tensor \"u\" overlaps tensor \"w\"; one name can be an alias of the other");
  EXPECT_TRUE(
      error_with(
          manifest(
              "side.safetensors", side_.size(), hash, "[0, 4]",
              R"(, "u": {"dtype": "uint8", "shape": [2], "file": "g", "data_offsets": [4, 6]})"))
          .starts_with("tensor \"u\": no entry \"g\" in \"files\""));
  fs::remove(folder_ / "side.safetensors");
  ASSERT_EQ(::mkfifo((folder_ / "side.safetensors").c_str(), 0600), 0);
  EXPECT_EQ(error_with(manifest("side.safetensors", side_.size(), hash)),
            prefix() + "is a FIFO; needed a regular file");
}

TEST_F(SideFile, HeaderFaultsNameTheSideFile) {
  for (const auto& [bytes, error] : std::vector<std::pair<std::string, std::string>>{
           {safetensors("{" + entry("w", "U8", "[4]", "[0,4]") + "}", "abcde"),
            "1 bytes follow the last tensor; needed none"},
           {safetensors("{" + entry("w", "U8", "[4]", "[1,5]") + "}", "abcde"),
            "tensor \"w\": starts at byte 1, where byte 0 is next: there is a hole"},
           {"not a safetensors file",
            "the header length is 7021991845529153390; at most 100000000 is allowed"}}) {
    write_file(folder_ / "side.safetensors", bytes);
    EXPECT_EQ(error_with(manifest("side.safetensors", bytes.size(), sha256(bytes))),
              prefix() + error);
  }
}

TEST_F(SideFile, PathsStayInTheFolder) {
  const TempFolder outside;
  write_file(outside / "side.safetensors", side_);
  const std::string hash = sha256(side_);
  const auto refused = [&](const std::string& path, const std::string& fault) {
    const std::string error = error_with(manifest(path, side_.size(), hash));
    EXPECT_TRUE(error.starts_with("file \"f\": the path \"" + path + "\" " + fault)) << error;
  };
  refused("../x.safetensors", "leaves the manifest's folder");
  refused("a/../../x.safetensors", "leaves the manifest's folder");
  refused("..", "leaves the manifest's folder");
  refused(outside / "side.safetensors", "is absolute; needed one relative to the manifest");
  refused("", "is empty");
  EXPECT_TRUE(error_with(manifest("a\\\\b", side_.size(), hash))
                  .starts_with("file \"f\": the path \"a\\b\" holds a backslash"));
  EXPECT_TRUE(error_with(manifest("a\\u0000b", side_.size(), hash))
                  .starts_with("file \"f\": the path \"a\\x00b\" holds control characters"));
  fs::create_symlink(outside / "side.safetensors", folder_ / "link.safetensors");
  EXPECT_EQ(error_with(manifest("link.safetensors", side_.size(), hash)),
            prefix("link.safetensors") + "is a link that leaves the manifest's folder");
  // A link within the folder, and a subfolder, are fine.
  fs::create_directory(folder_ / "sub");
  write_file(folder_ / "sub/..side.safetensors", side_);
  fs::create_symlink("sub/..side.safetensors", folder_ / "inner.safetensors");
  for (const std::string path : {"inner.safetensors", "sub/..side.safetensors"}) {
    write_file(folder_ / "m.json", manifest(path, side_.size(), hash));
    EXPECT_EQ(nn::load_checkpoint(folder_ / "m.json").tensors.size(), 1U);
  }
}

TEST_F(SideFile, EntriesOfFilesAreChecked) {
  const auto entry_error = [&](const std::string& text) {
    return error_with(R"({"files": {"f": )" + text + "}}");
  };
  const std::string hash(64, 'a');
  EXPECT_EQ(entry_error("{\"path\": \"a\", \"size\": 1}"), at("file \"f\": sha256 is missing", 41));
  EXPECT_EQ(entry_error("{\"path\": \"a\", \"sha256\": \"" + hash + "\"}"),
            at("file \"f\": size is missing", 108));
  EXPECT_EQ(entry_error("{\"size\": 1, \"sha256\": \"" + hash + "\"}"),
            at("file \"f\": path is missing", 106));
  EXPECT_EQ(entry_error("{\"size\": -1}"),
            at("file \"f\": size is -1; needed an integer in [0, 2^63)", 28));
  EXPECT_EQ(entry_error("{\"sha256\": \"AB\"}"),
            at("file \"f\": sha256 is \"AB\"; needed 64 lower-case hexadecimal digits", 32));
  EXPECT_EQ(entry_error("{\"mode\": 1}"),
            at("file \"f\": unknown key \"mode\"; needed path, size and sha256", 25));
}

// --- writing ------------------------------------------------------------------------------------

// Files of this process stop growing at a size, as on a full disk.
class SizeLimit {
 public:
  explicit SizeLimit(rlim_t bytes) {
    old_handler_ = std::signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{bytes, old_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~SizeLimit() {
    setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_{};
  void (*old_handler_)(int);
};

TEST(CheckpointWrite, AFullDiskKeepsTheOldCheckpoint) {
  const TempFolder folder;
  const std::string path = folder / "m.json";
  nn::Checkpoint old;
  old.tensors.add("x", full({1000}, 1));
  nn::save_checkpoint(path, old, {.data_limit = 0, .base64_limit = 0});
  nn::Checkpoint next;
  next.tensors.add("x", full({1000}, 2));
  // In turn the side file fails; the manifest, after a complete side file; a manifest alone.
  nn::Checkpoint large_config = next;
  large_config.config.set("text", std::string(100'000, 'x'));
  const auto save = [&](const nn::Checkpoint& checkpoint, rlim_t limit, std::size_t inline_limit) {
    const SizeLimit full_disk(limit);
    EXPECT_ERROR(CheckpointError,
                 "[save_checkpoint] " + path + ": cannot be written: File too large",
                 nn::save_checkpoint(path, checkpoint, {inline_limit, inline_limit}));
  };
  save(next, 1000, 0);
  save(large_config, 10'000, 0);
  save(next, 1000, 1 << 20);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 2);
  EXPECT_EQ(nn::load_checkpoint(path).tensors.at("x").to_doubles(), std::vector<double>(1000, 1.0));
}

TEST(CheckpointWrite, AFullDiskKeepsTheOldSafetensorsFile) {
  const TempFolder folder;
  const std::string path = folder / "m.safetensors";
  nn::Checkpoint checkpoint;
  checkpoint.tensors.add("x", full({1000}, 1));
  nn::save_checkpoint(path, checkpoint);
  const std::string before = test::read_file(path);
  checkpoint.tensors.add("y", full({1000}, 2));
  for (const rlim_t limit : {0, 10, 1000, 5000}) {
    const SizeLimit full_disk(limit);
    EXPECT_ERROR(CheckpointError,
                 "[save_checkpoint] " + path + ": cannot be written: File too large",
                 nn::save_checkpoint(path, checkpoint));
  }
  EXPECT_EQ(test::read_file(path), before);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 1);
}

}  // namespace
}  // namespace tenon
