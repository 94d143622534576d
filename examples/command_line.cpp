#include "examples/command_line.h"

#include <CLI/CLI.hpp>
#include <vector>

namespace tenon {

CommandLineOption& CommandLineOption::positive() {
  option_->check(CLI::PositiveNumber);
  return *this;
}

CommandLineOption& CommandLineOption::range(std::int64_t least, std::int64_t most) {
  option_->check(CLI::Range(least, most));
  return *this;
}

CommandLineOption& CommandLineOption::probability() {
  option_->check(CLI::Range(0.0, 1.0));
  return *this;
}

CommandLineOption& CommandLineOption::one_of(std::initializer_list<const char*> values) {
  option_->check(CLI::IsMember(values));
  return *this;
}

CommandLineOption& CommandLineOption::existing_file() {
  option_->check(CLI::ExistingFile);
  return *this;
}

CommandLineOption& CommandLineOption::required() {
  option_->required();
  return *this;
}

CommandLineOption& CommandLineOption::without_default() {
  option_->default_str("");
  return *this;
}

CommandLine::CommandLine(const char* description) : app_(std::make_unique<CLI::App>(description)) {}

CommandLine::~CommandLine() = default;

template <typename T>
CommandLineOption CommandLine::option(const char* name, T& value, const char* what) {
  return CommandLineOption(*app_->add_option(name, value, what)->capture_default_str());
}

template CommandLineOption CommandLine::option(const char*, std::string&, const char*);
template CommandLineOption CommandLine::option(const char*, int&, const char*);
template CommandLineOption CommandLine::option(const char*, std::int64_t&, const char*);
template CommandLineOption CommandLine::option(const char*, std::uint64_t&, const char*);
template CommandLineOption CommandLine::option(const char*, double&, const char*);
template CommandLineOption CommandLine::option(const char*, std::vector<std::int64_t>&,
                                               const char*);

void CommandLine::flag(const char* name, bool& value, const char* what) {
  app_->add_flag(name, value, what);
}

void CommandLine::footer(const char* text) { app_->footer(text); }

void CommandLine::last_wins() {
  app_->option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
}

std::optional<int> CommandLine::parse(int argc, char** argv) {
  try {
    app_->parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    return app_->exit(error) == 0 ? 0 : 2;
  }
}

bool CommandLine::is_given(const std::string& name) const { return app_->count(name) > 0; }

}  // namespace tenon
