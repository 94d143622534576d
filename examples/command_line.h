// The command line of a program: its options, where their values go, and what --help says. CLI11
// does the work in command_line.cpp alone: its headers take longer to compile than most programs.
//
//   CommandLine line("Times training steps");
//   line.option("--steps", options.steps, "steps to take").positive();
//   line.flag("--json", options.json, "one JSON object on stdout");
//   if (const auto status = line.parse(argc, argv)) return *status;
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace tenon {

/// What an option demands of its value. --help says it, and so does the message about a wrong value.
class CommandLineOption {
 public:
  CommandLineOption& positive();
  /// From `least` to `most`, both included.
  CommandLineOption& range(std::int64_t least, std::int64_t most);
  CommandLineOption& probability();
  CommandLineOption& one_of(std::initializer_list<const char*> values);
  CommandLineOption& existing_file();
  CommandLineOption& required();
  /// --help does not show the value that holds when none is given.
  CommandLineOption& without_default();

 private:
  friend class CommandLine;
  explicit CommandLineOption(CLI::Option& option) : option_(&option) {}

  CLI::Option* option_;
};

class CommandLine {
 public:
  explicit CommandLine(const char* description);
  ~CommandLine();

  /// `value` holds the default, which --help shows. A name without dashes is that of an argument.
  /// T: std::string, int, std::int64_t, std::uint64_t, double or std::vector<std::int64_t>.
  template <typename T>
  CommandLineOption option(const char* name, T& value, const char* what);
  void flag(const char* name, bool& value, const char* what);
  /// Stands below the options in --help.
  void footer(const char* text);
  /// Options that are added after this may be given again, and the last value counts.
  void last_wins();

  /// Nothing, or the exit status to stop with: 0 after --help, which stdout has got; 2 for a wrong
  /// command line, which a message on stderr explains.
  [[nodiscard]] std::optional<int> parse(int argc, char** argv);
  /// After parse(): whether the option stood on the command line.
  bool is_given(const std::string& name) const;

 private:
  std::unique_ptr<CLI::App> app_;
};

}  // namespace tenon
