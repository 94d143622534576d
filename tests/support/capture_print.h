// What print() writes during a test, by lines.
#pragma once

#include <sstream>
#include <string>
#include <vector>

#include "tensor/functional.h"

namespace tenon::test {

class CapturePrint {
 public:
  CapturePrint() : before_(set_print_stream(&text_)) {}
  ~CapturePrint() { set_print_stream(before_); }
  CapturePrint(const CapturePrint&) = delete;
  CapturePrint& operator=(const CapturePrint&) = delete;

  std::string text() const { return text_.str(); }
  /// What stands before the first ':' of each line.
  std::vector<std::string> labels() const {
    std::vector<std::string> found;
    std::istringstream lines(text_.str());
    for (std::string line; std::getline(lines, line);) {
      found.push_back(line.substr(0, line.find(':')));
    }
    return found;
  }

 private:
  std::ostringstream text_;
  std::ostream* before_;
};

}  // namespace tenon::test
