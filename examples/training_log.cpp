#include "examples/training_log.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <ostream>
#include <sstream>

#include "tensor/error.h"

namespace gpt {
namespace {

using nlohmann::ordered_json;
using tenon::ValueError;

std::string to_json_line(const StepRecord& r) {
  ordered_json line = {{"step", r.step},
                       {"loss", r.loss},
                       {"lr", r.lr},
                       {"grad_norm", r.grad_norm},
                       {"tokens_per_s", r.tokens_per_s}};
  if (r.val_loss) line["val_loss"] = *r.val_loss;
  return line.dump() + "\n";
}

StepRecord from_json_line(const std::string& line) {
  const ordered_json json = ordered_json::parse(line);
  StepRecord r{json.at("step"), json.at("loss"), json.at("lr"), json.at("grad_norm"),
               json.at("tokens_per_s")};
  if (json.contains("val_loss")) r.val_loss = json["val_loss"].get<double>();
  return r;
}

void write_whole(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".tmp";
  std::ofstream file(temporary, std::ios::binary);
  file << text;
  if (!file.flush()) throw ValueError("cannot write " + temporary);
  file.close();
  std::filesystem::rename(temporary, path);
}

std::string duration(double seconds) {
  const auto whole = static_cast<long long>(std::lround(seconds));
  char text[32];
  std::snprintf(text, sizeof text, "%lld:%02lld", whole / 60, whole % 60);
  return text;
}

}  // namespace

MetricsLog::MetricsLog(std::string path, std::int64_t steps_done) : path_(std::move(path)) {
  std::string kept;
  std::ifstream before(path_);
  try {
    for (std::string line; steps_done > 0 && std::getline(before, line);) {
      const StepRecord record = from_json_line(line);
      if (record.step > steps_done) break;
      records_.push_back(record);
      kept += line + "\n";
    }
  } catch (const ordered_json::exception& error) {
    throw ValueError("the metrics of the earlier run cannot be read: " + path_ + ": " +
                     error.what());
  }
  before.close();
  write_whole(path_, kept);
  file_.open(path_, std::ios::app);
}

void MetricsLog::add(const StepRecord& record) {
  records_.push_back(record);
  file_ << to_json_line(record) << std::flush;
  if (!file_) throw ValueError("cannot write " + path_);
}

namespace {

constexpr double kWidth = 720, kHeight = 420;
constexpr double kLeft = 56, kRight = 16, kTop = 28, kBottom = 44;

/// From (step, loss) to the drawing's coordinates.
class Axes {
 public:
  Axes(double last_step, double lowest, double highest)
      : last_step_(std::max(last_step, 1.0)),
        low_(std::floor(lowest * 2) / 2),
        high_(std::max(std::ceil(highest * 2) / 2, low_ + 0.5)) {}
  double x(double step) const { return kLeft + step / last_step_ * (kWidth - kLeft - kRight); }
  double y(double loss) const {
    return kTop + (high_ - loss) / (high_ - low_) * (kHeight - kTop - kBottom);
  }

  void draw(std::ostream& svg) const {
    for (double loss = low_; loss <= high_ + 1e-9; loss += 0.5) {
      svg << "<line x1='" << kLeft << "' x2='" << kWidth - kRight << "' y1='" << y(loss) << "' y2='"
          << y(loss) << "' stroke='#ddd'/><text x='" << kLeft - 8 << "' y='" << y(loss) + 4
          << "' text-anchor='end'>" << loss << "</text>\n";
    }
    for (int i = 0; i <= 4; ++i) {
      const double step = std::round(last_step_ * i / 4);
      svg << "<text x='" << x(step) << "' y='" << kHeight - kBottom + 18
          << "' text-anchor='middle'>" << step << "</text>\n";
    }
    svg << "<text x='" << kWidth / 2 << "' y='" << kHeight - 8
        << "' text-anchor='middle'>step</text>\n<text x='" << kLeft - 40 << "' y='" << kTop - 10
        << "'>loss, nats a character</text>\n";
  }

 private:
  double last_step_, low_, high_;
};

struct Curve {
  const char* name;
  const char* style;
  std::vector<std::pair<double, double>> points;
};

/// Means of neighbouring losses, about 300 of them, so that the file stays small.
Curve training_curve(const std::vector<StepRecord>& records) {
  Curve curve{"training", "stroke='#4a78b8' stroke-width='1.5'", {}};
  const std::size_t group = std::max<std::size_t>(1, records.size() / 300);
  for (std::size_t first = 0; first < records.size(); first += group) {
    const std::size_t n = std::min(group, records.size() - first);
    double step = 0, loss = 0;
    for (std::size_t i = first; i < first + n; ++i) {
      step += static_cast<double>(records[i].step) / static_cast<double>(n);
      loss += records[i].loss / static_cast<double>(n);
    }
    curve.points.emplace_back(step, loss);
  }
  return curve;
}

}  // namespace

void write_loss_curve(const std::string& path, const std::vector<StepRecord>& records,
                      double bigram_loss) {
  const double last = records.empty() ? 1 : static_cast<double>(records.back().step);
  Curve validation{"validation", "stroke='#c0504d' stroke-width='2'", {}};
  for (const StepRecord& r : records) {
    if (r.val_loss) validation.points.emplace_back(r.step, *r.val_loss);
  }
  const Curve curves[] = {training_curve(records),
                          validation,
                          {"bigram model",
                           "stroke='#777' stroke-dasharray='6 4'",
                           {{0, bigram_loss}, {last, bigram_loss}}}};
  double low = bigram_loss, high = bigram_loss;
  for (const Curve& curve : curves) {
    for (const auto& [step, loss] : curve.points) {
      low = std::min(low, loss);
      high = std::max(high, loss);
    }
  }
  const Axes axes(last, low, high);
  std::ostringstream svg;
  svg << "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 " << kWidth << " " << kHeight
      << "' font-family='sans-serif' font-size='12'>\n<rect width='100%' height='100%' "
         "fill='white'/>\n";
  axes.draw(svg);
  double legend = kTop + 8;
  for (const Curve& curve : curves) {
    svg << "<polyline fill='none' " << curve.style << " points='";
    for (const auto& [step, loss] : curve.points) svg << axes.x(step) << "," << axes.y(loss) << " ";
    svg << "'/>\n<line " << curve.style << " x1='" << kWidth - 150 << "' x2='" << kWidth - 120
        << "' y1='" << legend << "' y2='" << legend << "'/><text x='" << kWidth - 112 << "' y='"
        << legend + 4 << "'>" << curve.name << "</text>\n";
    legend += 18;
  }
  svg << "</svg>\n";
  write_whole(path, svg.str());
}

Progress::Progress(std::ostream& out, bool is_terminal, std::int64_t first_step, std::int64_t steps)
    : out_(out), is_terminal_(is_terminal), first_step_(first_step), steps_(steps) {}

void Progress::show(const StepRecord& r) {
  const Clock::time_point now = Clock::now();
  const std::int64_t stride = std::max<std::int64_t>(1, steps_ / 20);
  const bool is_last = r.step == steps_;
  if (!is_last && (is_terminal_ ? now - shown_ < std::chrono::milliseconds(100)
                                : r.step % stride != 0 && r.step != first_step_ + 1)) {
    return;
  }
  shown_ = now;
  const double elapsed = std::chrono::duration<double>(now - started_).count();
  const auto done = static_cast<double>(r.step - first_step_);
  const double left = elapsed / done * static_cast<double>(steps_ - r.step);
  char line[200];
  std::snprintf(line, sizeof line, "step %lld/%lld  loss %.4f  %.0f tokens/s  %s left",
                static_cast<long long>(r.step), static_cast<long long>(steps_), r.loss,
                r.tokens_per_s, duration(left).c_str());
  if (!is_terminal_) {
    out_ << line << std::endl;
    return;
  }
  constexpr int kCells = 24;
  const auto filled = static_cast<int>(r.step * kCells / std::max<std::int64_t>(steps_, 1));
  std::string bar;
  for (int i = 0; i < kCells; ++i) bar += i < filled ? "█" : "░";
  out_ << "\r\x1b[K" << bar << " " << line << std::flush;
  line_is_open_ = true;
  if (is_last) break_line();
}

void Progress::break_line() {
  if (line_is_open_) out_ << std::endl;
  line_is_open_ = false;
}

}  // namespace gpt
