// What a training run shows: on a terminal one line that is rewritten ten times a second, elsewhere a line per step; at
// the end a summary.
#pragma once

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string>
#include <vector>

#include "nn/train/trainer.h"

namespace dtensor {

// A text of several lines below what is said of it, set in. Whatever steers a terminal is shown as U+FFFD: a model in
// training writes anything.
inline std::string set_in(std::string_view text) {
  std::string out = "    ";
  for (size_t i = 0; i < text.size(); ++i) {
    auto c = static_cast<unsigned char>(text[i]);
    bool is_c1 = c == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0;  // U+0080 to 9F
    if (c == '\n')
      out += "\n    ";
    else if (is_c1 || (c < 0x20 && c != '\t') || c == 0x7f)
      out += "\ufffd", i += is_c1;
    else
      out += text[i];
  }
  return out;
}

// The line on a terminal, shorter than `columns`; the bar takes what the rest leaves. `here` steps of this process took
// `seconds`; a run that was resumed had others before.
//     [=========>              ] step 38/100  loss 2.8313  grad norm 0.931  20113 tokens/s  0:12 left
inline std::string progress_line(const nn::Trainer::Step& s, int64_t here, int64_t steps, double tokens_per_second,
                                 double seconds, int columns) {
  int64_t left = int64_t(seconds / double(here) * double(steps - s.step) + 0.5);
  std::string time = left < 3600 ? fmt::format("{}:{:02}", left / 60, left % 60)
                                 : fmt::format("{}:{:02}:{:02}", left / 3600, left / 60 % 60, left % 60);
  // Where there is no room for all, what matters least is left out.
  const std::string parts[] = {fmt::format("step {}/{}", s.step, steps), fmt::format("loss {:.4f}", s.loss),
                               fmt::format("grad norm {:.3f}", s.grad_norm),
                               fmt::format("{:.0f} tokens/s", tokens_per_second), time + " left"};
  std::vector<bool> shown(std::size(parts), true);
  auto joined = [&] {
    std::string text;
    for (size_t i = 0; i < std::size(parts); ++i)
      if (shown[i]) text += (text.empty() ? "" : "  ") + parts[i];
    return text;
  };
  std::string text = joined();
  for (size_t least : {2, 3, 4, 1})
    if (int(text.size()) >= columns) shown[least] = false, text = joined();
  int width = std::min(30, columns - 4 - int(text.size()));  // brackets, a space, and the last column, where lines wrap
  if (width < 3) return text.substr(0, size_t(std::max(1, columns - 1)));
  std::string bar(size_t(s.step * width / steps), '=');
  if (s.step < steps) bar += '>';
  bar.resize(size_t(width), ' ');
  return fmt::format("[{}] {}", bar, text);
}

class Progress {
 public:
  explicit Progress(int64_t steps) : steps_(steps) {}
  Progress(const Progress&) = delete;
  ~Progress() {  // also when a step threw: what follows begins on a line of its own
    if (open_) std::fputs("\n", stdout);
  }

  // After a step that took `seconds` for `tokens`.
  void step(const nn::Trainer::Step& s, int64_t tokens, double seconds) {
    if (done_++ == 0) first_ = s.loss;
    last_ = s.loss;
    tokens_ += tokens;
    seconds_ += seconds;
    if (terminal_) {
      last_step_ = s;
      if (auto now = std::chrono::steady_clock::now(); now >= next_draw_ || s.step == steps_) {
        draw();
        next_draw_ = now + std::chrono::milliseconds(100);  // a terminal that is slow, or not read, does not fill up
      }
    } else {
      fmt::print("step {}/{}  loss {:.4f}  grad_norm {:.3f}  lr {:.2e}  {:.0f} tokens/s\n", s.step, steps_, s.loss,
                 s.grad_norm, s.lr, double(tokens) / seconds);
    }
    std::fflush(stdout);
  }

  // A line of its own, the bar goes on below.
  void note(const std::string& text) {
    fmt::print("{}{}\n", open_ ? "\r\x1b[K" : "", text);
    next_draw_ = {};
    std::fflush(stdout);
  }

  // `metrics` is the file that has them, or "".
  void summary(const std::string& metrics) {
    if (open_) draw(), std::fputs("\n", stdout);
    open_ = false;
    if (done_ == 0) return;
    fmt::print("done: loss {:.4f} at the first step, {:.4f} at the last; {} steps in {:.1f} s, {:.0f} tokens/s\n",
               first_, last_, done_, seconds_, double(tokens_) / seconds_);
    if (!metrics.empty()) fmt::print("metrics of every step: {}\n", metrics);
  }

 private:
  void draw() {
    fmt::print("\r{}\x1b[K", progress_line(last_step_, done_, steps_, double(tokens_) / seconds_, seconds_, columns()));
    open_ = true;
  }
  static bool is_terminal() {
    const char* term = std::getenv("TERM");
    return isatty(STDOUT_FILENO) && term && std::string_view(term) != "dumb";
  }
  static int columns() {
    winsize size{};
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
  }

  int64_t steps_, done_ = 0, tokens_ = 0;
  double first_ = 0, last_ = 0, seconds_ = 0;
  nn::Trainer::Step last_step_{};
  std::chrono::steady_clock::time_point next_draw_{};
  bool terminal_ = is_terminal(), open_ = false;
};

}  // namespace dtensor
